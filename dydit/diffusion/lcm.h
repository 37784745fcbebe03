// LCM (Luo et al. 2023, arXiv 2310.04378), what its sampler and its training share: the grid of timesteps and
// the consistency function's boundary. Of the 1000 betas; the loss: consistency.h.
#pragma once

#include <cstdint>
#include <vector>

#include "dydit/base/timesteps.h"

namespace dydit {

/// Points of the teacher's DDIM path that a student is trained at: t = 19, 39, ..., 999.
inline constexpr int kLcmGrid = 50;
inline constexpr int kLcmStride = kNumTrainTimesteps / kLcmGrid;
/// Steps of a run that does not say how many.
inline constexpr int kLcmSteps = 4;

/// The grid's timestep of index 0..49.
inline int lcm_timestep(int index) { return kLcmStride * (index + 1) - 1; }
/// `steps` of them, ascending: indices floor(i 50 / steps), i = 0..steps-1, of the grid that descends. Throws
/// UsageError outside 1..50.
std::vector<int> lcm_timesteps(int steps);
/// Share of the grid in part `part` of `parts` equal ones of 0..999.
double lcm_share_of(int part, int parts);
/// The grid's timestep of sample `sample` of the global batch of step `step`, each as likely as any other.
int lcm_draw(uint64_t seed, uint64_t step, int sample);

/// Factors of the consistency function f = skip x + out x0, with f = x at t = 0.
struct LcmBoundary {
  double skip, out;
};
LcmBoundary lcm_boundary(int t);

}  // namespace dydit
