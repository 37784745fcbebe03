// What image, and how it is made.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "dydit/base/enum_names.h"
#include "dydit/diffusion/guidance.h"
#include "dydit/diffusion/solver.h"
#include "dydit/model/config.h"
#include "dydit/plan/policies.h"
#include "dydit/plan/run_plan.h"

namespace dydit {

/// Philox: a function of (seed, image, step). Torch: torch.randn's stream, as the original script draws: the
/// starts of all images, then in every step all rows, guidance halves included. One batch, and an image
/// depends on how many are made.
enum class NoiseKind { Philox, Torch };
inline constexpr EnumNames<NoiseKind, 2> kNoiseNames = {
    "noise", {{"philox", NoiseKind::Philox}, {"torch", NoiseKind::Torch}}};

/// What images: all that their pixels depend on beside the weights and the engine.
struct Request {
  std::vector<int> classes = {0};  // image i gets classes[i mod size]
  int num_images = 1;
  int num_steps = 250;
  // By hand, in any order, instead of num_steps: of the objective's clock; empty: chosen.
  std::vector<double> timesteps = {};
  SamplerOptions sampler;
  float cfg_scale = 4.0f;  // <= 1: no guidance, one row an image
  // First channels of eps that are guided, never more than there are; unset: the configuration's.
  std::optional<int> guided_channels = {};
  uint64_t seed = 0;
  NoiseKind noise = NoiseKind::Philox;
  Mode mode = Mode::Dynamic;
  // Which branches are computed and when guidance runs; its timesteps are the run's. Unset: everything.
  std::optional<PlanSpec> plan = {};

  bool guided() const { return cfg_scale > 1.0f; }
  int channels_guided(const DiTConfig& config) const;
  /// Values of those channels.
  int64_t guided_values(const DiTConfig& config) const {
    return int64_t{channels_guided(config)} * config.input_size * config.input_size;
  }
  /// Evaluations of the network for an image and one row: as many as its plan has entries.
  int total_steps() const;
  int label(int index) const { return classes[index % classes.size()]; }
};

/// How: speed, memory and what is told on the way; never a pixel.
struct SamplingOptions {
  int batch = 16;  // images sampled together
  int first = 0;   // image that is made first: those before it are left out
  int stride = 1;  // every so-manieth from there is made: a shard of the images
  int threads = 1;
  /// How many of so many images are made.
  int images_made(int num_images) const { return (num_images - first - 1) / stride + 1; }

  int preview_every = 0;                 // steps from one preview to the next; 0: none
  bool token_map = false;                // also keep each token's share of MLP entries
  std::span<float> largest_inputs = {};  // WorkspaceOptions::largest_inputs
  int64_t cache_memory = 0;  // bytes that a batch may keep of features and guidance; 0: cache_allowance's
};

/// The timesteps of a run of a model of this objective: the plan's, those given by hand, else
/// choose_timesteps'.
Spacing run_spacing(const Request& request, const Objective& objective);

/// Gives a request, of which all else is known, the plan that a policy makes for its timesteps; none where it
/// is the default. Throws as policy_plan, apply_levels and apply_guide do.
void plan_by_policy(const PlanPolicy& policy, const DiTConfig& config, Request& request);

/// The plan of a request: `widths`, of its timesteps, and what its spec says.
RunPlan complete_plan(const Request& request, RunPlan widths);

/// Bytes that an image of such a plan keeps from step to step, of both rows and of guidance.
int64_t cache_bytes(const RunPlan& plan, const Request& request, at::ScalarType kept);

/// Bytes that a run may keep: those given, else a quarter of memory_limit().
int64_t cache_allowance(const SamplingOptions& run);

/// What whoever asks left open.
struct Unsaid {
  bool sampler = true, cfg_scale = true, steps = true;
};
/// Fills that in as a model distilled to few steps must be sampled: its sampler, guidance 1, kLcmSteps.
/// Changes nothing for others.
void take_few_step(const std::optional<FewStep>& few_step, const Unsaid& unsaid, Request& request);
/// Throws UsageError where a distilled model is asked for anything else than it has learned, and where
/// another model is asked for a distilled one's sampler.
void check_few_step(const std::optional<FewStep>& few_step, const Objective& objective,
                    const Request& request);
/// Names of the samplers that a model can be sampled with.
std::vector<std::string> samplers_of(const std::optional<FewStep>& few_step, const Objective& objective);

/// Throws UsageError for what this model cannot make or nobody can mean.
void check_request(const DiTConfig& config, const Request& request);
void check_run(const Request& request, const SamplingOptions& run);

/// Multiply-adds that the static model spends on one sample of this request.
int64_t static_macs_per_sample(const DiTConfig& config, const Request& request);

}  // namespace dydit
