// Ladders are walked with unit vectors in place of features: what comes out are their weights.
#include "dydit/plan/forecast.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <functional>

#include <fmt/ranges.h>

#include "dydit/base/error.h"
#include "dydit/base/numbers.h"
#include "dydit/io/text.h"

namespace dydit {
namespace {

constexpr double kPole = 1e-9;  // a sum this small beside its terms is rounding

// Physicists' Hermite polynomial.
double hermite(int i, double x) {
  double before = 0, value = 1;
  for (int k = 0; k < i; ++k) {
    const double next = 2 * x * value - 2 * k * before;
    before = value;
    value = next;
  }
  return value;
}

// What the i-th difference is multiplied by: d^i / i!, or sigma^i H_i(sigma d) / i!.
double ladder_factor(const Forecast& forecast, int i, double d) {
  const double power = forecast.kind == ForecastKind::Hermite
                           ? std::pow(forecast.sigma, i) * hermite(i, forecast.sigma * d)
                           : std::pow(d, i);
  return power / std::tgamma(i + 1);
}

// F_{i+1}^(j) = (F_i^(j) - F_i^(j+1)) / (a_j - a_{j+1}); the sum over i of F_i^(0) times its factor.
std::vector<double> ladder_weights(const Forecast& forecast, std::span<const int> anchors, int step) {
  const size_t m = anchors.size();
  std::vector<std::vector<double>> differences(m, std::vector<double>(m, 0));  // [j]: the weights of F_i^(j)
  for (size_t j = 0; j < m; ++j) differences[j][j] = 1;
  std::vector<double> weights(m, 0);
  for (size_t i = 0; i < m; ++i) {
    const double factor = ladder_factor(forecast, static_cast<int>(i), step - anchors[0]);
    for (size_t k = 0; k < m; ++k) weights[k] += factor * differences[0][k];
    for (size_t j = 0; j + i + 1 < m; ++j) {
      for (size_t k = 0; k < m; ++k)
        differences[j][k] = (differences[j][k] - differences[j + 1][k]) / (anchors[j] - anchors[j + 1]);
    }
  }
  return weights;
}

// prod over k != j of (s - a_k) / (a_j - a_k).
std::vector<double> lagrange_weights(std::span<const int> anchors, int step) {
  std::vector<double> weights(anchors.size(), 1);
  for (size_t j = 0; j < anchors.size(); ++j) {
    for (size_t k = 0; k < anchors.size(); ++k) {
      if (k != j) weights[j] *= static_cast<double>(step - anchors[k]) / (anchors[j] - anchors[k]);
    }
  }
  return weights;
}

// u_j / sum u, u_j = (-1)^j / (s - a_j), halved for the first and the last.
std::vector<double> chebyshev_weights(std::span<const int> anchors, int step) {
  std::vector<double> weights(anchors.size());
  double sum = 0, sizes = 0;
  for (size_t j = 0; j < anchors.size(); ++j) {
    const bool end = j == 0 || j + 1 == anchors.size();
    weights[j] = (j % 2 == 0 ? 1.0 : -1.0) * (end ? 0.5 : 1.0) / (step - anchors[j]);
    sum += weights[j];
    sizes += std::abs(weights[j]);
  }
  DYDIT_CHECK(std::abs(sum) > kPole * sizes,
              "a chebyshev forecast of step {} from the steps {} has a pole there; take another order, or "
              "lagrange",
              step, fmt::join(anchors, ", "));
  for (double& weight : weights) weight /= sum;
  return weights;
}

}  // namespace

Forecast parse_forecast(const std::string& text) {
  const size_t colon = text.find(':');
  const auto kind = kForecastNames.find(std::string_view(text).substr(0, colon));
  const bool has_sigma = kind == ForecastKind::Hermite;
  DYDIT_USAGE_CHECK(kind && has_sigma == (colon != text.npos),
                    "forecast {} is unknown; choose from taylor, lagrange, chebyshev, hermite:SIGMA",
                    quote(text));
  if (!has_sigma) return {.kind = *kind};
  const auto sigma = parse_number<double>(std::string_view(text).substr(colon + 1));
  DYDIT_USAGE_CHECK(sigma && *sigma > 0 && *sigma <= 1,
                    "forecast {}: sigma is above 0 and at most 1, as in hermite:0.5", quote(text));
  return {.kind = *kind, .sigma = *sigma};
}

std::string forecast_text(const Forecast& forecast) {
  const std::string name(kForecastNames[forecast.kind]);
  return forecast.kind == ForecastKind::Hermite ? fmt::format("{}:{}", name, forecast.sigma) : name;
}

std::vector<double> forecast_weights(const Forecast& forecast, std::span<const int> anchors, int step,
                                     int order) {
  assert(!anchors.empty() && order >= 0 && step < anchors[0]);
  assert(std::adjacent_find(anchors.begin(), anchors.end(), std::greater_equal<>()) == anchors.end());
  anchors = anchors.first(std::min(anchors.size(), static_cast<size_t>(order) + 1));
  switch (forecast.kind) {
    case ForecastKind::Lagrange:
      return lagrange_weights(anchors, step);
    case ForecastKind::Chebyshev:
      return chebyshev_weights(anchors, step);
    default:
      return ladder_weights(forecast, anchors, step);
  }
}

}  // namespace dydit
