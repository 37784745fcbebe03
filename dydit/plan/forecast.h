// Forecasts of a feature from the last ones computed: a linear combination whose weights depend on step
// indices alone, so that reuse and all of the field's extrapolations are one operation.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "dydit/base/enum_names.h"

namespace dydit {

inline constexpr int kMaxOrder = 4;

/// Taylor: TaylorSeer's ladder of backward differences (Liu et al. 2025, eq. 6). Lagrange: the polynomial
/// through the last order + 1 features. Chebyshev: barycentric with weights (-1)^j, halved at both ends
/// (ChebBooster). Hermite: Taylor with d^i replaced by sigma^i H_i(sigma d) (HiCache). Order 0 is reuse in
/// all, and all but Hermite agree at order 1.
enum class ForecastKind { Taylor, Lagrange, Chebyshev, Hermite };
inline constexpr EnumNames<ForecastKind, 4> kForecastNames = {"forecast",
                                                              {{"taylor", ForecastKind::Taylor},
                                                               {"lagrange", ForecastKind::Lagrange},
                                                               {"chebyshev", ForecastKind::Chebyshev},
                                                               {"hermite", ForecastKind::Hermite}}};

struct Forecast {
  ForecastKind kind = ForecastKind::Taylor;
  double sigma = 0.5;  // of Hermite

  bool operator==(const Forecast&) const = default;
};

/// "taylor", "hermite:0.5". Throws UsageError for others.
Forecast parse_forecast(const std::string& text);
std::string forecast_text(const Forecast& forecast);

/// Weights (at most order + 1, no more than there are anchors) of the features computed at steps `anchors`,
/// the newest first, for their value at `step`. All are indices of steps, which fall from step to step.
std::vector<double> forecast_weights(const Forecast& forecast, std::span<const int> anchors, int step,
                                     int order);

}  // namespace dydit
