// How much the model's input changes from step to step, and the plans that follow from it.
#pragma once

#include <span>
#include <vector>

#include "dydit/base/progress.h"
#include "dydit/model/checkpoint.h"
#include "dydit/pipeline/generate.h"

namespace dydit {

/// (S) of a full run of `request`: mean over its images of mean|m_s - m_{s+1}| / mean|m_{s+1}|, m the input
/// of the first block's attention, normalised and modulated, of the conditional row; 0 at the first step
/// taken.
std::vector<double> input_changes(const Checkpoint& checkpoint, const Pipeline& pipeline,
                                  const Request& request, const SamplingOptions& options,
                                  const CancelFlag* cancel);

/// As TeaCache decides (Liu et al. 2024, without its polynomial), but once for all images: changes add up,
/// and a step is full where their sum has reached `threshold`, the first and the last in any case; the others
/// skip all blocks and reuse what these did. `changes` (S): of the timesteps.
PlanSpec threshold_plan(std::span<const double> changes, double threshold, const DiTConfig& config,
                        std::span<const double> timesteps);

}  // namespace dydit
