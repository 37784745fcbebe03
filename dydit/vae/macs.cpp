// Multiply-adds of an autoencoder: every layer's weights once for each pixel of what comes out, and the two
// products of attention.
#include <utility>
#include <vector>

#include "dydit/vae/layers.h"

namespace dydit {
namespace {

// `sides`: height and width at each level, full resolution first.
int64_t half_macs(const AutoencoderConfig& config, VaeHalf half,
                  const std::vector<std::pair<int64_t, int64_t>>& sides) {
  int64_t macs = 0;
  for (const VaeLayer& layer : autoencoder_layers(config)) {
    const auto [height, width] = sides[static_cast<size_t>(layer.level)];
    if (half_of(layer.name) == half && !layer.is_norm()) macs += layer.weight_values() * height * width;
  }
  if (config.kind == AutoencoderKind::Kl && config.mid_attention) {
    const int64_t tokens = sides.back().first * sides.back().second;
    macs += 2 * tokens * tokens * config.channels.back();
  }
  return macs;
}

}  // namespace

int64_t encode_macs(const AutoencoderConfig& config, int height, int width) {
  std::vector<std::pair<int64_t, int64_t>> sides = {{height, width}};
  const int64_t up = config.kind == AutoencoderKind::Tiny ? 1 : 0;  // its strided layers round up
  while (sides.size() < config.channels.size())
    sides.emplace_back((sides.back().first + up) / 2, (sides.back().second + up) / 2);
  return half_macs(config, VaeHalf::Encoder, sides);
}

int64_t decode_macs(const AutoencoderConfig& config, int height, int width) {
  std::vector<std::pair<int64_t, int64_t>> sides;
  for (int64_t scale = config.factor(); scale > 0; scale /= 2)
    sides.emplace_back(height * scale, width * scale);
  return half_macs(config, VaeHalf::Decoder, sides);
}

}  // namespace dydit
