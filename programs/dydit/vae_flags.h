// Flags of every verb that goes between latents and pixels.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "cli.h"
#include "dydit/pipeline/decoder.h"
#include "dydit/vae/autoencoder.h"
#include "dydit/vae/tiling.h"

namespace dydit {

/// --vae-config.
void add_vae_config(Cli& cli, std::string& config);

/// Loads it, with the configuration where one is given, and notes what was assumed or passed over on reading.
AutoencoderFile load_vae(Cli& cli, const std::filesystem::path& path, const AutoencoderReadOptions& options);

struct VaeFlags {
  std::string path, config, dtype = "f32", tiling = "none";
  DeviceOptions where = {};  // that decodes

  /// --vae, --vae-config, --vae-dtype and --vae-tiling; `help` says what --vae is for.
  CLI::Option* add(Cli& cli, const std::string& help);
  /// Reads --vae, or else `otherwise`; nothing where neither is given. Tells the notes of what was read.
  /// Flags that need an autoencoder are refused without one.
  std::optional<AutoencoderFile> load(Cli& cli, const std::filesystem::path& otherwise = {}) const;
  at::ScalarType resolve_dtype() const;
  VaeTiling resolve_tiling() const { return kVaeTilingNames.at(tiling); }
  /// A decoder of latents (channels, height, width). Tells what it remarks, and refuses what cannot fit into
  /// memory.
  LatentDecoder decoder(Cli& cli, const AutoencoderFile& file, const LatentOrigin& origin, int channels,
                        int height, int width, int threads) const;
  /// Adds to the record of a decoder what a command needs that does the same again.
  void say(nlohmann::json& record) const;
};

}  // namespace dydit
