// Solvers of continuous time: solver.h calls these for objectives that have no table.
#pragma once

#include "dydit/diffusion/solver.h"

namespace dydit {

/// Throws UsageError for a sampler, a form or a last step that this objective cannot be sampled with.
void check_flow_sampler(const Objective& objective, const SamplerOptions& options);
Spacing choose_flow_times(const Objective& objective, const SamplerOptions& options, int steps);
Solver make_flow_solver(const Objective& objective, const SamplerOptions& options,
                        std::span<const double> times);

}  // namespace dydit
