#include "dydit/pipeline/request.h"

#include <algorithm>
#include <cmath>

#include "dydit/base/error.h"
#include "dydit/diffusion/schedule.h"
#include "dydit/model/macs.h"

namespace dydit {

int Request::channels_guided(const DiTConfig& config) const {
  return std::min(guided_channels.value_or(config.guided_channels), config.in_channels);
}

Spacing run_spacing(const Request& request) {
  if (request.timesteps.empty()) return choose_timesteps(request.sampler.kind, request.num_steps);
  return {sorted_timesteps(request.timesteps), "by hand"};
}

void check_request(const DiTConfig& config, const Request& request) {
  DYDIT_USAGE_CHECK(!request.classes.empty(), "no class given; expected 0 to {}", config.num_classes - 1);
  for (const int label : request.classes) {
    DYDIT_USAGE_CHECK(label >= 0 && label < config.num_classes, "class {}: this model has classes 0 to {}",
                      label, config.num_classes - 1);
  }
  DYDIT_USAGE_CHECK(request.num_images >= 1, "{} images: expected 1 or more", request.num_images);
  DYDIT_USAGE_CHECK(request.sampler.eta >= 0 && request.sampler.eta <= 1, "eta {}: expected 0 to 1",
                    request.sampler.eta);
  DYDIT_USAGE_CHECK(std::isfinite(request.cfg_scale), "cfg scale {}: expected a number", request.cfg_scale);
  DYDIT_USAGE_CHECK(request.channels_guided(config) >= 1, "{} guided channels: expected 1 or more",
                    request.channels_guided(config));
}

void check_run(const Request& request, const SamplingOptions& run) {
  DYDIT_USAGE_CHECK(run.batch >= 1, "batch {}: expected 1 or more", run.batch);
  DYDIT_USAGE_CHECK(
      request.noise != NoiseKind::Torch || request.num_images <= run.batch,
      "--noise torch draws for one batch, as the original script does: {} images need --batch {}, "
      "got {}",
      request.num_images, request.num_images, run.batch);
  DYDIT_USAGE_CHECK(
      run.preview_every >= 0 && (run.preview_every == 0 || run.preview_every < request.total_steps()),
      "--preview-every {}: with {} steps expected 1 to {}", run.preview_every, request.total_steps(),
      request.total_steps() - 1);
  DYDIT_USAGE_CHECK(run.threads >= 1, "{} threads: expected 1 or more", run.threads);
}

int64_t static_macs_per_sample(const DiTConfig& config, const Request& request) {
  return static_macs(config) * request.total_steps() * (request.guided() ? 2 : 1);
}

}  // namespace dydit
