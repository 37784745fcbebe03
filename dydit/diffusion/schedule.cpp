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

std::vector<double> even_times(const Objective& objective, int steps) {
  std::vector<double> times;
  if (objective.continuous()) {
    check_steps(steps);
    for (int i = 0; i < steps; ++i)
      times.push_back(time_at(objective, steps > 1 ? static_cast<double>(i) / (steps - 1) : 0));
  } else {
    for (const int t : even_timesteps(steps)) times.push_back(t);
  }
  return times;
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

std::vector<double> sorted_timesteps(std::vector<double> timesteps, const Objective& objective) {
  DYDIT_USAGE_CHECK(!timesteps.empty(), "--timesteps: expected at least one");
  for (const double t : timesteps) {
    DYDIT_USAGE_CHECK(objective.continuous() || t == std::floor(t), "--timesteps: {} is no whole number", t);
    DYDIT_USAGE_CHECK(is_time(objective, t), "--timesteps: {} is outside 0 to {}", t, last_time(objective));
  }
  std::sort(timesteps.begin(), timesteps.end(),
            [&](double a, double b) { return noise_share(objective, a) < noise_share(objective, b); });
  for (size_t i = 1; i < timesteps.size(); ++i)
    DYDIT_USAGE_CHECK(timesteps[i] != timesteps[i - 1], "--timesteps: {} is given twice", timesteps[i]);
  return timesteps;
}

}  // namespace dydit
