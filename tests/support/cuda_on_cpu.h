// The machine of dydit/engine/cuda/device.h on the CPU, for tests: each thread of a block is a fiber that
// runs until it must wait for its warp or its block. What is not ordered by such a wait comes in another
// order when fibers do; copies arrive when they are waited for and not before; shared memory begins as NaN.
#pragma once

#include <cstdint>

namespace dydit::cuda {

/// Whose turn it is: a warp goes on until it can no more, and so does each of its lanes.
enum class FiberOrder { Ascending, Descending, Seeded };

/// Of the grids that run from now on.
void set_fiber_order(FiberOrder order, uint32_t seed = 1);

}  // namespace dydit::cuda
