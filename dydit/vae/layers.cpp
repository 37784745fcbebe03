#include "dydit/vae/layers.h"

#include <array>
#include <charconv>
#include <functional>
#include <numeric>
#include <utility>

#include <fmt/format.h>

namespace dydit {
namespace {

constexpr int64_t kColours = 3;
constexpr int kTinyWidth = 64, kTinyPooled = 256;

class LayerList {
 public:
  void conv(std::string name, int64_t in, int64_t out, int level, int64_t side = 3) {
    add(std::move(name), {out, in, side, side}, level);
  }
  void linear(std::string name, int64_t width, int level) { add(std::move(name), {width, width}, level); }
  void norm(std::string name, int64_t channels, int level) { add(std::move(name), {channels}, level); }
  void without_bias() { layers_.back().bias = false; }

  void resnet(const std::string& name, int64_t in, int64_t out, int level) {
    norm(name + ".norm1", in, level);
    conv(name + ".conv1", in, out, level);
    norm(name + ".norm2", out, level);
    conv(name + ".conv2", out, out, level);
    if (in != out) conv(name + ".conv_shortcut", in, out, level, 1);
  }

  void middle(const std::string& name, const AutoencoderConfig& config) {
    const int level = static_cast<int>(config.channels.size()) - 1;
    const int64_t width = config.channels.back();
    resnet(name + ".resnets.0", width, width, level);
    if (config.mid_attention) {
      norm(name + ".attentions.0.group_norm", width, level);
      for (const char* part : {".to_q", ".to_k", ".to_v", ".to_out.0"})
        linear(name + ".attentions.0" + part, width, level);
    }
    resnet(name + ".resnets.1", width, width, level);
  }

  void tiny_block(const std::string& name, int level, bool pool) {
    if (pool) {
      conv(name + ".pool.0", kTinyWidth, kTinyPooled, level, 1);
      without_bias();
      norm(name + ".pool.1", kTinyPooled, level);
      conv(name + ".pool.3", kTinyPooled, kTinyWidth, level, 1);
      without_bias();
    }
    for (const char* part : {".conv.0", ".conv.2", ".conv.4"})
      conv(name + part, kTinyWidth, kTinyWidth, level);
  }

  std::vector<VaeLayer> result() && { return std::move(layers_); }

 private:
  void add(std::string name, std::vector<int64_t> weight, int level) {
    layers_.push_back({std::move(name), std::move(weight), level});
  }
  std::vector<VaeLayer> layers_;
};

void add_kl(LayerList& list, const AutoencoderConfig& config) {
  const std::vector<int>& channels = config.channels;
  const int top = static_cast<int>(channels.size()) - 1;
  const int64_t z = config.latent_channels;
  list.conv("encoder.conv_in", kColours, channels[0], 0);
  for (int i = 0; i <= top; ++i) {
    const std::string block = fmt::format("encoder.down_blocks.{}", i);
    for (int j = 0; j < config.layers; ++j)
      list.resnet(fmt::format("{}.resnets.{}", block, j), channels[j == 0 && i > 0 ? i - 1 : i], channels[i],
                  i);
    if (i < top) list.conv(block + ".downsamplers.0.conv", channels[i], channels[i], i + 1);
  }
  list.middle("encoder.mid_block", config);
  list.norm("encoder.conv_norm_out", channels[top], top);
  list.conv("encoder.conv_out", channels[top], 2 * z, top);
  if (config.quant_conv) list.conv("quant_conv", 2 * z, 2 * z, top, 1);

  if (config.post_quant_conv) list.conv("post_quant_conv", z, z, top, 1);
  list.conv("decoder.conv_in", z, channels[top], top);
  list.middle("decoder.mid_block", config);
  for (int i = 0; i <= top; ++i) {
    const std::string block = fmt::format("decoder.up_blocks.{}", i);
    const int level = top - i;
    for (int j = 0; j <= config.layers; ++j)
      list.resnet(fmt::format("{}.resnets.{}", block, j), channels[j == 0 && i > 0 ? level + 1 : level],
                  channels[level], level);
    if (level > 0) list.conv(block + ".upsamplers.0.conv", channels[level], channels[level], level - 1);
  }
  list.norm("decoder.conv_norm_out", channels[0], 0);
  list.conv("decoder.conv_out", channels[0], kColours, 0);
}

// Positions in two torch.nn.Sequential: what has no weights (clamp, ReLU, upsampling) takes one, too.
void add_tiny(LayerList& list, const AutoencoderConfig& config) {
  const int top = static_cast<int>(config.channels.size()) - 1;
  int at = 0;
  const auto place = [&](const char* half) { return fmt::format("{}.{}", half, at++); };
  list.conv(place("encoder"), kColours, kTinyWidth, 0);
  list.tiny_block(place("encoder"), 0, false);
  for (int level = 1; level <= top; ++level) {
    list.conv(place("encoder"), kTinyWidth, kTinyWidth, level);
    list.without_bias();
    for (int j = 0; j < config.layers; ++j)
      list.tiny_block(place("encoder"), level, config.pool && level == top);
  }
  list.conv(place("encoder"), kTinyWidth, config.latent_channels, top);

  at = 1;  // after the clamp
  list.conv(place("decoder"), config.latent_channels, kTinyWidth, top);
  ++at;  // ReLU
  for (int level = top; level > 0; --level) {
    for (int j = 0; j < config.layers; ++j)
      list.tiny_block(place("decoder"), level, config.pool && level == top);
    ++at;  // upsampling
    list.conv(place("decoder"), kTinyWidth, kTinyWidth, level - 1);
    list.without_bias();
  }
  list.tiny_block(place("decoder"), 0, false);
  list.conv(place("decoder"), kTinyWidth, kColours, 0);
}

using Names = std::pair<std::string_view, std::string_view>;  // diffusers', the other's

constexpr std::array kOldAttention = {Names{"to_q", "query"}, Names{"to_k", "key"}, Names{"to_v", "value"},
                                      Names{"to_out.0", "proj_attn"}};
constexpr std::array kLdmAttention = {Names{"group_norm", "norm"}, Names{"to_q", "q"}, Names{"to_k", "k"},
                                      Names{"to_v", "v"}, Names{"to_out.0", "proj_out"}};
constexpr std::array kLdmPlaces = {Names{".mid_block.resnets.0.", ".mid.block_1."},
                                   Names{".mid_block.resnets.1.", ".mid.block_2."},
                                   Names{".mid_block.attentions.0.", ".mid.attn_1."},
                                   Names{".down_blocks.", ".down."},
                                   Names{".up_blocks.", ".up."},
                                   Names{".resnets.", ".block."},
                                   Names{".downsamplers.0.conv", ".downsample.conv"},
                                   Names{".upsamplers.0.conv", ".upsample.conv"},
                                   Names{".conv_shortcut", ".nin_shortcut"},
                                   Names{".conv_norm_out", ".norm_out"}};
constexpr std::string_view kAttention = ".attentions.0.";
constexpr std::string_view kUpBlocks = "decoder.up_blocks.";

void replace(std::string& name, std::string_view from, std::string_view to) {
  const size_t at = name.find(from);
  if (at != name.npos) name.replace(at, from.size(), to);
}

// The part of an attention that follows `place`, as others call it.
template <typename Table>
void respell_attention(std::string& name, const Table& table) {
  const size_t at = name.find(kAttention);
  if (at == name.npos) return;
  const size_t part = at + kAttention.size();
  for (const auto& [ours, theirs] : table) {
    if (name.compare(part, ours.size(), ours) != 0) continue;
    name.replace(part, ours.size(), theirs);
    return;
  }
}

// The number that begins at `at`, and where it ends.
std::pair<int, size_t> number_at(const std::string& name, size_t at) {
  int value = 0;
  const char* const end = std::from_chars(name.data() + at, name.data() + name.size(), value).ptr;
  return {value, static_cast<size_t>(end - name.data())};
}

std::string ldm_name(std::string name, int levels) {
  if (name.starts_with(kUpBlocks)) {
    const auto [block, end] = number_at(name, kUpBlocks.size());
    name.replace(kUpBlocks.size(), end - kUpBlocks.size(), std::to_string(levels - 1 - block));
  }
  respell_attention(name, kLdmAttention);
  for (const auto& [ours, theirs] : kLdmPlaces) replace(name, ours, theirs);
  return name;
}

std::string diffusers_tiny_name(const std::string& name) {
  const size_t dot = name.find('.') + 1;
  const auto [position, end] = number_at(name, dot);
  const bool decoder = name.starts_with("decoder");  // whose clamp is no layer there
  return fmt::format("{}layers.{}{}", name.substr(0, dot), decoder ? position - 1 : position,
                     name.substr(end));
}

}  // namespace

int64_t VaeLayer::weight_values() const {
  return std::accumulate(weight.begin(), weight.end(), int64_t{1}, std::multiplies<>());
}

std::vector<VaeLayer> autoencoder_layers(const AutoencoderConfig& config) {
  LayerList list;
  if (config.kind == AutoencoderKind::Kl) {
    add_kl(list, config);
  } else {
    add_tiny(list, config);
  }
  return std::move(list).result();
}

VaeHalf half_of(std::string_view name) {
  const bool encoder = name.starts_with("encoder.") || name.starts_with("quant_conv");
  return encoder ? VaeHalf::Encoder : VaeHalf::Decoder;
}

std::string spelled(VaeNames names, const std::string& name, int levels) {
  std::string result = name;
  switch (names) {
    case VaeNames::Diffusers:
    case VaeNames::Taesd:
      break;
    case VaeNames::OldDiffusers:
      respell_attention(result, kOldAttention);
      break;
    case VaeNames::Ldm:
      result = ldm_name(std::move(result), levels);
      break;
    case VaeNames::DiffusersTiny:
      result = diffusers_tiny_name(name);
      break;
  }
  return result;
}

}  // namespace dydit
