// Respacing as the original's space_timesteps does it, rounding included.
#include "dydit/diffusion/schedule.h"

#include <cmath>

#include "dydit/base/error.h"

namespace dydit {
namespace {

void check_steps(int steps) {
  DYDIT_USAGE_CHECK(steps >= 1 && steps <= kNumTrainTimesteps, "--steps {}: expected 1 to {}", steps,
                    kNumTrainTimesteps);
}

}  // namespace

std::vector<double> linear_betas() {
  // numpy's linspace: start + i * step, the last entry exact.
  std::vector<double> betas(kNumTrainTimesteps);
  const double step = (kBetaEnd - kBetaStart) / (kNumTrainTimesteps - 1);
  for (int i = 0; i < kNumTrainTimesteps; ++i) betas[i] = kBetaStart + i * step;
  betas.back() = kBetaEnd;
  return betas;
}

std::vector<int> even_timesteps(int steps) {
  check_steps(steps);
  const double stride = steps > 1 ? static_cast<double>(kNumTrainTimesteps - 1) / (steps - 1) : 1.0;
  std::vector<int> timesteps;
  double position = 0;  // accumulated, not multiplied: rounding then falls as in the original
  for (int i = 0; i < steps; ++i) {
    timesteps.push_back(static_cast<int>(std::nearbyint(position)));
    position += stride;
  }
  return timesteps;
}

std::vector<int> strided_timesteps(int steps) {
  check_steps(steps);
  for (int stride = 1; stride < kNumTrainTimesteps; ++stride) {
    if ((kNumTrainTimesteps + stride - 1) / stride != steps) continue;
    std::vector<int> timesteps;
    for (int t = 0; t < kNumTrainTimesteps; t += stride) timesteps.push_back(t);
    return timesteps;
  }
  return {};
}

}  // namespace dydit
