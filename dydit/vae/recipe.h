// Autoencoders of published sizes whose weights are a function of their names: for tests and measurements.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "dydit/vae/autoencoder.h"

namespace dydit {

/// True for what begins with "recipe:".
bool is_recipe(std::string_view path);

/// Of "recipe:sd" (Stable Diffusion's size) or "recipe:taesd" (TAESD's for its latents); nothing for what
/// does not begin with "recipe:". Throws UsageError for another name.
std::optional<AutoencoderFile> autoencoder_by_recipe(const std::string& path);

}  // namespace dydit
