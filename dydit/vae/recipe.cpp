#include "dydit/vae/recipe.h"

#include <ATen/ATen.h>

#include "dydit/base/error.h"
#include "dydit/io/bytes.h"
#include "dydit/io/file.h"
#include "dydit/io/text.h"
#include "dydit/model/recipe.h"
#include "dydit/vae/config.h"
#include "dydit/vae/layers.h"

namespace dydit {
namespace {

constexpr std::string_view kPrefix = "recipe:";

AutoencoderConfig config_of(std::string_view size) {
  AutoencoderConfig config;  // of Stable Diffusion
  config.scale.scaling = kStableDiffusionScaling;
  if (size == "taesd") config = tiny_config(config.latent_channels, /*pool=*/false);
  return config;
}

}  // namespace

bool is_recipe(std::string_view path) { return path.starts_with(kPrefix); }

std::optional<AutoencoderFile> autoencoder_by_recipe(const std::string& path) {
  if (!is_recipe(path)) return std::nullopt;
  const std::string_view size = std::string_view(path).substr(kPrefix.size());
  DYDIT_USAGE_CHECK(size == "sd" || size == "taesd", "{}: sizes that have a recipe are sd and taesd",
                    printable(path, 60));
  AutoencoderFile file;
  file.path = path;
  file.format = "weights by recipe";
  file.config = config_of(size);
  file.has_encoder = file.has_decoder = true;
  file.sha256 = sha256_hex(bytes_of(path));
  for (const VaeLayer& layer : autoencoder_layers(file.config)) {
    for (const auto& [part, shape] : {std::pair{".weight", layer.weight}, {".bias", {layer.weight[0]}}}) {
      const std::string name = layer.name + part;
      if (layer.bias || name.ends_with("weight")) file.weights.emplace(name, recipe_tensor(name, shape));
    }
  }
  return file;
}

}  // namespace dydit
