// How training draws t: SpeeD's tables against formulas of its paper written out once more, and the shares
// that each way really draws. The recorded tables of its authors are replayed by `dydit verify`.
#include "dydit/diffusion/timestep_draw.h"

#include <cmath>
#include <numeric>
#include <set>
#include <vector>

#include <gtest/gtest.h>

#include "dydit/base/error.h"

namespace dydit {
namespace {

constexpr Objective kVelocity = {Path::Linear, Prediction::Velocity, ModelClock::Data};

// Shares of the quarters of the noise share among many draws.
std::vector<double> drawn_shares(const TimestepOptions& options, const Objective& objective) {
  const TimestepSampler sampler(options, objective);
  constexpr int kSteps = 400, kBatch = 64;
  std::vector<double> shares(4, 0.0);
  for (uint64_t step = 0; step < kSteps; ++step) {
    for (int sample = 0; sample < kBatch; ++sample) {
      const double time = sampler.time(7, step, sample);
      EXPECT_TRUE(is_time(objective, time)) << time;
      shares[std::min(3, static_cast<int>(4 * noise_share(objective, time)))] += 1.0 / (kSteps * kBatch);
    }
  }
  return shares;
}

void expect_shares(const std::vector<double>& got, const std::vector<double>& want) {
  for (size_t q = 0; q < want.size(); ++q) EXPECT_NEAR(got[q], want[q], 0.012) << "quarter " << q;
}

TEST(TimestepDraw, SpeedDrawsItsPublishedShares) {
  expect_shares(drawn_shares({.draw = TimestepDraw::Speed}, {}), {0.392, 0.343, 0.232, 0.033});
  expect_shares(drawn_shares({.draw = TimestepDraw::Speed, .k = 1}, {}), {0.375, 0.304, 0.197, 0.125});
}

TEST(TimestepDraw, SpeedPairsEachSampleWithItsMirror) {
  const TimestepOptions options = {.draw = TimestepDraw::Speed};
  const SpeedTable table = speed_table(options);
  EXPECT_EQ(table.mirror[0], 642);
  EXPECT_EQ(table.mirror[642], 0);
  EXPECT_EQ(table.mirror[999], 357);
  const TimestepSampler sampler(options, {});
  for (int sample = 0; sample < 64; sample += 2)
    EXPECT_EQ(sampler.time(3, 9, sample + 1), table.mirror[static_cast<size_t>(sampler.time(3, 9, sample))]);
}

TEST(TimestepDraw, SpeedWeighsAsPublished) {
  const SpeedTable table = speed_table({.draw = TimestepDraw::Speed});
  EXPECT_NEAR(table.loss_weight[0], 0.409, 5e-4);
  EXPECT_NEAR(table.loss_weight[219], 0.6, 1e-12);  // where it changes fastest
  EXPECT_NEAR(table.loss_weight[699], 0.407, 5e-4);
  EXPECT_EQ(table.loss_weight[700], 1);
  EXPECT_NEAR(std::accumulate(table.loss_weight.begin(), table.loss_weight.end(), 0.0) / 1000, 0.653, 5e-4);
  const TimestepSampler sampler({.draw = TimestepDraw::Speed}, {});
  double variance = 0;
  for (int t = 0; t < 1000; ++t) variance += table.marginal[t] * std::pow(sampler.visits(t) - 1, 2);
  EXPECT_NEAR(variance, 1.82, 0.005);
}

TEST(TimestepDraw, SpeedReachesBothEnds) {
  EXPECT_EQ(speed_timestep({}, 1e-9), 0);
  EXPECT_EQ(speed_timestep({}, 1 - 1e-9), 999);
  EXPECT_EQ(speed_timestep({.tau = 1000}, 1 - 1e-9), 999);
}

TEST(TimestepDraw, SpeedIsOfTheTableAlone) {
  EXPECT_THROW(TimestepSampler({.draw = TimestepDraw::Speed}, kVelocity), UsageError);
}

TEST(TimestepDraw, StratifiedAndUniformAreEven) {
  for (const Objective& objective : {Objective(), kVelocity}) {
    expect_shares(drawn_shares({}, objective), {0.25, 0.25, 0.25, 0.25});
    expect_shares(drawn_shares({.draw = TimestepDraw::Uniform}, objective), {0.25, 0.25, 0.25, 0.25});
  }
  const TimestepSampler stratified({}, {}), uniform({.draw = TimestepDraw::Uniform}, {});
  std::set<int> strata, free;
  for (int sample = 0; sample < 200; sample += 4) {
    strata.insert(static_cast<int>(stratified.time(1, 1, sample)) / 250);
    free.insert(static_cast<int>(uniform.time(1, 1, sample)) / 250);
  }
  EXPECT_EQ(strata.size(), 1u);
  EXPECT_EQ(free.size(), 4u);
}

TEST(TimestepDraw, LogitNormalDrawsTheSharesThatItTells) {
  const TimestepOptions options = {.draw = TimestepDraw::LogitNormal, .logit_mean = -0.5, .logit_std = 0.8};
  for (const Objective& objective : {Objective(), kVelocity}) {
    const TimestepSampler sampler(options, objective);
    std::vector<double> told;
    for (int q = 0; q < 4; ++q) told.push_back(sampler.share_of(q, 4));
    EXPECT_NEAR(std::accumulate(told.begin(), told.end(), 0.0), 1, 1e-12);
    EXPECT_LT(told[3], 0.1);  // the mean lies on the side of the image
    expect_shares(drawn_shares(options, objective), told);
  }
}

}  // namespace
}  // namespace dydit
