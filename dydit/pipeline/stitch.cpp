#include "dydit/pipeline/stitch.h"

#include "dydit/base/error.h"
#include "dydit/io/text.h"

namespace dydit {

bool Stitch::takes(const Objective& objective, double timestep) const {
  constexpr double kRounding = 1e-9;  // 1 - .7 in double is above .3
  return noise_share(objective, timestep) >= 1 - ratio - kRounding;
}

Mode Stitch::mode(const DiTConfig& large, const Request& request) const {
  if (!small->config.is_dynamic()) return Mode::Static;
  return large.is_dynamic() ? request.mode : Mode::Dynamic;
}

void check_stitch(const Checkpoint& large, const Stitch& stitch) {
  const Checkpoint& small = *stitch.small;
  const DiTConfig &a = large.config, &b = small.config;
  const std::string name = small.path.string();
  DYDIT_USAGE_CHECK(stitch.ratio > 0 && stitch.ratio < 1,
                    "stitch ratio {}: expected a share of the noise above 0 and below 1", stitch.ratio);
  const auto agree = [&](const char* what, const auto& of_small, const auto& of_large) {
    DYDIT_USAGE_CHECK(of_small == of_large, "{}: {} {}, but {} has {}; two models on one path must agree",
                      name, what, of_small, large.path.string(), of_large);
  };
  agree("image side", b.input_size, a.input_size);
  agree("channels", b.in_channels, a.in_channels);
  agree("classes", b.num_classes, a.num_classes);
  agree("null class", b.can_guide(), a.can_guide());
  agree("what it predicts:", objective_text(b.objective), objective_text(a.objective));
  agree("learned sigma", b.learn_sigma && !b.drops_variance, a.learn_sigma && !a.drops_variance);
  agree("output channels", b.out_channels(), a.out_channels());
  agree("guided channels", b.guided_channels, a.guided_channels);
  for (const Checkpoint* one : {&large, &small})
    DYDIT_USAGE_CHECK(!one->few_step, "{}: is distilled to few steps, which no other model can share",
                      one->path.string());
  DYDIT_USAGE_CHECK(large.quantization.has_value() == small.quantization.has_value(),
                    "{}: {} quantised; two models on one path are computed alike", name,
                    small.quantization ? "is" : "is not");
}

StitchedPlan stitched_plan(const Stitch& stitch, RunPlan large, const RunPlan& small) {
  DYDIT_USAGE_CHECK(
      large.slots == 0 && large.guide_slots == 0,
      "plan {}: keeps features or guidance from step to step, which another model's steps cannot "
      "take up; leave out --stitch or the cache",
      quote(large.name));
  for (const StepPlan& step : large.steps)
    DYDIT_USAGE_CHECK(
        step.level == 0 && step.guide.kind != GuideKind::Weak,
        "plan {}: has larger patches at t = {}; the noisy steps are the small model's, leave one of "
        "the two out",
        quote(large.name), step.timestep);
  StitchedPlan stitched{std::move(large), {}};
  for (size_t i = 0; i < stitched.plan.steps.size(); ++i) {
    StepPlan& step = stitched.plan.steps[i];
    stitched.small.push_back(stitch.takes(stitched.plan.config.objective, step.timestep));
    if (!stitched.small.back()) continue;
    StepPlan other = small.steps[i];
    other.index = step.index;
    other.guide = step.guide;
    step = std::move(other);
  }
  return stitched;
}

StitchedPlan stitched_plan(const Checkpoint& large, const Stitch& stitch, const Request& request) {
  const std::vector<double> timesteps = run_spacing(request, large.config.objective).timesteps;
  return stitched_plan(stitch, complete_plan(request, make_width_plan(large, timesteps, request.mode)),
                       make_width_plan(*stitch.small, timesteps, stitch.mode(large.config, request)));
}

StitchedMacs stitched_macs(const StitchedPlan& stitched, const DiTConfig& small, bool guided) {
  StitchedMacs macs;
  for (size_t i = 0; i < stitched.plan.steps.size(); ++i) {
    const bool by_small = stitched.small[i] != 0;
    (by_small ? macs.small : macs.large) +=
        required_macs(by_small ? small : stitched.plan.config, stitched.plan.steps[i]) *
        stitched.plan.rows(i, guided);
  }
  return macs;
}

}  // namespace dydit
