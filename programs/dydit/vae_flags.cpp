#include "vae_flags.h"

#include <nlohmann/json.hpp>

#include "dydit/base/dtype.h"
#include "dydit/io/text.h"

namespace dydit {

void add_vae_config(Cli& cli, std::string& config) {
  cli.add_text("--vae-config", config, "config.json of an autoencoder whose file comes without one");
}

AutoencoderFile load_vae(Cli& cli, const std::filesystem::path& path, const AutoencoderReadOptions& options) {
  AutoencoderFile file = load_autoencoder(path, options);
  for (const std::string& note : file.notes) cli.console.info(fmt::format("{}: {}", path.string(), note));
  return file;
}

CLI::Option* VaeFlags::add(Cli& cli, const std::string& help) {
  CLI::Option* option = cli.add_text("--vae", path, help);
  add_vae_config(cli, config);
  cli.add_choice("--vae-dtype", dtype, kDtypeNames.names(),
                 "The autoencoder's arithmetic; bf16 is off by a level or so, and faster on some processors");
  cli.add_choice(
      "--vae-tiling", tiling, kVaeTilingNames.names(),
      "Large images in tiles: diffusers, as it does it, seams included, to reproduce its pictures; "
      "approximate, for images that do not fit into memory");
  return option;
}

std::optional<AutoencoderFile> VaeFlags::load(Cli& cli, const std::filesystem::path& otherwise) const {
  cli.needs("--vae-config", !path.empty(), "--vae");
  const std::filesystem::path chosen = path.empty() ? otherwise : std::filesystem::path(path);
  for (const char* flag : {"--vae-dtype", "--vae-tiling"})
    cli.needs(flag, !chosen.empty(), "an autoencoder: --vae");
  if (chosen.empty()) return std::nullopt;
  return load_vae(cli, chosen, {.config = config});
}

at::ScalarType VaeFlags::resolve_dtype() const { return kDtypeNames.at(dtype); }

LatentDecoder VaeFlags::decoder(Cli& cli, const AutoencoderFile& file, const LatentOrigin& origin,
                                int channels, int height, int width, int threads) const {
  AutoencoderOptions options{.dtype = resolve_dtype(), .threads = threads};
  if (where.device.is_cuda()) options.device = where.device;
  options.batch_invariant = where.batch_invariant;
  LatentDecoder decoder(file, origin, channels, options, resolve_tiling());
  for (const std::string& note : decoder.notes()) cli.console.info(note);
  decoder.check_memory(height, width);
  return decoder;
}

void VaeFlags::say(nlohmann::json& record) const {
  if (path.empty()) record["own"] = true;  // of the model's folder
  if (!config.empty()) record["config"] = printable(config, std::string::npos);
}

}  // namespace dydit
