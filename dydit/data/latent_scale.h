// The step between an autoencoder's latents and the numbers that a model sees.
#pragma once

#include <span>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>
#include <nlohmann/json_fwd.hpp>

namespace dydit {

/// What a model sees of an autoencoder's latent z: x = (z - shift) scaling, or with `mean` and `std`, one
/// value a channel, x = (z - mean) scaling / std.
struct LatentScale {
  double scaling = 1, shift = 0;
  std::vector<double> mean = {}, std = {};  // both empty or of latent_channels values

  /// (..., C, h, w) float32 -> the same shape, new memory.
  at::Tensor to_model(const at::Tensor& z) const;
  at::Tensor to_autoencoder(const at::Tensor& x) const;
  /// One latent of so many channels, in place.
  void to_model(std::span<float> z, int channels) const;
};

/// Notes of a checkpoint that was trained on latents: the autoencoder's SHA-256 and kind, and LatentScale as
/// JSON.
inline constexpr const char* kVaeNote = "vae_sha256";
inline constexpr const char* kVaeKindNote = "vae_kind";
inline constexpr const char* kLatentScaleNote = "latent_scale";

/// {"scaling", "shift"} and, where there are some, {"mean", "std"}, one value a channel. The second throws
/// Error that names `where` for anything else.
nlohmann::json scale_to_json(const LatentScale& scale);
LatentScale scale_from_json(const nlohmann::json& value, int channels, const std::string& where);

}  // namespace dydit
