#include "dydit/diffusion/path.h"

#include <cmath>
#include <limits>
#include <numbers>

namespace dydit {
namespace {

// Vp: alpha = exp(-(betas' integral) / 2), of beta = kBetaMin + kBetaRange s.
constexpr double kBetaMin = 0.1, kBetaRange = 19.9;
double half_beta(double share) { return (kBetaMin + kBetaRange * share) / 2; }

// dx/ds of a velocity, which is by the clock's time.
double direction(const Objective& objective) { return objective.clock == ModelClock::Data ? -1 : 1; }

}  // namespace

NoiseLevel level_at(Path path, double share) {
  switch (path) {
    case Path::Gvp: {
      const double turn = std::numbers::pi / 2, angle = turn * share;
      return {share, std::cos(angle), std::sin(angle), -turn * std::sin(angle), turn * std::cos(angle)};
    }
    case Path::Vp: {
      const double log_alpha = -share * (kBetaRange * share / 4 + kBetaMin / 2), alpha = std::exp(log_alpha);
      const double sigma = std::sqrt(-std::expm1(2 * log_alpha)), m = half_beta(share);
      return {share, alpha, sigma, -m * alpha,
              sigma > 0 ? alpha * alpha * m / sigma : std::numeric_limits<double>::infinity()};
    }
    default:
      return {share, 1 - share, share, -1, 1};
  }
}

Combination noise_of(const Objective& objective, const NoiseLevel& level) {
  if (objective.prediction == Prediction::Noise) return {0, 1};
  const double scale = 1 / (level.d_alpha * level.sigma - level.alpha * level.d_sigma);
  return {scale * level.d_alpha, -scale * level.alpha * direction(objective)};
}

Combination image_of(const Objective& objective, const NoiseLevel& level) {
  if (objective.prediction == Prediction::Noise) return {1 / level.alpha, -level.sigma / level.alpha};
  const double scale = 1 / (level.d_alpha * level.sigma - level.alpha * level.d_sigma);
  return {-scale * level.d_sigma, scale * level.sigma * direction(objective)};
}

Combination slope_of(const Objective& objective, const NoiseLevel& level) {
  if (objective.prediction == Prediction::Velocity) return {0, direction(objective)};
  const double growth = level.d_alpha / level.alpha;
  return {growth, level.d_sigma - growth * level.sigma};
}

double half_squared_diffusion(Path path, const NoiseLevel& level) {
  if (path == Path::Vp) return half_beta(level.share);
  return level.sigma * level.d_sigma - level.sigma * level.sigma * level.d_alpha / level.alpha;
}

ShareInterval training_shares(const Objective& objective) {
  constexpr double kLeastVp = 1e-5, kEnds = 1e-3;
  if (objective.prediction == Prediction::Velocity) return {objective.path == Path::Vp ? kLeastVp : 0, 1};
  if (objective.path == Path::Vp || objective.path == Path::Table) return {0, 1};
  return {kEnds, 1 - kEnds};
}

}  // namespace dydit
