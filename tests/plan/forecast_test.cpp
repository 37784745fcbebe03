// Weights of forecasts: what they are exact for, and those that were recorded.
#include "dydit/plan/forecast.h"

#include <cmath>
#include <functional>
#include <map>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "tests/support/files.h"
#include "tests/support/shared.h"

namespace dydit {
namespace {

using test::expect_error;
using Weights = std::vector<double>;

const std::vector<int> kAnchors = {6, 8, 11};  // uneven, the newest first

double forecast_of(const Forecast& forecast, int order, const std::function<double(int)>& feature) {
  const Weights weights = forecast_weights(forecast, kAnchors, 3, order);
  double value = 0;
  for (size_t j = 0; j < weights.size(); ++j) value += weights[j] * feature(kAnchors[j]);
  return value;
}

TEST(Forecast, OrderZeroIsTheNewestFeatureAsItIs) {
  for (const char* kind : {"taylor", "lagrange", "chebyshev", "hermite:0.5"})
    EXPECT_EQ(forecast_weights(parse_forecast(kind), kAnchors, 3, 0), Weights{1}) << kind;
}

TEST(Forecast, AllButHermiteAreExactForLinesAtOrderOne) {
  const auto line = [](int step) { return 5.0 - 2.0 * step; };
  for (const char* kind : {"taylor", "lagrange", "chebyshev"})
    EXPECT_NEAR(forecast_of(parse_forecast(kind), 1, line), line(3), 1e-12) << kind;
  EXPECT_GT(std::abs(forecast_of(parse_forecast("hermite:0.5"), 1, line) - line(3)), 1);
}

TEST(Forecast, OnlyLagrangeIsExactForParabolasAtOrderTwo) {
  const auto parabola = [](int step) { return 1.0 + step + 0.5 * step * step; };
  EXPECT_NEAR(forecast_of({ForecastKind::Lagrange}, 2, parabola), parabola(3), 1e-12);
  EXPECT_GT(std::abs(forecast_of({ForecastKind::Taylor}, 2, parabola) - parabola(3)), 0.1);
}

// By hand: F_1 = 1/2 (f_1 - f_0) and so on; d = -3.
TEST(Forecast, TaylorWalksTheLadderOfBackwardDifferences) {
  const Weights weights = forecast_weights({ForecastKind::Taylor}, kAnchors, 3, 2);
  const double d = -3, first = 1 / -2.0, second = 1 / -3.0;  // 1 / (a_0 - a_1), 1 / (a_1 - a_2)
  ASSERT_EQ(weights.size(), 3u);
  EXPECT_NEAR(weights[0], 1 + d * first + d * d / 2 * first * first, 1e-12);
  EXPECT_NEAR(weights[1], -d * first + d * d / 2 * first * (-first - second), 1e-12);
  EXPECT_NEAR(weights[2], d * d / 2 * first * second, 1e-12);
}

TEST(Forecast, ChebyshevOfEqualIntervalsIsHalvedAtItsEnds) {
  const std::vector<int> anchors = {4, 5, 6};
  const Weights weights = forecast_weights({ForecastKind::Chebyshev}, anchors, 3, 2);
  const Weights parts = {0.5 / -1, -1.0 / -2, 0.5 / -3};
  ASSERT_EQ(weights.size(), 3u);
  for (size_t j = 0; j < 3; ++j) EXPECT_NEAR(weights[j], parts[j] / (parts[0] + parts[1] + parts[2]), 1e-12);
}

TEST(Forecast, HermiteTakesPolynomialsForPowers) {
  const Weights weights = forecast_weights({ForecastKind::Hermite, 0.25}, kAnchors, 3, 1);
  const double slope = 0.25 * 2 * (0.25 * -3);  // sigma H_1(sigma d)
  ASSERT_EQ(weights.size(), 2u);
  EXPECT_NEAR(weights[0], 1 + slope / -2, 1e-12);
  EXPECT_NEAR(weights[1], slope / 2, 1e-12);
}

TEST(Forecast, WeightsAreAsManyAsThereAreAnchorsAndAddUpToOne) {
  for (const auto& entry : kForecastNames.entries) {
    for (int order = 0; order <= kMaxOrder; ++order) {
      const Weights weights = forecast_weights({entry.value}, kAnchors, 2, order);
      EXPECT_EQ(weights.size(), std::min<size_t>(order + 1, 3)) << entry.name;
      double sum = 0;
      for (const double weight : weights) sum += weight;
      EXPECT_NEAR(sum, 1, 1e-12) << entry.name << order;
    }
  }
}

TEST(Forecast, PoleOfChebyshevIsRefused) {
  const std::vector<int> anchors = {3, 4, 6};  // 1/2/3 + 1/2/6 = 1/4
  expect_error([&] { forecast_weights({ForecastKind::Chebyshev}, anchors, 0, 2); },
               "a chebyshev forecast of step 0 from the steps 3, 4, 6 has a pole there");
}

TEST(Forecast, TextNamesIt) {
  for (const char* text : {"taylor", "lagrange", "chebyshev", "hermite:0.5", "hermite:0.125"})
    EXPECT_EQ(forecast_text(parse_forecast(text)), text);
  for (const char* text : {"", "spline", "taylor:1", "hermite", "taylo\nr"})
    expect_error([&] { parse_forecast(text); },
                 "is unknown; choose from taylor, lagrange, chebyshev, hermite:SIGMA");
  for (const char* text : {"hermite:", "hermite:0", "hermite:1.5", "hermite:nan", "hermite:0.5x"})
    expect_error([&] { parse_forecast(text); }, "sigma is above 0 and at most 1");
}

TEST(Forecast, WeightsAreTheRecordedOnes) {
  const auto path = test::shared_path("golden/step_plan/forecast_weights.json");
  SKIP_WITHOUT(path);
  const auto cases = nlohmann::json::parse(test::contents(path));
  EXPECT_EQ(cases.size(), 360u);
  for (const auto& entry : cases) {
    const Forecast forecast{kForecastNames.at(entry["forecast"].get<std::string>()),
                            entry.value("sigma", 0.5)};
    const Weights weights =
        forecast_weights(forecast, entry["anchors"].get<std::vector<int>>(), entry["step"], entry["order"]);
    const auto wanted = entry["weights"].get<Weights>();
    ASSERT_EQ(weights.size(), wanted.size()) << entry;
    for (size_t j = 0; j < wanted.size(); ++j)
      EXPECT_NEAR(weights[j], wanted[j], 1e-12 * std::max(1.0, std::abs(wanted[j]))) << entry;
  }
}

}  // namespace
}  // namespace dydit
