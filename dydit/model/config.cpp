// Names and JSON of a configuration.
#include "dydit/model/config.h"

#include <array>
#include <string_view>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "dydit/base/error.h"

namespace dydit {
namespace {

// Published sizes (DiT paper, table 1).
struct NamedSize {
  std::string_view name;
  int depth, hidden_size, num_heads;
};
constexpr std::array kNamedSizes = {NamedSize{"S", 12, 384, 6}, NamedSize{"B", 12, 768, 12},
                                    NamedSize{"L", 24, 1024, 16}, NamedSize{"XL", 28, 1152, 16}};

}  // namespace

DiTConfig with_semantics(DiTConfig config, Semantics semantics) {
  const bool diffusers = semantics == Semantics::Diffusers;
  const DiTConfig original;
  config.all_blocks.mlp_norm_eps = diffusers ? 1e-5 : original.all_blocks.mlp_norm_eps;
  config.frequency_divisor = diffusers ? 127 : original.frequency_divisor;
  config.guided_channels = diffusers ? config.in_channels : original.guided_channels;
  config.drops_variance = diffusers;
  return config;
}

Semantics semantics_of(const DiTConfig& config) {
  return config == with_semantics(config, Semantics::Diffusers) ? Semantics::Diffusers : Semantics::Original;
}

nlohmann::json config_to_json(const DiTConfig& config) {
  nlohmann::json json = {{"input_size", config.input_size},
                         {"patch_size", config.patch_size},
                         {"in_channels", config.in_channels},
                         {"hidden_size", config.hidden_size},
                         {"depth", config.depth},
                         {"num_heads", config.num_heads},
                         {"mlp_ratio", static_cast<double>(config.mlp_hidden) / config.hidden_size},
                         {"num_classes", config.num_classes},
                         {"learn_sigma", config.learn_sigma}};
  if (const Semantics semantics = semantics_of(config); semantics != Semantics::Original)
    json["semantics"] = kSemanticsNames[semantics];
  return json;
}

std::string model_name(const DiTConfig& config) {
  const std::string_view prefix = config.is_dynamic() ? "DyDiT" : "DiT";
  for (const NamedSize& size : kNamedSizes) {
    if (size.depth == config.depth && size.hidden_size == config.hidden_size &&
        size.num_heads == config.num_heads) {
      return fmt::format("{}-{}/{}", prefix, size.name, config.patch_size);
    }
  }
  return fmt::format("{} ({} blocks, hidden {}, {} heads, patch {})", prefix, config.depth,
                     config.hidden_size, config.num_heads, config.patch_size);
}

DiTConfig named_config(const std::string& name) {
  const std::string_view text =
      name.starts_with("DiT-") ? std::string_view(name).substr(4) : std::string_view(name);
  for (const NamedSize& size : kNamedSizes) {
    for (const int patch : {2, 4, 8}) {
      if (text != fmt::format("{}/{}", size.name, patch)) continue;
      DiTConfig config;
      config.patch_size = patch;
      config.depth = size.depth;
      config.hidden_size = size.hidden_size;
      config.num_heads = size.num_heads;
      config.mlp_hidden = 4 * size.hidden_size;
      return config;
    }
  }
  throw UsageError(
      fmt::format("{}: no such size; expected DiT-S, DiT-B, DiT-L or DiT-XL with /2, /4 or /8", name));
}

int known_num_heads(int hidden_size) {
  for (const NamedSize& size : kNamedSizes) {
    if (size.hidden_size == hidden_size) return size.num_heads;
  }
  return 0;
}

}  // namespace dydit
