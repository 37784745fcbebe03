#include "dydit/diffusion/lcm.h"

#include <algorithm>
#include <cmath>

#include "dydit/base/error.h"
#include "dydit/base/noise.h"

namespace dydit {
namespace {

// The authors': the data's standard deviation, and a factor of t.
constexpr double kSigmaData = 0.5;
constexpr double kTimestepScale = 10;

}  // namespace

std::vector<int> lcm_timesteps(int steps) {
  DYDIT_USAGE_CHECK(steps >= 1 && steps <= kLcmGrid, "--steps {}: lcm takes 1 to {}", steps, kLcmGrid);
  std::vector<int> timesteps;
  for (int i = steps - 1; i >= 0; --i) timesteps.push_back(lcm_timestep(kLcmGrid - 1 - i * kLcmGrid / steps));
  return timesteps;
}

double lcm_share_of(int part, int parts) {
  int inside = 0;
  for (int i = 0; i < kLcmGrid; ++i) inside += lcm_timestep(i) * parts / kNumTrainTimesteps == part;
  return static_cast<double>(inside) / kLcmGrid;
}

int lcm_draw(uint64_t seed, uint64_t step, int sample) {
  float u = 0;
  fill_uniform({&u, 1}, seed, training_sample(step, sample),
               static_cast<uint64_t>(TrainingDraw::DistillTimestep));
  return lcm_timestep(std::min(static_cast<int>(u * kLcmGrid), kLcmGrid - 1));
}

LcmBoundary lcm_boundary(int t) {
  const double scaled = kTimestepScale * t, data = kSigmaData * kSigmaData, sum = scaled * scaled + data;
  return {data / sum, scaled / std::sqrt(sum)};
}

}  // namespace dydit
