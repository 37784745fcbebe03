#include "dydit/model/quantization.h"

#include <algorithm>

#include <ATen/ATen.h>

namespace dydit {

constexpr double kMost = 127;

bool is_block_layer(std::string_view name) {
  return name.starts_with("blocks.") &&
         std::any_of(kBlockLayers.begin(), kBlockLayers.end(), [&](auto layer) {
           const size_t at = name.find(layer);
           return at != name.npos && at > 0 && name[at - 1] == '.' &&
                  name.substr(at + layer.size()).starts_with('.');
         });
}

int input_segments(const DiTConfig& config, std::string_view layer) {
  return layer == "attn.proj" || layer == "mlp.fc2" ? config.num_heads : 1;
}

QuantizedWeight quantize(const at::Tensor& weight, int segments, const at::Tensor& smooth) {
  at::Tensor values = weight.to(at::kFloat);
  if (smooth.defined()) values = values * smooth;
  const at::Tensor parts = values.reshape({values.size(0), segments, -1});
  const at::Tensor scale = parts.abs().amax(-1) / kMost;
  const at::Tensor divisor = at::where(scale > 0, scale, at::ones({}, at::kFloat)).unsqueeze(-1);
  return {(parts / divisor).round().clamp(-kMost, kMost).to(at::kChar).reshape(values.sizes()), scale,
          smooth};
}

at::Tensor dequantize(const QuantizedWeight& weight) {
  const at::Tensor& values = weight.values;
  const at::Tensor parts = values.to(at::kFloat).reshape({values.size(0), weight.scale.size(1), -1});
  const at::Tensor whole = (parts * weight.scale.unsqueeze(-1)).reshape(values.sizes());
  return weight.smooth.defined() ? whole / weight.smooth : whole;
}

}  // namespace dydit
