// Small autoencoders by recipe, and the files that hold them in any layout.
#pragma once

#include <filesystem>
#include <string>

#include <ATen/ATen.h>
#include <nlohmann/json.hpp>

#include "dydit/io/safetensors.h"
#include "dydit/model/recipe.h"
#include "dydit/vae/config.h"
#include "dydit/vae/layers.h"
#include "tests/support/archives.h"
#include "tests/support/files.h"

namespace dydit::test {

/// Two levels, an image's sides halved once; of few numbers.
inline AutoencoderConfig small_kl() {
  AutoencoderConfig config;
  config.channels = {8, 16};
  config.layers = 1;
  config.norm_groups = 4;
  config.sample_size = 16;
  config.scale.scaling = kStableDiffusionScaling;
  return config;
}

/// All tensors of both halves under our names, float32.
inline Weights recipe_weights(const AutoencoderConfig& config) {
  Weights weights;
  for (const VaeLayer& layer : autoencoder_layers(config)) {
    weights[layer.name + ".weight"] = recipe_tensor(layer.name + ".weight", layer.weight);
    if (layer.bias) weights[layer.name + ".bias"] = recipe_tensor(layer.name + ".bias", {layer.weight[0]});
  }
  return weights;
}

/// The weights as another program names them.
inline Weights respelled(const Weights& weights, VaeNames names, int levels, const std::string& prefix = "") {
  Weights result;
  for (const auto& [name, tensor] : weights) result[prefix + spelled(names, name, levels)] = tensor;
  return result;
}

/// One of TAESD's files: of positions alone.
inline Weights half_of_taesd(const Weights& weights, const std::string& half) {
  Weights result;
  for (const auto& [name, tensor] : weights) {
    if (name.starts_with(half + ".")) result[name.substr(half.size() + 1)] = tensor;
  }
  return result;
}

inline void save_weights(const std::filesystem::path& path, const Weights& weights) {
  TensorViews views;
  for (const auto& [name, tensor] : weights) views[name] = to_view(tensor);
  write_safetensors(path, views, {});
}

/// A folder as diffusers has it, with these changes to config.json.
inline void save_autoencoder(const std::filesystem::path& folder, const AutoencoderConfig& config,
                             const Weights& weights,
                             const nlohmann::json& changes = nlohmann::json::object()) {
  nlohmann::json described = autoencoder_config_to_json(config);
  described.update(changes);
  std::filesystem::create_directories(folder);
  write_file(folder / "config.json", described.dump());
  save_weights(folder / "diffusion_pytorch_model.safetensors", weights);
}

inline bool same_weights(const Weights& a, const Weights& b) {
  return a.size() == b.size() && std::all_of(a.begin(), a.end(), [&](const auto& entry) {
           const auto found = b.find(entry.first);
           return found != b.end() && found->second.sizes() == entry.second.sizes() &&
                  at::equal(found->second.to(at::kFloat), entry.second.to(at::kFloat));
         });
}

}  // namespace dydit::test
