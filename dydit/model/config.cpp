// Names and JSON of a configuration.
#include "dydit/model/config.h"

#include <array>
#include <span>
#include <string_view>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "dydit/base/error.h"
#include "dydit/base/timesteps.h"

namespace dydit {
namespace {

// Published sizes (DiT paper, table 1; U-ViT paper, table 1, whose depths leave out the block in the middle).
struct NamedSize {
  std::string_view name;
  int depth, hidden_size, num_heads;
};
constexpr std::array kNamedSizes = {NamedSize{"S", 12, 384, 6}, NamedSize{"B", 12, 768, 12},
                                    NamedSize{"L", 24, 1024, 16}, NamedSize{"XL", 28, 1152, 16}};
constexpr std::array kUViTSizes = {NamedSize{"S", 13, 512, 8}, NamedSize{"S-Deep", 17, 512, 8},
                                   NamedSize{"M", 17, 768, 12}, NamedSize{"L", 21, 1024, 16},
                                   NamedSize{"H", 29, 1152, 16}};
constexpr std::string_view kFamilies[] = {"DiT", "SiT", "U-ViT", "Skip-DiT"};

std::span<const NamedSize> sizes_of(std::string_view family) {
  if (family == "U-ViT") return kUViTSizes;
  return kNamedSizes;
}

std::string_view family_of(const DiTConfig& config) {
  if (config.time_token) return "U-ViT";
  if (config.join != Join::None) return "Skip-DiT";
  return config.objective.continuous() ? "SiT" : "DiT";
}

}  // namespace

DiTConfig at_level(DiTConfig config, int level) {
  config.patch_size = config.patch(level);
  config.level_from.clear();
  return config;
}

bool levels_share_time(const DiTConfig& config) { return config.levels() > 1 && config.level_from[0] > 0; }

int level_at(const DiTConfig& config, double timestep) {
  return level_at_thousandth(config, config.objective.continuous()
                                         ? noise_share(config.objective, timestep) * kNumTrainTimesteps
                                         : timestep);
}

int level_at_thousandth(const DiTConfig& config, double t) {
  int level = 0;
  while (level + 1 < config.levels() && t >= config.level_from[level]) ++level;
  return level;
}

std::string levels_text(const DiTConfig& config) {
  std::string text;
  for (int level = 0; level < config.levels(); ++level) {
    const int p = config.patch(level);
    text += fmt::format("{}level {}: {}x{}, {} tokens", level > 0 ? "; " : "", level, p, p,
                        config.num_tokens(level));
    if (level == 0) continue;
    const int from = config.level_from[level - 1];
    text += from > 0 ? fmt::format(", trained from t = {}", from) : ", trained at all t";
  }
  return text;
}

void check_levels(const DiTConfig& config, const std::vector<int>& level_from) {
  DYDIT_USAGE_CHECK(config.levels() == 1, "a model that has {} levels of patch sizes; levels are added once",
                    config.levels());
  DYDIT_USAGE_CHECK(config.modulation == Modulation::AdaLN && config.join == Join::None &&
                        !config.learned_positions && !config.output_conv,
                    "levels of patch sizes for a {}; they are for DiT and SiT", family_of(config));
  DYDIT_USAGE_CHECK(!level_from.empty() && level_from.size() < kMostLevels,
                    "{} levels of patch sizes; 2 to {} can be", level_from.size() + 1, kMostLevels);
  for (size_t i = 0; i < level_from.size(); ++i) {
    DYDIT_USAGE_CHECK(
        level_from[i] >= (i > 0 ? level_from[i - 1] : 0) && level_from[i] < kNumTrainTimesteps,
        "level {} from t = {}: 0 to {} are t, and a larger patch begins no lower than a smaller", i + 1,
        level_from[i], kNumTrainTimesteps - 1);
    DYDIT_USAGE_CHECK((level_from[i] > 0) == (level_from[0] > 0),
                      "level {} from t = {} and level 1 from {}: all begin above 0, or all at 0", i + 1,
                      level_from[i], level_from[0]);
    const int patch = config.patch(static_cast<int>(i) + 1);
    DYDIT_USAGE_CHECK(config.input_size % patch == 0,
                      "level {} has patches of {}x{}, which do not fill {}x{}; take fewer levels", i + 1,
                      patch, patch, config.input_size, config.input_size);
  }
}

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
  if (config.objective != Objective()) {
    json["path"] = path_name(config.objective);
    json["prediction"] = kPredictionNames[config.objective.prediction];
  }
  if (config.num_classes > 0 && config.time_token) json["null_class"] = config.has_null_class;
  if (config.join == Join::Residual) json["skip"] = "residual";
  if (config.token_scope != TokenScope::Mlp) json["token_scope"] = kTokenScopeNames[config.token_scope];
  if (config.levels() > 1) json["level_from"] = config.level_from;
  return json;
}

std::string_view path_name(const Objective& objective) {
  return kPathNames[{objective.path, objective.clock}];
}

std::string objective_text(const Objective& objective) {
  return fmt::format("{} of the path {}", kPredictionNames[objective.prediction], path_name(objective));
}

std::string time_axis(const Objective& objective) {
  if (!objective.continuous())
    return "timestep t: 0 is the image, 999 noise; sampling goes from right to left";
  const double noise = time_at(objective, 1);
  return fmt::format("time t: {} is the image, {} noise; sampling goes {}", time_at(objective, 0), noise,
                     "from right to left");
}

DiTConfig with_objective(DiTConfig config, const Objective& objective) {
  config.objective = objective;
  if (objective.continuous()) config.drops_variance |= config.learn_sigma;
  return config;
}

DiTConfig with_uvit(DiTConfig config) {
  constexpr double kEps = 1e-5;
  config.all_blocks = {kEps, kEps};
  config.final_norm_eps = kEps;
  config.modulation = Modulation::Affine;
  config.gelu = GeluForm::Erf;
  config.join = Join::Plain;
  config.time_token = config.learned_positions = config.output_conv = true;
  config.learn_sigma = config.time_mlp = config.qkv_bias = false;
  config.time_frequencies = config.hidden_size;
  config.frequency_divisor = config.hidden_size / 2;
  config.guided_channels = config.in_channels;
  return with_objective(config, {Path::Vp, Prediction::Noise, ModelClock::Scaled});
}

std::string model_name(const DiTConfig& config) {
  const std::string family = fmt::format("{}{}", config.is_dynamic() ? "Dy" : "", family_of(config));
  for (const NamedSize& size : sizes_of(family_of(config))) {
    if (size.depth == config.depth && size.hidden_size == config.hidden_size &&
        size.num_heads == config.num_heads) {
      return fmt::format("{}-{}/{}", family, size.name, config.patch_size);
    }
  }
  return fmt::format("{} ({} blocks, hidden {}, {} heads, patch {})", family, config.depth,
                     config.hidden_size, config.num_heads, config.patch_size);
}

DiTConfig named_config(const std::string& name) {
  std::string_view family = "DiT", text = name;
  for (const std::string_view other : kFamilies) {
    if (!text.starts_with(other) || text.substr(other.size(), 1) != "-") continue;
    family = other;
    text.remove_prefix(other.size() + 1);
    break;
  }
  for (const NamedSize& size : sizes_of(family)) {
    for (const int patch : {2, 4, 8}) {
      if (text != fmt::format("{}/{}", size.name, patch)) continue;
      DiTConfig config;
      config.patch_size = patch;
      config.depth = size.depth;
      config.hidden_size = size.hidden_size;
      config.num_heads = size.num_heads;
      config.mlp_hidden = 4 * size.hidden_size;
      if (family == "SiT")
        return with_objective(config, {Path::Linear, Prediction::Velocity, ModelClock::Data});
      if (family == "Skip-DiT") config.join = Join::Normed;
      return family == "U-ViT" ? with_uvit(config) : config;
    }
  }
  throw UsageError(
      fmt::format("{}: no such size; expected DiT-S, DiT-B, DiT-L or DiT-XL (SiT and Skip-DiT alike) or "
                  "U-ViT-S, U-ViT-M, "
                  "U-ViT-L or U-ViT-H with /2, /4 or /8",
                  name));
}

int known_num_heads(const DiTConfig& config) {
  for (const NamedSize& size : sizes_of(family_of(config))) {
    if (size.hidden_size == config.hidden_size) return size.num_heads;
  }
  return 0;
}

}  // namespace dydit
