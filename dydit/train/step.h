// One training step: the gradient of [mse + vb](dynamic) + [mse + vb](complete) + 2 (mean ratio - target)^2
// over the global batch (DyDiT, section 3.4), and the update by it.
#pragma once

#include <array>
#include <functional>

#include "dydit/data/loader.h"
#include "dydit/train/communicator.h"
#include "dydit/train/gates.h"
#include "dydit/train/options.h"
#include "dydit/train/parameters.h"

namespace dydit {

struct RunState;     // dydit/train/state.h
class Hooks;         // dydit/train/hooks.h
class Distillation;  // dydit/train/distill.h

/// Means over the global batch.
struct StepTerms {
  // Of the model as trained (dynamic when it has routers). While distilling mse is the consistency loss, vb
  // 0.
  double mse = 0, vb = 0;
  double complete_mse = 0, complete_vb = 0;            // of the complete model, while that term is kept
  double weighted_mse = 0, complete_weighted_mse = 0;  // as the loss has them: times each timestep's weight
  double ratio = 0,
         inference_ratio = 0;  // work ratio by training's gates and by inference's, over even times
  double flops_loss = 0;
  std::array<double, kMostHooks> hooks{};  // losses on features, in their order, weights included
  std::array<double, kQuarters> heads{}, groups{}, tokens{};  // mean share on, by quarter of t; NaN of none
  std::array<double, kQuarters> drawn{};                      // samples in each quarter

  double loss() const {
    double sum = weighted_mse + vb + complete_weighted_mse + complete_vb + flops_loss;
    for (const double hook : hooks) sum += hook;
    return sum;
  }
  /// All of them, as sums over samples.
  std::vector<double*> values();
  /// From sums over samples to means over them, those of a quarter over its own.
  void divide(double samples);
  /// Back to sums over samples, but for what is no quarter's: there over steps.
  void multiply_quarters();
};

/// The FLOPs term 2 (mean ratio - target)^2 (DyDiT, section 3.4) and its slope by the mean.
struct FlopsTerm {
  double loss, slope;
};
FlopsTerm flops_term(double mean_ratio, double target);

/// What sample j of a step's global batch draws: functions of (seed, step, j).
struct StepInputs {
  at::Tensor x0, noise, x_t;  // (B, C, side, side)
  at::Tensor t;               // (B) int64 of a table, else double
  at::Tensor target;          // (B, C, side, side) of a consistency student; undefined: of no distillation
  // (B) float32; undefined: 1. Factors of the mse, and of a sample's work ratio where times are not drawn as
  // evenly as a sampler visits them: under the capacity rule of its region.
  at::Tensor loss_weight, visits;
  at::Tensor y, y_complete;  // (B) labels, each with its own dropout
  at::Tensor t_teacher;      // (B) as t, nearer to the image; undefined without self-alignment
  GateNoise gate_noise;
  int level = 0;  // of patch sizes, of all samples alike

  StepInputs to(at::Device device) const;
  /// Of the samples `rows` (M) int64, at a level.
  StepInputs select(const at::Tensor& rows, int level) const;
};

/// Inputs of images [begin, begin + count) of a batch that holds the global batch's from sample `first` on;
/// on the options' device.
StepInputs make_step_inputs(const DiTConfig& config, const TrainOptions& options, Batch& batch, int first,
                            int64_t begin, int64_t count);

/// What a step's loss asks beside the model: null where the options have neither.
struct StepHelpers {
  Hooks* hooks = nullptr;
  Distillation* distillation = nullptr;
};

/// Puts the gradient of step `step` into the store: of this process's share of the global batch, from sample
/// `first` on, whose micro-batch m inputs_of(m) gives, the same each time it is asked. All processes end with
/// the same gradient and terms. `helpers`: those of the options; hooks see the complete model.
StepTerms compute_gradient(DiT& model, ParameterStore& store, const TrainOptions& options,
                           Communicator& processes, uint64_t step, int first,
                           const std::function<StepInputs(int m)>& inputs_of,
                           const StepHelpers& helpers = {});

/// Bytes that a process takes at least for its share of a step: weights, gradients, moments and average, and
/// what a micro-batch keeps for its backward.
double least_training_bytes(const DiTConfig& config, const TrainOptions& options, int processes);

/// The update of step state.step by the store's gradient, whose norm is given: guard, clip, AdamW. The EMA
/// moves all the same, and the shares of the capacity rule go onto the next step's target. Counts the step,
/// and the update or the skip.
void apply_update(DiT& model, ParameterStore& store, const TrainOptions& options, double grad_norm,
                  RunState& state);

}  // namespace dydit
