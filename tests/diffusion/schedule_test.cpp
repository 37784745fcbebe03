// The betas and the two respacings, against the original's.
#include "dydit/diffusion/schedule.h"

#include <cmath>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "dydit/base/error.h"
#include "dydit/diffusion/solver.h"
#include "tests/support/files.h"
#include "tests/support/golden.h"

namespace dydit {
namespace {

using test::expect_error;
using test::golden_ints;

std::vector<double> as_times(const std::vector<int>& timesteps) {
  return {timesteps.begin(), timesteps.end()};
}

TEST(Schedule, BetasRunLinearlyBetweenTheirEnds) {
  const std::vector<double> betas = linear_betas();
  ASSERT_EQ(betas.size(), 1000u);
  EXPECT_EQ(betas.front(), 1e-4);
  EXPECT_EQ(betas.back(), 2e-2);
  EXPECT_NEAR(betas[1] - betas[0], (2e-2 - 1e-4) / 999, 1e-15);
  EXPECT_NEAR(betas[500], 1e-4 + 500 * (2e-2 - 1e-4) / 999, 1e-15);
}

TEST(EvenTimesteps, OneStepIsTheImageEnd) { EXPECT_EQ(even_timesteps(1), (std::vector<int>{0})); }
TEST(EvenTimesteps, TwoStepsAreTheEnds) { EXPECT_EQ(even_timesteps(2), (std::vector<int>{0, 999})); }

TEST(EvenTimesteps, HalvesAreRoundedToEven) {
  EXPECT_EQ(even_timesteps(3), (std::vector<int>{0, 500, 999}));            // 499.5
  EXPECT_EQ(even_timesteps(5), (std::vector<int>{0, 250, 500, 749, 999}));  // 249.75, 499.5, 749.25
}

TEST(EvenTimesteps, AThousandStepsAreAllOfThem) {
  const std::vector<int> timesteps = even_timesteps(1000);
  ASSERT_EQ(timesteps.size(), 1000u);
  for (int t = 0; t < 1000; ++t) EXPECT_EQ(timesteps[t], t);
}

TEST(EvenTimesteps, AreTheOriginalsOfTheGoldenFile) {
  for (int steps : {7, 20, 21, 100, 250}) {
    EXPECT_EQ(even_timesteps(steps), golden_ints("diffusion", fmt::format("timesteps_{}", steps))) << steps;
  }
}

TEST(EvenTimesteps, DifferFromRoundedMultiplesFor283Counts) {
  int differ = 0;
  for (int n = 2; n <= 1000; ++n) {
    const std::vector<int> timesteps = even_timesteps(n);
    bool same = true;
    for (int i = 0; i < n; ++i) same = same && timesteps[i] == std::nearbyint(i * 999.0 / (n - 1));
    differ += !same;
  }
  EXPECT_EQ(differ, 283);
}

TEST(EvenTimesteps, AscendFrom0To999ForEveryCount) {
  for (int n = 2; n <= 1000; ++n) {
    const std::vector<int> timesteps = even_timesteps(n);
    ASSERT_EQ(timesteps.size(), static_cast<size_t>(n));
    EXPECT_EQ(timesteps.front(), 0);
    EXPECT_EQ(timesteps.back(), 999);
    for (int i = 1; i < n; ++i) ASSERT_LT(timesteps[i - 1], timesteps[i]) << n;
  }
}

TEST(EvenTimesteps, CountOutside1To1000IsRefused) {
  for (const int steps : {0, 1001}) {
    EXPECT_THROW(even_timesteps(steps), UsageError);
    expect_error([&] { even_timesteps(steps); }, fmt::format("--steps {}: expected 1 to 1000", steps));
  }
}

TEST(StridedTimesteps, WorkFor62Counts) {
  int work = 0;
  for (int n = 1; n <= 1000; ++n) work += !strided_timesteps(n).empty();
  EXPECT_EQ(work, 62);
}

TEST(StridedTimesteps, AreTheOriginalsOfTheGoldenFile) {
  for (int steps : {20, 50}) {
    EXPECT_EQ(strided_timesteps(steps), golden_ints("diffusion", fmt::format("timesteps_ddim{}", steps)));
  }
}

TEST(StridedTimesteps, TakeTheSmallestStride) {
  // Strides 250 to 333 all give 4 timesteps.
  EXPECT_EQ(strided_timesteps(4), (std::vector<int>{0, 250, 500, 750}));
}

TEST(StridedTimesteps, CountOutside1To1000IsRefused) {
  EXPECT_THROW(strided_timesteps(0), UsageError);
  EXPECT_THROW(strided_timesteps(1001), UsageError);
}

TEST(ChooseTimesteps, DdpmTakesEvenSections) {
  const Spacing spacing = choose_timesteps(SamplerKind::Ddpm, 50);
  EXPECT_EQ(spacing.timesteps, as_times(even_timesteps(50)));
  EXPECT_EQ(spacing.description, "even sections");
}

TEST(ChooseTimesteps, DdimTakesTheFixedStride) {
  const Spacing spacing = choose_timesteps(SamplerKind::Ddim, 50);
  EXPECT_EQ(spacing.timesteps, as_times(strided_timesteps(50)));
  EXPECT_EQ(spacing.description, "fixed stride 20");
}

TEST(ChooseTimesteps, DdimWithoutAStrideSaysThatItTakesEvenSections) {
  ASSERT_TRUE(strided_timesteps(999).empty());
  const Spacing spacing = choose_timesteps(SamplerKind::Ddim, 999);
  EXPECT_EQ(spacing.timesteps, as_times(even_timesteps(999)));
  EXPECT_EQ(spacing.description, "even sections (no fixed stride gives 999 steps)");
}

TEST(LinspaceTimesteps, EndsAt999WithoutZero) {
  EXPECT_EQ(linspace_timesteps(1), (std::vector<int>{999}));
  EXPECT_EQ(linspace_timesteps(3), (std::vector<int>{333, 666, 999}));
}

TEST(LinspaceTimesteps, MoreStepsThanDistinctTimestepsAreRefused) {
  EXPECT_EQ(linspace_timesteps(999).size(), 999u);
  for (const int steps : {1000, 0}) {
    EXPECT_THROW(linspace_timesteps(steps), UsageError);
    expect_error([&] { linspace_timesteps(steps); }, fmt::format("--steps {}: dpm++ takes 1 to 999", steps));
  }
}

TEST(SortedTimesteps, TakesAnyOrder) {
  EXPECT_EQ(sorted_timesteps({40, 999, 0}), (std::vector<double>{0, 40, 999}));
}

TEST(SortedTimesteps, RefusesWhatNoRunCanVisit) {
  const auto expect_refused = [](const std::vector<double>& timesteps, const std::string& message) {
    EXPECT_THROW(sorted_timesteps(timesteps), UsageError);
    expect_error([&] { sorted_timesteps(timesteps); }, message);
  };
  expect_refused({}, "--timesteps: expected at least one");
  expect_refused({5, -1}, "--timesteps: -1 is outside 0 to 999");
  expect_refused({5, 1000}, "--timesteps: 1000 is outside 0 to 999");
  expect_refused({5, 7, 5}, "--timesteps: 5 is given twice");
  expect_refused({5, 7.5}, "--timesteps: 7.5 is no whole number");
}

}  // namespace
}  // namespace dydit
