// Products of a linear layer, cut into tasks for a team.
#pragma once

#include "dydit/base/team.h"
#include "dydit/engine/cpu/kernels.h"
#include "dydit/engine/cpu/packed_linear.h"

namespace dydit::cpu {

/// Memory of a run, a part for each of its threads, whichever team it works for.
struct ThreadFloats {
  float* memory = nullptr;
  size_t each = 0;

  float* of(int thread) const { return memory + thread * each; }
};

/// Runs `gemm` over rows [0, rows) and `panels` of `weights` and, unless it brings its own, all input
/// segments. bf16_rows: the type of the activations. expanded: for bfloat16 weights of float32 activations,
/// PackedLinear::tile_floats() each.
void run_product(Team& team, const Kernels& kernels, const PackedLinear& weights, const Panels& panels,
                 Gemm gemm, int rows, bool bf16_rows, const ThreadFloats& expanded);

}  // namespace dydit::cpu
