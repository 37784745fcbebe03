// config.json, key by key: a key that is missing or null takes diffusers' default, what a key says must be of
// the networks that are here, and what nobody asked for is told.
#include "dydit/vae/config.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <set>

#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "dydit/base/error.h"
#include "dydit/io/json.h"
#include "dydit/io/text.h"

namespace dydit {
namespace {

using nlohmann::json;

constexpr size_t kMaxBytes = 1 << 20;
constexpr int kMaxDepth = 4;
constexpr int kMaxChannels = 1 << 14, kMaxLayers = 16, kMaxSide = 1 << 16;
constexpr double kLeastFactor = 1e-6, kLargestFactor = 1e6;
constexpr int kColours = 3;
constexpr int kTinyWidth = 64, kTinyLayers = 3, kTinyGroups = 4, kTinyLevels = 4;
constexpr const char* kTinyLayout = "the layout of TAESD";

// The keys of config.json; those that were asked for are known.
class Keys {
 public:
  Keys(const json& config, const std::string& name) : config_(config), name_(name) {}

  // Null where it is missing or null.
  const json* find(const char* key) {
    known_.insert(key);
    const auto found = config_.find(key);
    return found == config_.end() || found->is_null() ? nullptr : &*found;
  }

  int size(const char* key, int otherwise, int most) {
    const json* value = find(key);
    return value ? size(*value, key, most) : otherwise;
  }

  std::vector<int> sizes(const char* key, std::vector<int> otherwise, int most) {
    const json* value = find(key);
    if (!value) return otherwise;
    DYDIT_CHECK(value->is_array() && !value->empty(), "{}: {} is {}; a list of sizes is wanted", name_, key,
                shown(*value));
    std::vector<int> result;
    for (const json& item : *value) result.push_back(size(item, key, most));
    return result;
  }

  bool truth(const char* key, bool otherwise) {
    const json* value = find(key);
    DYDIT_CHECK(!value || value->is_boolean(), "{}: {} is {}; true or false is wanted", name_, key,
                value ? shown(*value) : "");
    return value ? value->get<bool>() : otherwise;
  }

  double number(const char* key, double otherwise) {
    const json* value = find(key);
    return value ? number(*value, key) : otherwise;
  }

  // What decoding divides by.
  double factor(const char* key, double otherwise) {
    DYDIT_CHECK(find(key) || !config_.contains(key), "{}: {} is null; a number above 0 is wanted", name_,
                key);
    const double value = number(key, otherwise);
    check_factor(value, key);
    return value;
  }

  // One a channel; empty without.
  std::vector<double> numbers(const char* key, int count) {
    const json* value = find(key);
    if (!value) return {};
    DYDIT_CHECK(value->is_array() && value->size() == static_cast<size_t>(count),
                "{}: {} is {}; {} numbers are wanted, one a latent channel", name_, key, shown(*value),
                count);
    std::vector<double> result;
    for (const json& item : *value) result.push_back(number(item, key));
    return result;
  }

  void check_factor(double value, const char* key) const {
    DYDIT_CHECK(value >= kLeastFactor && value <= kLargestFactor,
                "{}: {} is {}; a number above 0 is wanted, from {} to {}", name_, key, value, kLeastFactor,
                kLargestFactor);
  }

  // A setting that the networks here have no choice of.
  void expect(const char* key, const json& wanted, const char* of = "the AutoencoderKL known here") {
    const json* value = find(key);
    DYDIT_CHECK(!value || *value == wanted, "{}: {} is {}, which {} does not have; expected {}", name_, key,
                value ? shown(*value) : "", of, shown(wanted, 80));
  }

  std::vector<std::string> unknown() const {
    std::vector<std::string> keys;
    for (const auto& [key, value] : config_.items()) {
      if (!known_.contains(key) && !key.starts_with("_")) keys.push_back(printable(key, 60));
    }
    return keys;
  }

  const std::string& name() const { return name_; }

 private:
  int size(const json& value, const char* key, int most) const {
    DYDIT_CHECK(value.is_number_integer() && value > 0 && value <= most,
                "{}: {} is {}; a whole number from 1 to {} is wanted", name_, key, shown(value), most);
    return value.get<int>();
  }
  double number(const json& value, const char* key) const {
    DYDIT_CHECK(value.is_number() && std::abs(value.get<double>()) <= kLargestFactor,
                "{}: {} is {}; a number is wanted, at most {}", name_, key, shown(value), kLargestFactor);
    return value.get<double>();
  }

  const json& config_;
  const std::string& name_;
  std::set<std::string, std::less<>> known_;
};

LatentScale read_scale(Keys& keys, int latent_channels) {
  LatentScale scale;
  scale.scaling = keys.factor("scaling_factor", kStableDiffusionScaling);
  scale.shift = keys.number("shift_factor", 0);
  scale.mean = keys.numbers("latents_mean", latent_channels);
  scale.std = keys.numbers("latents_std", latent_channels);
  DYDIT_CHECK(scale.mean.size() == scale.std.size(),
              "{}: of latents_mean and latents_std one alone is given; they belong together", keys.name());
  for (const double std : scale.std) keys.check_factor(std, "latents_std");
  DYDIT_CHECK(scale.mean.empty() || scale.shift == 0,
              "{}: has shift_factor and latents_mean; latents are shifted by one of them", keys.name());
  return scale;
}

AutoencoderConfig read_kl(Keys& keys) {
  AutoencoderConfig config;
  keys.expect("in_channels", kColours);
  keys.expect("out_channels", kColours);
  keys.expect("act_fn", "silu");
  config.channels = keys.sizes("block_out_channels", {64}, kMaxChannels);
  const size_t levels = config.channels.size();
  DYDIT_CHECK(levels <= static_cast<size_t>(kMaxVaeLevels),
              "{}: block_out_channels has {} levels; at most {} are known", keys.name(), levels,
              kMaxVaeLevels);
  keys.expect("down_block_types", std::vector<std::string>(levels, "DownEncoderBlock2D"));
  keys.expect("up_block_types", std::vector<std::string>(levels, "UpDecoderBlock2D"));
  config.layers = keys.size("layers_per_block", 1, kMaxLayers);
  config.latent_channels = keys.size("latent_channels", 4, kMaxChannels);
  config.norm_groups = keys.size("norm_num_groups", kDefaultNormGroups, kMaxChannels);
  for (const int channels : config.channels) {
    DYDIT_CHECK(channels % config.norm_groups == 0,
                "{}: norm_num_groups {} does not divide the {} channels of a level", keys.name(),
                config.norm_groups, channels);
  }
  config.quant_conv = keys.truth("use_quant_conv", true);
  config.post_quant_conv = keys.truth("use_post_quant_conv", true);
  config.mid_attention = keys.truth("mid_block_add_attention", true);
  const json* side = keys.find("sample_size");  // or height and width
  config.sample_size = side && side->is_array() ? keys.sizes("sample_size", {}, kMaxSide)[0]
                                                : keys.size("sample_size", 32, kMaxSide);
  keys.truth("force_upcast", true);  // float16 is not computed in
  config.scale = read_scale(keys, config.latent_channels);
  return config;
}

AutoencoderConfig read_tiny(Keys& keys) {
  AutoencoderConfig config = tiny_config(keys.size("latent_channels", 4, kMaxChannels), /*pool=*/false);
  const json widths = std::vector<int>(kTinyLevels, kTinyWidth);
  json down = std::vector<int>(kTinyLevels, kTinyLayers), up = down;
  down.front() = up.back() = 1;
  for (const auto& [key, value] : {std::pair<const char*, json>{"in_channels", kColours},
                                   {"out_channels", kColours},
                                   {"encoder_block_out_channels", widths},
                                   {"decoder_block_out_channels", widths},
                                   {"block_out_channels", widths},
                                   {"num_encoder_blocks", down},
                                   {"num_decoder_blocks", up},
                                   {"act_fn", "relu"},
                                   {"upsample_fn", "nearest"},
                                   {"upsampling_scaling_factor", 2},
                                   {"latent_magnitude", 3},
                                   {"latent_shift", 0.5},
                                   {"shift_factor", 0}})
    keys.expect(key, value, kTinyLayout);
  keys.truth("force_upcast", false);
  config.scale.scaling = keys.factor("scaling_factor", 1);
  return config;
}

}  // namespace

AutoencoderConfig tiny_config(int latent_channels, bool pool) {
  AutoencoderConfig config;
  config.kind = AutoencoderKind::Tiny;
  config.latent_channels = latent_channels;
  config.channels.assign(kTinyLevels, kTinyWidth);
  config.layers = kTinyLayers;
  config.norm_groups = kTinyGroups;
  config.quant_conv = config.post_quant_conv = config.mid_attention = false;
  config.pool = pool;
  return config;
}

AutoencoderConfig parse_autoencoder_config(std::string_view text, const std::string& name,
                                           std::vector<std::string>& notes) {
  DYDIT_CHECK(text.size() <= kMaxBytes, "{}: {} bytes; at most {} are read of a configuration", name,
              text.size(), kMaxBytes);
  const json config = read_json(text, kMaxDepth, name);
  DYDIT_CHECK(config.is_object(), "{}: is {}; an object is wanted, as diffusers writes it", name,
              shown(config));
  Keys keys(config, name);
  const json* kind = keys.find("_class_name");
  const bool kl = kind && *kind == "AutoencoderKL", tiny = kind && *kind == "AutoencoderTiny";
  DYDIT_CHECK(kl || tiny, "{}: is of {}; AutoencoderKL or AutoencoderTiny is wanted", name,
              kind ? shown(*kind) : "no class (_class_name)");
  const AutoencoderConfig result = kl ? read_kl(keys) : read_tiny(keys);
  if (const std::vector<std::string> unknown = keys.unknown(); !unknown.empty())
    notes.push_back(fmt::format("{}: passed over what is not known: {}", name, fmt::join(unknown, ", ")));
  return result;
}

json autoencoder_config_to_json(const AutoencoderConfig& config) {
  const LatentScale& scale = config.scale;
  json result = {{"in_channels", kColours},
                 {"out_channels", kColours},
                 {"latent_channels", config.latent_channels},
                 {"scaling_factor", scale.scaling}};
  if (config.kind == AutoencoderKind::Tiny) {
    result.update({{"_class_name", "AutoencoderTiny"},
                   {"encoder_block_out_channels", config.channels},
                   {"decoder_block_out_channels", config.channels},
                   {"act_fn", "relu"}});
    return result;
  }
  const size_t levels = config.channels.size();
  result.update({{"_class_name", "AutoencoderKL"},
                 {"block_out_channels", config.channels},
                 {"down_block_types", std::vector<std::string>(levels, "DownEncoderBlock2D")},
                 {"up_block_types", std::vector<std::string>(levels, "UpDecoderBlock2D")},
                 {"layers_per_block", config.layers},
                 {"act_fn", "silu"},
                 {"norm_num_groups", config.norm_groups},
                 {"sample_size", config.sample_size},
                 {"shift_factor", scale.shift},
                 {"latents_mean", scale.mean.empty() ? json() : json(scale.mean)},
                 {"latents_std", scale.std.empty() ? json() : json(scale.std)},
                 {"use_quant_conv", config.quant_conv},
                 {"use_post_quant_conv", config.post_quant_conv},
                 {"mid_block_add_attention", config.mid_attention}});
  return result;
}

}  // namespace dydit
