// The gradient of one training step: [mse + vb](dynamic) + [mse + vb](complete) + 2 (mean ratio - target)^2,
// over the global batch. (DyDiT, section 3.4)
#pragma once

#include <array>

#include "dydit/data/loader.h"
#include "dydit/train/communicator.h"
#include "dydit/train/gates.h"
#include "dydit/train/options.h"
#include "dydit/train/parameters.h"

namespace dydit {

/// Means over the global batch.
struct StepTerms {
  double mse = 0, vb = 0;                    // of the model as trained (dynamic when it has routers)
  double complete_mse = 0, complete_vb = 0;  // of the complete model, while that term is kept
  double ratio = 1, inference_ratio = 1;     // work ratio by training's gates and by inference's
  std::array<double, kQuarters> heads{}, groups{}, tokens{};  // mean share on, by quarter of t

  double flops_loss = 0;
  double loss() const { return mse + vb + complete_mse + complete_vb + flops_loss; }
};

/// What sample j of a step's global batch draws: functions of (seed, step, j).
struct StepInputs {
  at::Tensor x0, noise, x_t;  // (B, C, side, side)
  at::Tensor t;               // (B), sample j in quarter j mod 4
  at::Tensor y, y_complete;   // (B) labels, each with its own dropout
  GateNoise gate_noise;
};

/// Inputs of samples [first, first + count) of the global batch from their images and labels.
StepInputs make_step_inputs(const DiTConfig& config, const TrainOptions& options, uint64_t step, int first,
                            const at::Tensor& images, const at::Tensor& labels);

/// Puts the gradient of step `step` into the store; `batch` holds this process's share of the global batch,
/// from sample `first` on. All processes end with the same gradient and terms.
StepTerms compute_gradient(DiT& model, ParameterStore& store, const TrainOptions& options,
                           Communicator& processes, uint64_t step, int first, Batch& batch);

}  // namespace dydit
