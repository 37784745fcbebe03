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
/// segments. expanded: for weights that are expanded, PackedLinear::tile_floats() each.
void run_product(Team& team, const PackedLinear& weights, const Panels& panels, Gemm gemm, int rows,
                 const ThreadFloats& expanded);
/// The kernel for such weights.
void (*gemm_of(const PackedLinear& weights))(const Gemm&);

}  // namespace dydit::cpu
