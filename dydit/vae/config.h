// What diffusers' config.json says of an autoencoder.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "dydit/vae/autoencoder.h"

namespace dydit {

/// Of class AutoencoderKL or AutoencoderTiny (of TAESD's layout), with diffusers' defaults for missing keys;
/// unknown keys are told in `notes`. Throws Error (names `name`): no JSON, more than 1 MiB, another class, a
/// setting or number that none of ours has.
AutoencoderConfig parse_autoencoder_config(std::string_view text, const std::string& name,
                                           std::vector<std::string>& notes);

/// Of TAESD's files.
AutoencoderConfig tiny_config(int latent_channels, bool pool);

inline constexpr double kStableDiffusionScaling = 0.18215;  // diffusers' default, too
inline constexpr int kDefaultNormGroups = 32;
inline constexpr int kMaxVaeLevels = 6;

}  // namespace dydit
