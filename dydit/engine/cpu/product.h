// Products of a linear layer, cut into tasks for a team.
#pragma once

#include "dydit/base/team.h"
#include "dydit/engine/cpu/kernels.h"
#include "dydit/engine/cpu/packed_linear.h"

namespace dydit::cpu {

/// Runs `gemm` over rows [0, rows) and `panels` of `weights` and, unless it brings its own, all input
/// segments. bf16_rows: the type of the activations.
void run_product(Team& team, const Kernels& kernels, const PackedLinear& weights, const Panels& panels,
                 Gemm gemm, int rows, bool bf16_rows);

}  // namespace dydit::cpu
