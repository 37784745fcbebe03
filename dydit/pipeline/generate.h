// The main path: checkpoint -> engine and plans -> requests -> samples.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

#include "dydit/base/progress.h"
#include "dydit/engine/engine.h"
#include "dydit/model/checkpoint.h"
#include "dydit/pipeline/request.h"
#include "dydit/pipeline/scheduler.h"
#include "dydit/pipeline/stitch.h"
#include "dydit/plan/run_plan.h"

namespace dydit {

/// A request, how it is run, and the engine that it is run on.
struct GenerateOptions : Request, SamplingOptions {
  at::ScalarType dtype = at::kFloat;
  EngineKind engine = EngineKind::Cpu;
  DeviceOptions where = {};
  std::optional<Stitch> stitch = {};  // another model that takes the noisy steps

  EngineOptions engine_options() const;
};

struct GeneratedSample {
  int index = 0;  // of the run, from 0; keys the noise
  int label = 0;
  at::Tensor sample;       // (in_channels, side, side) float32: a latent, or pixels in about [-1, 1]
  double seconds = 0;      // its share of the time of its forwards
  Work work;               // summed over steps and guidance halves
  at::Tensor pixels = {};  // (channels, height, width) float32 in about [-1, 1]: `sample`, or what it was
                           // decoded to (decoder.h); undefined where nobody did
  double decode_seconds = 0;
  at::Tensor token_share = {};  // (N) float32, of the (step, block, guidance half) in which a token entered
                                // the MLP; undefined unless asked for and the run routes tokens
};

/// What a finished sample is handed out as. Throws Error where its image is NaN or infinite.
GeneratedSample delivered(const Sample& sample);

struct Preview {
  int first = 0;   // index of its first image
  int step = 0;    // steps done, from 1
  at::Tensor x0;   // (images, in_channels, side, side), predicted in that step
  int stride = 1;  // from an image's index to the next

  int index(int image) const { return first + image * stride; }
};

struct GenerateCallbacks {
  std::function<void(GeneratedSample&&)> on_sample = nullptr;  // in order of index, as batches finish
  ProgressFn on_progress = nullptr;                            // after each sampling step
  std::function<void(const Preview&)> on_preview = nullptr;    // not after the last step: that is the image
  // The samples of the batch after each step, the last one, too.
  std::function<void(std::span<const Sample>)> on_step = nullptr;
  const CancelFlag* cancel = nullptr;  // looked at between steps
};

/// A checkpoint that is ready: its weights packed once, its plans made once. All of it may be used by any
/// number of threads at the same time.
class Pipeline {
 public:
  /// The checkpoint outlives it. Throws Error when its file was written to since it was read.
  Pipeline(const Checkpoint& checkpoint, EngineKind kind, const EngineOptions& options);

  const Engine& engine() const { return *engine_; }
  /// The widths of these timesteps. Throws as make_width_plan does.
  RunPlan widths(std::span<const double> timesteps, Mode mode) const;
  /// The plan of a request. Throws as make_width_plan does, UsageError for a plan that is not of this model
  /// or run.
  RunPlan plan(const Request& request) const;
  /// Makes the images of a request. Throws as the function below does.
  void generate(const Request& request, const SamplingOptions& options,
                const GenerateCallbacks& callbacks) const;
  /// The same, `small` of the stitch's model taking the noisy steps.
  void generate(const Request& request, const SamplingOptions& options, const GenerateCallbacks& callbacks,
                const Stitch& stitch, const Pipeline& small) const;

 private:
  std::shared_ptr<Course> course(const Request& request, const SamplingOptions& options, const Stitch* stitch,
                                 const Pipeline* small) const;
  void run(const std::shared_ptr<Course>& course, Scheduler& scheduler, const SamplingOptions& options,
           const GenerateCallbacks& callbacks) const;

  const Checkpoint& checkpoint_;
  const EngineKind kind_;
  const EngineOptions engine_options_;
  const std::unique_ptr<const Engine> engine_;
  mutable std::mutex mutex_;
  // By mode and timestep: of each level of patch sizes.
  mutable std::map<std::pair<Mode, double>, std::vector<StepPlan>> steps_;
};

/// Generates all samples. Sample i depends on (weights, label, seed, i, steps, sampler, guidance, dtype,
/// engine) alone, bit for bit on one processor, or with batch_invariant on one kind of GPU; with
/// NoiseKind::Torch on the number of images, too. Throws UsageError for options out of range, Error where the
/// memory cannot suffice, and Cancelled between steps; samples of finished batches have been delivered by
/// then.
void generate(const Checkpoint& checkpoint, const GenerateOptions& options,
              const GenerateCallbacks& callbacks);

/// Bytes that a run with batches of `count` images takes at least, beside the checkpoint, what the images
/// keep from step to step (cache_bytes) and what the callbacks keep. `ranges`: of its plan.
double least_generate_bytes(const Checkpoint& checkpoint, const GenerateOptions& options, int count,
                            int ranges = 0);

}  // namespace dydit
