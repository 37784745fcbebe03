// What a consistency student learns from (LCM, dydit/diffusion/consistency.h): a frozen teacher that goes one
// step of its path, and the student's own average, which says from there where the path ends.
#pragma once

#include <functional>
#include <memory>

#include "dydit/model/dit.h"
#include "dydit/train/options.h"
#include "dydit/train/parameters.h"
#include "dydit/train/step.h"

namespace dydit {

/// How the student's samples are drawn: t of the grid, and what each counts for in the mean over the grid (as
/// StepInputs::visits; undefined: 1). Of samples [first, first + count) of a step's global batch.
struct DistillTimes {
  at::Tensor t, visits;  // (B) int64, (B) float32
};
DistillTimes draw_distill_times(const TrainOptions& options, uint64_t step, int first, int64_t count);

/// Throws UsageError for a teacher that this student cannot learn from, and options that cannot go with it.
void check_distillation(const DiTConfig& student, const TrainOptions& options);

class Distillation {
 public:
  /// `store`: of the student. Its average is the network of the targets, in place.
  Distillation(const TrainOptions& options, const DiT& student, const ParameterStore& store);

  /// (B, C, side, side) what the student is to say at the inputs; without gradient. `keep`: the counts of the
  /// capacity rule in this step, undefined under the threshold rule. The average runs with the gates that it
  /// would have at inference.
  at::Tensor target(DiT& student, const StepInputs& inputs, const at::Tensor& keep);

  const DiT& teacher() const { return teacher_; }
  const DiT& average() const { return average_; }

 private:
  at::Tensor average_eps(DiT& student, const at::Tensor& x, const at::Tensor& t, const at::Tensor& y,
                         const at::Tensor& keep);

  const TrainOptions& options_;
  DiT teacher_, average_;
};

}  // namespace dydit
