// See the header.
#include "dydit/pipeline/decoder.h"

#include <ATen/ops/nan_to_num.h>
#include <ATen/ops/stack.h>
#include <c10/core/InferenceMode.h>
#include <nlohmann/json.hpp>

#include "dydit/base/dtype.h"
#include "dydit/base/error.h"
#include "dydit/base/machine.h"
#include "dydit/base/timer.h"
#include "dydit/io/json.h"
#include "dydit/io/text.h"
#include "dydit/io/weight_folder.h"

namespace dydit {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr int kShaShown = 10;

}  // namespace

LatentOrigin latent_origin(const std::map<std::string, std::string>& notes, int channels,
                           const std::string& where) {
  LatentOrigin origin;
  if (const auto found = notes.find(kVaeNote); found != notes.end()) origin.vae_sha256 = found->second;
  if (const auto found = notes.find(kLatentScaleNote); found != notes.end()) {
    const std::string name = where + ": " + kLatentScaleNote;
    const std::optional<json> value = parse_json(found->second, /*max_depth=*/2);
    DYDIT_CHECK(value, "{}: is no JSON: {}", name, quote(found->second));
    origin.scale = scale_from_json(*value, channels, name);
  }
  return origin;
}

fs::path own_autoencoder(const fs::path& model) {
  std::error_code unreadable;
  if (!fs::is_directory(model, unreadable)) return {};
  std::vector<std::string> ignored;  // told when the model was read
  const fs::path folder = resolve_hub_cache(model, ignored);
  for (const fs::path& pipeline : {folder, folder / ".."}) {
    if (is_there(pipeline / kDiffusersPipeline) && is_there(pipeline / "vae" / kDiffusersFiles[0]))
      return (pipeline / "vae").lexically_normal();
  }
  return {};
}

LatentDecoder::LatentDecoder(const AutoencoderFile& file, const LatentOrigin& origin, int channels,
                             const AutoencoderOptions& options, VaeTiling tiling)
    : file_(file.path.lexically_normal().string()),
      sha256_(file.sha256),
      dtype_(options.dtype),
      tiling_(tiling),
      scale_(file.config.scale) {
  DYDIT_USAGE_CHECK(
      file.config.latent_channels == channels,
      "{}: is an autoencoder of {} latent channels, the latents have {}; give the one that the model was "
      "trained with",
      file_, file.config.latent_channels, channels);
  const bool other = !origin.vae_sha256.empty() && origin.vae_sha256 != file.sha256;
  if (other)
    notes_.push_back(fmt::format("{}: SHA-256 {:.{}}; the model was trained with the autoencoder of {:.{}}",
                                 file_, sha256_, kShaShown, origin.vae_sha256, kShaShown));
  // A tiny autoencoder of another's latents speaks what the model speaks.
  if (origin.scale && !(other && file.config.kind == AutoencoderKind::Tiny)) scale_ = *origin.scale;
  autoencoder_ = make_autoencoder(file, options);
  file.check_unchanged();
}

at::Tensor LatentDecoder::decode(const at::Tensor& latent, const std::string& name) const {
  const c10::InferenceMode guard;
  try {
    return dydit::decode(*autoencoder_, scale_.to_autoencoder(latent.unsqueeze(0)), tiling_)[0];
  } catch (const Error& error) {
    throw Error(fmt::format("{}: {}", name, error.what()));
  }
}

void LatentDecoder::decode(GeneratedSample& sample) const {
  const Timer timer;
  sample.pixels = decode(sample.sample, fmt::format("image {}", sample.index));
  sample.decode_seconds = timer.seconds();
}

Preview LatentDecoder::decode(const Preview& preview) const {
  std::vector<at::Tensor> images;
  for (const at::Tensor& x0 : at::nan_to_num(preview.x0).unbind(0))
    images.push_back(decode(x0, fmt::format("preview of step {}", preview.step)));
  return {preview.first, preview.step, at::stack(images), preview.stride};
}

json LatentDecoder::record(int height, int width) const {
  json result = {{"file", printable(file_, std::string::npos)},
                 {"sha256", sha256_},
                 {"kind", kAutoencoderNames[autoencoder_->config().kind]},
                 {"dtype", kDtypeNames[dtype_]},
                 {"scale", scale_to_json(scale_)},
                 {"gmacs", static_cast<double>(autoencoder_->decode_macs(height, width)) / 1e9}};
  if (tiling_ != VaeTiling::None) result["tiling"] = kVaeTilingNames[tiling_];
  return result;
}

void LatentDecoder::check_memory(int height, int width) const {
  dydit::check_memory(autoencoder_->decode_bytes(height, width),
                      fmt::format("decoding an image of {}x{}", width * factor(), height * factor()),
                      "take a smaller image");
}

}  // namespace dydit
