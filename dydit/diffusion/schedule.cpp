// Respacing as the original's space_timesteps does it, rounding included.
#include "dydit/diffusion/schedule.h"

#include <algorithm>
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

std::vector<int> linspace_timesteps(int steps) {
  constexpr int kLast = kNumTrainTimesteps - 1;
  DYDIT_USAGE_CHECK(steps >= 1 && steps <= kLast, "--steps {}: dpm++ takes 1 to {}", steps, kLast);
  const double stride = static_cast<double>(kLast) / steps;
  std::vector<int> timesteps;
  for (int i = 1; i < steps; ++i) timesteps.push_back(static_cast<int>(std::nearbyint(i * stride)));
  timesteps.push_back(kLast);
  return timesteps;
}

std::vector<int> sorted_timesteps(std::vector<int> timesteps) {
  DYDIT_USAGE_CHECK(!timesteps.empty(), "--timesteps: expected at least one");
  std::sort(timesteps.begin(), timesteps.end());
  for (size_t i = 0; i < timesteps.size(); ++i) {
    DYDIT_USAGE_CHECK(timesteps[i] >= 0 && timesteps[i] < kNumTrainTimesteps,
                      "--timesteps: {} is outside 0 to {}", timesteps[i], kNumTrainTimesteps - 1);
    DYDIT_USAGE_CHECK(i == 0 || timesteps[i] != timesteps[i - 1], "--timesteps: {} is given twice",
                      timesteps[i]);
  }
  return timesteps;
}

}  // namespace dydit
