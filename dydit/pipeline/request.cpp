#include "dydit/pipeline/request.h"

#include <algorithm>
#include <cmath>

#include "dydit/base/error.h"
#include "dydit/base/machine.h"
#include "dydit/diffusion/lcm.h"
#include "dydit/diffusion/schedule.h"
#include "dydit/engine/engine.h"
#include "dydit/io/text.h"
#include "dydit/model/macs.h"

namespace dydit {

int Request::channels_guided(const DiTConfig& config) const {
  return std::min(guided_channels.value_or(config.guided_channels), config.in_channels);
}

int Request::total_steps() const {
  if (plan) return static_cast<int>(plan->steps.size());
  return timesteps.empty() ? evaluations(sampler, num_steps) : static_cast<int>(timesteps.size());
}

Spacing run_spacing(const Request& request, const Objective& objective) {
  // Of a plan the number of steps follows from what it evaluates; that it fits, its solver says.
  if (request.plan && objective.continuous()) return {request.plan->timesteps(), "the plan's"};
  const int steps = request.plan ? request.total_steps() : request.num_steps;
  Spacing spacing = request.timesteps.empty()
                        ? choose_timesteps(objective, request.sampler, steps)
                        : Spacing{sorted_timesteps(request.timesteps, objective), "by hand"};
  if (!request.plan || request.plan->timesteps() == spacing.timesteps) return spacing;
  return {request.plan->timesteps(), "the plan's"};
}

void plan_by_policy(const PlanPolicy& policy, const DiTConfig& config, Request& request) {
  request.plan.reset();
  if (policy.is_default()) return;
  request.plan = policy_plan(policy.cache, config, run_spacing(request, config.objective).timesteps);
  apply_levels(policy.levels, config, *request.plan);
  if (request.guided()) apply_guide(policy.guide, config, request.cfg_scale, *request.plan);
}

RunPlan complete_plan(const Request& request, RunPlan widths) {
  if (request.plan) apply_spec(*request.plan, request.guided(), widths);
  return widths;
}

namespace {

// Whether the run is one that the plan is for.
void check_plan(const DiTConfig& config, const Request& request, const PlanSpec& plan) {
  check_spec(plan, config, request.guided(), plan.name);
  const auto check = [&](const char* what, const auto& wanted, const auto& got) {
    DYDIT_USAGE_CHECK(!wanted || *wanted == got, "plan {} is for {} {}, this run has {}", quote(plan.name),
                      what, *wanted, got);
  };
  check("sampler", plan.sampler, kSamplerNames[request.sampler.kind]);
  check("eta", plan.eta, request.sampler.eta);
  check("guidance scale", plan.cfg_scale, request.cfg_scale);
  check("mode", plan.mode, kModeNames[request.mode]);
  DYDIT_USAGE_CHECK(
      request.mode == Mode::Dynamic || !plan.for_dynamic(),
      "plan {} says which heads, groups or tokens are on, this run is static: leave them out, or take "
      "--mode dynamic with a model that has routers",
      quote(plan.name));
}

}  // namespace

void take_few_step(const std::optional<FewStep>& few_step, const Unsaid& unsaid, Request& request) {
  if (!few_step) return;
  if (unsaid.sampler) request.sampler.kind = SamplerKind::Lcm;
  if (unsaid.cfg_scale) request.cfg_scale = 1;
  if (unsaid.steps) request.num_steps = kLcmSteps;
}

void check_few_step(const std::optional<FewStep>& few_step, const Objective& objective,
                    const Request& request) {
  const bool lcm = request.sampler.kind == SamplerKind::Lcm;
  if (!few_step) {
    DYDIT_USAGE_CHECK(!lcm,
                      "sampler lcm: is for models that were distilled to few steps, as --distill lcm does "
                      "in training; this one was not, take ddim");
    return;
  }
  DYDIT_USAGE_CHECK(
      lcm, "sampler {}: this model is distilled to few steps and knows nothing between them; take lcm",
      kSamplerNames[request.sampler.kind]);
  DYDIT_USAGE_CHECK(request.cfg_scale == 1,
                    "guidance scale {}: this model is distilled with guidance {}, which its one row has "
                    "learned; take 1",
                    request.cfg_scale, few_step->guidance);
  const std::vector<int>& known = few_step->timesteps;
  for (const double t : run_spacing(request, objective).timesteps)
    DYDIT_USAGE_CHECK(
        std::find(known.begin(), known.end(), t) != known.end(),
        "timestep {}: this model is distilled to few steps and knows {} timesteps, {} to {}, alone", t,
        known.size(), known.front(), known.back());
}

std::vector<std::string> samplers_of(const std::optional<FewStep>& few_step, const Objective& objective) {
  if (few_step) return {std::string(kSamplerNames[SamplerKind::Lcm])};
  return samplers_of(objective);
}

void check_request(const DiTConfig& config, const Request& request) {
  DYDIT_USAGE_CHECK(!request.classes.empty(), "no class given; expected 0 to {}",
                    std::max(config.num_classes - 1, 0));
  for (const int label : request.classes) {
    DYDIT_USAGE_CHECK(config.num_classes > 0 || label == 0,
                      "class {}: this model has no classes; leave the class out, or take 0", label);
    DYDIT_USAGE_CHECK(label >= 0 && label < std::max(config.num_classes, 1),
                      "class {}: this model has classes 0 to {}", label, config.num_classes - 1);
  }
  DYDIT_USAGE_CHECK(!request.guided() || config.can_guide(),
                    "guidance scale {}: this model has no null class to be guided away from; take 1",
                    request.cfg_scale);
  check_sampler(config.objective, request.sampler);
  DYDIT_USAGE_CHECK(request.num_images >= 1, "{} images: expected 1 or more", request.num_images);
  DYDIT_USAGE_CHECK(request.sampler.eta >= 0 && request.sampler.eta <= 1, "eta {}: expected 0 to 1",
                    request.sampler.eta);
  DYDIT_USAGE_CHECK(std::isfinite(request.cfg_scale), "cfg scale {}: expected a number", request.cfg_scale);
  DYDIT_USAGE_CHECK(request.channels_guided(config) >= 1, "{} guided channels: expected 1 or more",
                    request.channels_guided(config));
  if (request.plan) check_plan(config, request, *request.plan);
}

void check_run(const Request& request, const SamplingOptions& run) {
  DYDIT_USAGE_CHECK(run.batch >= 1, "batch {}: expected 1 or more", run.batch);
  DYDIT_USAGE_CHECK(
      request.noise != NoiseKind::Torch || request.num_images <= run.batch,
      "--noise torch draws for one batch, as the original script does: {} images need --batch {}, "
      "got {}",
      request.num_images, request.num_images, run.batch);
  DYDIT_USAGE_CHECK(run.first >= 0 && run.stride >= 1,
                    "images {} and every {}th: expected 0 or more and 1 or more", run.first, run.stride);
  DYDIT_USAGE_CHECK(request.noise != NoiseKind::Torch || run.stride == 1,
                    "--noise torch draws for all images at once, of which a shard is a part; take --noise "
                    "philox");
  DYDIT_USAGE_CHECK(
      request.noise != NoiseKind::Torch || request.sampler.kind != SamplerKind::HeunSde,
      "--noise torch: heun-sde draws before its first step, as no script of DiT does; take em-sde, or "
      "--noise philox");
  DYDIT_USAGE_CHECK(
      run.preview_every >= 0 && (run.preview_every == 0 || run.preview_every < request.total_steps()),
      "--preview-every {}: with {} steps expected 1 to {}", run.preview_every, request.total_steps(),
      request.total_steps() - 1);
  DYDIT_USAGE_CHECK(run.threads >= 1, "{} threads: expected 1 or more", run.threads);
}

int64_t cache_bytes(const RunPlan& plan, const Request& request, at::ScalarType kept) {
  return history_bytes(plan.config, kept, plan.slots) * (request.guided() ? 2 : 1) +
         plan.guide_slots * request.guided_values(plan.config) * static_cast<int64_t>(sizeof(float));
}

int64_t cache_allowance(const SamplingOptions& run) {
  return run.cache_memory > 0 ? run.cache_memory : memory_limit().bytes / 4;
}

int64_t static_macs_per_sample(const DiTConfig& config, const Request& request) {
  return static_macs(config) * request.total_steps() * (request.guided() ? 2 : 1);
}

}  // namespace dydit
