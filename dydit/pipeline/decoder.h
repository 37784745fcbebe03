// Latents of a model become pixels: an autoencoder, and what lies between its latents and the model's.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "dydit/data/latent_scale.h"
#include "dydit/model/checkpoint.h"
#include "dydit/pipeline/generate.h"
#include "dydit/vae/autoencoder.h"
#include "dydit/vae/tiling.h"

namespace dydit {

/// What is known of how latents were made: notes of a checkpoint, or of a file of latents.
struct LatentOrigin {
  std::string vae_sha256;            // empty: unknown
  std::optional<LatentScale> scale;  // unset: the autoencoder's own
};
LatentOrigin latent_origin(const std::map<std::string, std::string>& notes, int channels,
                           const std::string& where);

/// The autoencoder beside a DiT in a pipeline's folder of diffusers (or beside its transformer); empty: none.
std::filesystem::path own_autoencoder(const std::filesystem::path& model);

class LatentDecoder {
 public:
  /// `channels` are the model's. Throws UsageError for an autoencoder of others.
  LatentDecoder(const AutoencoderFile& file, const LatentOrigin& origin, int channels,
                const AutoencoderOptions& options, VaeTiling tiling = VaeTiling::None);

  /// Lines to tell: another autoencoder than the model was trained with.
  const std::vector<std::string>& notes() const { return notes_; }
  int factor() const { return autoencoder_->config().factor(); }
  /// Latents (C, h, w) of the model -> pixels (3, factor h, factor w) in about [-1, 1]. `name` is used in
  /// messages.
  at::Tensor decode(const at::Tensor& latent, const std::string& name) const;
  /// Gives the sample its pixels and the seconds that they took.
  void decode(GeneratedSample& sample) const;
  /// Of a preview: NaN and infinity become 0, for a broken run ends with an error of its own.
  Preview decode(const Preview& preview) const;
  /// file, sha256, kind, dtype, tiling where there is one, scale, and what an image of a latent (height,
  /// width) costs: gmacs.
  nlohmann::json record(int height, int width) const;
  /// Throws Error where decoding such a latent cannot fit into memory.
  void check_memory(int height, int width) const;

 private:
  const std::string file_, sha256_;
  const at::ScalarType dtype_;
  const VaeTiling tiling_;
  LatentScale scale_;
  std::vector<std::string> notes_;
  std::unique_ptr<const Autoencoder> autoencoder_;
};

}  // namespace dydit
