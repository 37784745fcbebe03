#include "inspect_autoencoder.h"

#include <ATen/core/Tensor.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "dydit/io/text.h"
#include "dydit/vae/layers.h"
#include "streams.h"
#include "vae_flags.h"

namespace dydit {
namespace {

using nlohmann::json;

constexpr int kSide = 256;  // of the image whose work is told

int64_t parameters_of(const AutoencoderFile& file, VaeHalf half) {
  int64_t count = 0;
  for (const auto& [name, tensor] : file.weights) {
    if (half_of(name) == half) count += tensor.numel();
  }
  return count;
}

json autoencoder_json(const AutoencoderFile& file) {
  const AutoencoderConfig& config = file.config;
  json result = {{"file", file.path.string()},
                 {"format", file.format},
                 {"sha256", file.sha256},
                 {"autoencoder", kAutoencoderNames[config.kind]},
                 {"config", autoencoder_config_to_json(config)},
                 {"latent_channels", config.latent_channels},
                 {"factor", config.factor()},
                 {"scaling_factor", config.scale.scaling},
                 {"shift_factor", config.scale.shift},
                 {"dtype", c10::toString(file.weights.begin()->second.scalar_type())}};
  if (file.has_encoder)
    result["encoder"] = {{"parameters", parameters_of(file, VaeHalf::Encoder)},
                         {"gmacs", static_cast<double>(encode_macs(config, kSide, kSide)) / 1e9}};
  const int side = kSide / config.factor();
  if (file.has_decoder)
    result["decoder"] = {{"parameters", parameters_of(file, VaeHalf::Decoder)},
                         {"gmacs", static_cast<double>(decode_macs(config, side, side)) / 1e9}};
  if (!file.notes.empty()) result["notes"] = file.notes;
  return result;
}

std::string scale_text(const LatentScale& scale) {
  if (!scale.mean.empty()) return fmt::format("x = (z - mean) {} / std, by channel", scale.scaling);
  if (scale.shift != 0) return fmt::format("x = (z - {}) {}", scale.shift, scale.scaling);
  return scale.scaling == 1 ? "x = z" : fmt::format("x = {} z", scale.scaling);
}

void print_half(const json& result, const char* half, const char* what) {
  if (!result.contains(half)) return print_out("{:<11} not in this file\n", half);
  print_out("{:<11} {:.2f} M parameters; {} {:.4g} GMACs for {}x{}\n", half,
            result[half]["parameters"].get<double>() / 1e6, what, result[half]["gmacs"].get<double>(), kSide,
            kSide);
}

void print_autoencoder(const json& result, const AutoencoderFile& file) {
  const AutoencoderConfig& config = file.config;
  print_out("{}: {}\n", file.path.string(), file.format);
  print_out("autoencoder {}{}\n", kAutoencoderNames[config.kind],
            config.kind == AutoencoderKind::Kl ? ""
            : config.pool                      ? ", with pooled blocks (taef2)"
                                               : "");
  print_out("latents     {} channels, 1/{} of an image's sides; to a model: {}\n", config.latent_channels,
            config.factor(), scale_text(config.scale));
  if (config.kind == AutoencoderKind::Kl)
    print_out("levels      {} channels, {} resnet{} each, {} groups{}\n", fmt::join(config.channels, ", "),
              config.layers, config.layers == 1 ? "" : "s", config.norm_groups,
              config.mid_attention ? "" : ", no attention");
  print_half(result, "encoder", "encodes with");
  print_half(result, "decoder", "decodes with");
  print_out("weights     {}\n", result["dtype"].get<std::string>());
  print_out("sha256      {}\n", file.sha256);
}

}  // namespace

void inspect_autoencoder(Cli& cli, const std::string& path, const std::string& config) {
  const AutoencoderFile file = load_vae(cli, path, {.config = config});
  const json result = autoencoder_json(file);
  file.check_unchanged();
  cli.print(result, [&] { print_autoencoder(result, file); });
}

}  // namespace dydit
