// Recorded encodes and decodes of an autoencoder. Mean and logvar are compared apart: logvar's largest values
// would hide the mean's errors. What is a formula of recorded moments is computed from those, since exp would
// enlarge rounding.
#include <algorithm>
#include <initializer_list>

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <fmt/ranges.h>

#include "dydit/base/error.h"
#include "dydit/vae/autoencoder.h"
#include "dydit/vae/tiling.h"
#include "verify.h"

namespace dydit {
namespace {

constexpr double kBf16Rms = 1.5e-2;         // of a bf16 result, norm-wise: about 1 %, small maps scatter
constexpr double kRoundedOtherwise = 5e-3;  // share of bytes that lie so close to a tie that they may differ
constexpr double kBf16Levels = 6;           // of 255
constexpr double kPsnrTolerance = 1e-3, kBf16PsnrTolerance = 0.5;  // dB
const std::string kStage = "stage.";

bool has_any(const Reference& reference, std::initializer_list<const char*> names) {
  return std::any_of(names.begin(), names.end(), [&](const char* name) { return reference.has(name); });
}
bool records_tiny(const Reference& reference) { return reference.has("image") && reference.has("latents"); }
bool records_encodes(const Reference& reference) {
  return has_any(reference, {"x", "x_odd", "x_tiled", "stage.x", "image"});
}
bool records_decodes(const Reference& reference) {
  return has_any(reference, {"z", "z_odd", "z_tiled", "stage.z", "latents"});
}

class Recorded {
 public:
  Recorded(const AutoencoderFile& file, const Reference& reference, at::ScalarType dtype, int threads,
           VerifyReport& report)
      : file_(file), reference_(reference), exact_(dtype == at::kFloat), report_(report) {
    AutoencoderOptions options;
    options.dtype = dtype;
    options.threads = threads;
    options.encoder = packs("encoder", file.has_encoder, records_encodes(reference));
    options.decoder = packs("decoder", file.has_decoder, records_decodes(reference));
    if (has("stage.x") || has("stage.z"))
      options.stages = [this](const std::string& name, const at::Tensor& value) {
        if (watched_) stages_[name] = value.clone();
      };
    autoencoder_ = make_autoencoder(file, options);
  }

  void verify_kl() {
    if (has("x")) compare_moments("", autoencoder_->moments(input("x", 3)), "moments");
    if (has("moments") && has("mean")) verify_posterior();
    if (has("z_scaled")) {
      compare("z", file_.config.scale.to_autoencoder(latent("z_scaled")), "z");
    }
    if (has("z")) {
      const at::Tensor decoded = autoencoder_->decode(latent("z"));
      compare("decoded", decoded, "decoded");
      if (has("pixels")) compare_bytes("pixels", (decoded * 127.5 + 128).clamp(0, 255).floor());
    }
    if (has("x_odd")) compare_moments("_odd", autoencoder_->moments(input("x_odd", 3)), "moments_odd");
    if (has("z_odd")) compare("decoded_odd", autoencoder_->decode(latent("z_odd")), "decoded_odd");
    for (const auto& [tiling, name] :
         {std::pair{VaeTiling::None, "untiled"}, {VaeTiling::Diffusers, "tiled"}}) {
      const std::string recorded = std::string(name) + "_";
      if (has("x_tiled"))
        compare_moments("_" + std::string(name), moments(*autoencoder_, input("x_tiled", 3), tiling),
                        recorded + "moments");
      if (has("z_tiled"))
        compare(recorded + "decoded", decode(*autoencoder_, latent("z_tiled"), tiling), recorded + "decoded");
    }
    if (has("stage.x") || has("stage.z")) verify_stages();
  }

  // Bytes in; recorded in the network's own range [0, 1].
  void verify_tiny() {
    const at::Tensor image = input("image", 3);
    if (file_.has_encoder) {
      compare("latents", autoencoder_->moments(image / 127.5 - 1), "latents");
      if (has("image_odd"))
        compare("latents_odd", autoencoder_->moments(input("image_odd", 3) / 127.5 - 1), "latents_odd");
    }
    if (!file_.has_decoder) return;
    const at::Tensor decoded = autoencoder_->decode(latent("latents")) / 2 + 0.5;
    if (has("decoded")) compare("decoded", decoded.slice(0, 0, reference_.at("decoded").size(0)), "decoded");
    const at::Tensor bytes = (decoded.clamp(0, 1) * 255).round();
    if (has("decoded_u8")) compare_bytes("decoded_u8", bytes);
    if (has("psnr")) compare_psnr(decoded.clamp(0, 1), image / 255);
  }

 private:
  bool has(const std::string& name) const { return reference_.has(name); }

  // Half a tiny autoencoder replays its half of what is recorded.
  bool packs(const char* half, bool present, bool recorded) const {
    DYDIT_CHECK(present || !recorded || file_.config.kind == AutoencoderKind::Tiny,
                "{}: holds no {}, whose results {} records", file_.path.string(), half, reference_.path());
    return present && recorded;
  }

  at::Tensor input(const std::string& name, int channels) const {
    const at::Tensor x = reference_.at(name).to(at::kFloat).contiguous();
    DYDIT_CHECK(x.dim() == 4 && x.size(0) > 0 && x.size(1) == channels,
                "{}: {} has shape ({}), this autoencoder takes (rows, {}, height, width). Do they belong "
                "together?",
                reference_.path(), name, fmt::join(x.sizes(), ", "), channels);
    return x;
  }
  at::Tensor latent(const std::string& name) const { return input(name, file_.config.latent_channels); }

  void compare(const std::string& name, const at::Tensor& got, const at::Tensor& want) {
    report_.compare(name, got, want, exact_ ? kForwardTolerance : kBf16Tolerance);
    if (exact_) return;
    const at::Tensor difference = got.to(at::kDouble) - want.to(at::kDouble);
    report_.error(name + " (rms)", (difference.norm() / want.to(at::kDouble).norm()).item<double>(),
                  kBf16Rms);
  }
  void compare(const std::string& name, const at::Tensor& got, const std::string& recorded) {
    compare(name, got, reference_.at(recorded));
  }

  void compare_moments(const std::string& suffix, const at::Tensor& got, const std::string& recorded) {
    const at::Tensor want = reference_.at(recorded);
    DYDIT_CHECK(got.sizes() == want.sizes(),
                "reference tensor {} has shape ({}), this autoencoder makes ({})", recorded,
                fmt::join(want.sizes(), ", "), fmt::join(got.sizes(), ", "));
    const auto ours = got.chunk(2, 1), theirs = want.chunk(2, 1);
    compare("mean" + suffix, ours[0], theirs[0]);
    compare("logvar" + suffix, ours[1], theirs[1]);
  }

  void verify_posterior() {
    const Posterior posterior = posterior_of(reference_.at("moments").to(at::kFloat), file_.config.kind);
    const at::Tensor std = (posterior.logvar / 2).exp();
    const auto formula = [&](const std::string& name, const at::Tensor& got) {
      if (has(name)) report_.compare(name + " of moments", got, reference_.at(name), kForwardTolerance);
    };
    formula("mean", posterior.mean);
    formula("logvar", posterior.logvar);
    formula("std", std);
    if (has("noise")) formula("sample", posterior.mean + std * reference_.at("noise"));
    formula("scaled_mode", file_.config.scale.to_model(posterior.mean));
  }

  // Rounding at a tie may go the other way.
  void compare_bytes(const std::string& name, const at::Tensor& got) {
    const at::Tensor difference = (got - reference_.at(name).to(at::kFloat)).abs();
    report_.error(name + " (levels)", difference.max().item<double>(), exact_ ? 1 : kBf16Levels);
    if (exact_)
      report_.count(name, difference.count_nonzero().item<int64_t>(), difference.numel(), kRoundedOtherwise);
  }

  void compare_psnr(const at::Tensor& decoded, const at::Tensor& image) {
    const at::Tensor mse = (decoded - image).to(at::kDouble).square().mean({1, 2, 3});
    const at::Tensor difference = -10 * mse.log10() - reference_.at("psnr").to(at::kDouble);
    report_.error("psnr (dB)", difference.abs().max().item<double>(),
                  exact_ ? kPsnrTolerance : kBf16PsnrTolerance);
  }

  void verify_stages() {
    watched_ = true;
    if (has("stage.x")) {
      const at::Tensor moments = autoencoder_->moments(input("stage.x", 3));
      compare_moments("_stage", moments, "stage.moments");
    }
    if (has("stage.z")) compare("stage.decoded", autoencoder_->decode(latent("stage.z")), "stage.decoded");
    watched_ = false;
    std::vector<std::string> untold;
    for (const std::string& name : reference_.names()) {
      if (!name.starts_with("stage.enc.") && !name.starts_with("stage.dec.")) continue;
      const auto told = stages_.find(name.substr(kStage.size()));
      if (told == stages_.end()) {
        untold.push_back(name);
      } else {
        compare(name, told->second, name);
      }
    }
    if (!untold.empty())
      report_.note(fmt::format("computed in one with the next stage: {}", fmt::join(untold, ", ")));
  }

  const AutoencoderFile& file_;
  const Reference& reference_;
  const bool exact_;
  VerifyReport& report_;
  std::unique_ptr<const Autoencoder> autoencoder_;
  bool watched_ = false;
  Weights stages_;
};

}  // namespace

void verify_autoencoder(const AutoencoderFile& file, const Reference& reference, at::ScalarType dtype,
                        int threads, VerifyReport& report) {
  const c10::InferenceMode inference;
  const bool tiny = records_tiny(reference);
  DYDIT_CHECK(records_encodes(reference) || records_decodes(reference),
              "{}: holds nothing of an autoencoder that verify can replay; expected x and moments or z and "
              "decoded (AutoencoderKL), or image and latents (TAESD's)",
              reference.path());
  DYDIT_CHECK(tiny == (file.config.kind == AutoencoderKind::Tiny),
              "{}: records {}, but {} is {}. Do they belong together?", reference.path(),
              tiny ? "a tiny autoencoder" : "an AutoencoderKL", file.path.string(),
              kAutoencoderNames[file.config.kind]);
  Recorded recorded(file, reference, dtype, threads, report);
  if (tiny) {
    recorded.verify_tiny();
  } else {
    recorded.verify_kl();
  }
}

}  // namespace dydit
