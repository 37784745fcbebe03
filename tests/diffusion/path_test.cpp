// Paths of continuous time: levels, what a prediction says of noise, image and slope, and losses, against the
// authors' code (golden/sit/paths), which counts time from noise to the image: derivatives have the other
// sign.
#include "dydit/diffusion/path.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "dydit/diffusion/losses.h"
#include "tests/support/golden.h"
#include "tests/support/random_model.h"

namespace dydit {
namespace {

using test::golden;
using test::relative_difference;

constexpr double kTolerance = 1e-4;  // theirs is float32

constexpr Path kPaths[] = {Path::Linear, Path::Gvp, Path::Vp};

Objective flow(Path path, Prediction prediction = Prediction::Velocity) {
  return {path, prediction, ModelClock::Data};
}

at::Tensor recorded(const std::string& name) { return golden("sit/paths", name).to(at::kDouble); }

// As if it were one tensor a sample: (7, 2, 2, 2) of some combination of x_t and the network's output.
at::Tensor combined(const std::vector<Combination>& of_rows, const at::Tensor& x, const at::Tensor& out) {
  at::Tensor all = at::empty_like(x);
  for (size_t b = 0; b < of_rows.size(); ++b) {
    const auto row = static_cast<int64_t>(b);
    all[row].copy_(of_rows[b].x * x[row] + of_rows[b].out * out[row]);
  }
  return all;
}

class Paths : public testing::TestWithParam<Path> {
 protected:
  at::Tensor of_path(const std::string& name) const {
    return recorded(fmt::format("{}.{}", kPathNames[{GetParam(), ModelClock::Data}], name));
  }
  std::vector<NoiseLevel> levels() const {
    const at::Tensor t = recorded("t");
    std::vector<NoiseLevel> levels;
    for (int64_t b = 0; b < t.numel(); ++b) levels.push_back(level_at(GetParam(), 1 - t[b].item<double>()));
    return levels;
  }
  // What `of_level` makes of the recorded states and outputs.
  template <typename OfLevel>
  at::Tensor made(const OfLevel& of_level) const {
    std::vector<Combination> rows;
    for (const NoiseLevel& level : levels()) rows.push_back(of_level(level));
    return combined(rows, of_path("x_t"), recorded("model_output"));
  }
  at::Tensor made_scores(Prediction prediction) const {
    return made([&](const NoiseLevel& level) {
      return (-1 / level.sigma) * noise_of(flow(GetParam(), prediction), level);
    });
  }
  at::Tensor made_drift(Prediction prediction) const {
    return made([&](const NoiseLevel& level) { return -1 * slope_of(flow(GetParam(), prediction), level); });
  }
  // Each sample by itself: its values differ in size by powers of ten from those of others.
  static void expect_near(const at::Tensor& got, const at::Tensor& wanted) {
    ASSERT_EQ(got.size(0), wanted.size(0));
    for (int64_t b = 0; b < got.size(0); ++b)
      EXPECT_LT(relative_difference(got[b], wanted[b]), kTolerance) << "sample " << b;
  }
};
INSTANTIATE_TEST_SUITE_P(All, Paths, testing::ValuesIn(kPaths), [](const auto& info) {
  return std::string(kPathNames[{info.param, ModelClock::Data}]);
});

TEST_P(Paths, LevelsAreTheAuthors) {
  const std::vector<NoiseLevel> got = levels();
  const at::Tensor alpha = of_path("alpha"), sigma = of_path("sigma"), d_alpha = of_path("d_alpha"),
                   d_sigma = of_path("d_sigma");
  ASSERT_EQ(static_cast<int64_t>(got.size()), alpha.numel());
  for (size_t b = 0; b < got.size(); ++b) {
    const auto expect_near = [&](double value, const at::Tensor& all) {
      const double wanted = all[static_cast<int64_t>(b)].item<double>();
      EXPECT_NEAR(value, wanted, kTolerance * std::abs(wanted)) << "sample " << b;
    };
    expect_near(got[b].alpha, alpha);
    expect_near(got[b].sigma, sigma);
    expect_near(-got[b].d_alpha, d_alpha);
    expect_near(-got[b].d_sigma, d_sigma);
  }
}

TEST_P(Paths, HalfTheSquaredDiffusionIsTheAuthors) {
  const at::Tensor wanted = of_path("half_g2").flatten();
  const std::vector<NoiseLevel> at = levels();
  for (size_t b = 0; b < at.size(); ++b) {
    const double of_sample = wanted[static_cast<int64_t>(b)].item<double>();
    EXPECT_NEAR(half_squared_diffusion(GetParam(), at[b]), of_sample, kTolerance * of_sample);
  }
}

TEST_P(Paths, NoiseInAVelocityIsTheAuthors) {
  expect_near(made([&](const NoiseLevel& level) { return noise_of(flow(GetParam()), level); }),
              of_path("noise_from_velocity"));
}

TEST_P(Paths, ScoresAreTheAuthors) {
  expect_near(made_scores(Prediction::Velocity), of_path("score_from_velocity"));
  expect_near(made_scores(Prediction::Velocity), of_path("velocity.score"));
  expect_near(made_scores(Prediction::Noise), of_path("noise.score"));
}

TEST_P(Paths, SlopesAreTheAuthorsDrifts) {
  expect_near(made_drift(Prediction::Velocity), of_path("velocity.ode_drift"));
  expect_near(made_drift(Prediction::Noise), of_path("noise.ode_drift"));
}

TEST_P(Paths, StatesAreTheAuthors) {
  const at::Tensor x_t = q_sample(golden("sit/paths", "data"), golden("sit/paths", "t"),
                                  golden("sit/paths", "noise"), flow(GetParam()));
  expect_near(x_t.to(at::kDouble), of_path("x_t"));
}

TEST_P(Paths, LossesAreTheAuthors) {
  const at::Tensor data = golden("sit/paths", "data"), noise = golden("sit/paths", "noise"),
                   t = golden("sit/paths", "t"), output = golden("sit/paths", "model_output");
  for (const Prediction prediction : {Prediction::Velocity, Prediction::Noise}) {
    const Objective objective = flow(GetParam(), prediction);
    const DiffusionLoss loss =
        diffusion_loss(output, data, q_sample(data, t, noise, objective), t, noise, objective);
    expect_near(loss.mse.to(at::kDouble), of_path(fmt::format("{}.loss", kPredictionNames[prediction])));
    EXPECT_TRUE(at::equal(loss.vb, at::zeros_like(loss.vb)));
  }
}

TEST_P(Paths, LossLooksAtTheFirstChannelsAlone) {
  const at::Tensor data = golden("sit/paths", "data"), noise = golden("sit/paths", "noise"),
                   t = golden("sit/paths", "t"), output = golden("sit/paths", "model_output");
  const Objective objective = flow(GetParam());
  const at::Tensor x_t = q_sample(data, t, noise, objective);
  const at::Tensor twice = at::cat({output, at::full_like(output, 1e9)}, 1);
  EXPECT_TRUE(at::equal(diffusion_loss(twice, data, x_t, t, noise, objective).mse,
                        diffusion_loss(output, data, x_t, t, noise, objective).mse));
}

// Shares from next to the image to next to noise.
const std::vector<double> kInside = {1e-3, 0.02, 0.25, 0.5, 0.618, 0.9, 0.999};

// `got` is wanted_x x + wanted_out out.
void expect_combination(const Combination& got, const Combination& wanted, const std::string& where) {
  const double size = std::max({1.0, std::abs(wanted.x), std::abs(wanted.out)});
  EXPECT_NEAR(got.x, wanted.x, 1e-9 * size) << where;
  EXPECT_NEAR(got.out, wanted.out, 1e-9 * size) << where;
}

TEST_P(Paths, ImageAndNoiseMakeTheStateAgain) {
  for (const Prediction prediction : {Prediction::Velocity, Prediction::Noise}) {
    for (const double share : kInside) {
      const NoiseLevel at = level_at(GetParam(), share);
      const Objective objective = flow(GetParam(), prediction);
      expect_combination(at.alpha * image_of(objective, at) + at.sigma * noise_of(objective, at), {1, 0},
                         fmt::format("{}, share {}", kPredictionNames[prediction], share));
    }
  }
}

TEST_P(Paths, SlopeIsWhatImageAndNoiseMove) {
  for (const Prediction prediction : {Prediction::Velocity, Prediction::Noise}) {
    for (const double share : kInside) {
      const NoiseLevel at = level_at(GetParam(), share);
      const Objective objective = flow(GetParam(), prediction);
      expect_combination(at.d_alpha * image_of(objective, at) + at.d_sigma * noise_of(objective, at),
                         slope_of(objective, at),
                         fmt::format("{}, share {}", kPredictionNames[prediction], share));
    }
  }
}

TEST_P(Paths, DerivativesAreThoseOfTheLevels) {
  constexpr double kStep = 1e-6;
  for (const double share : {0.1, 0.5, 0.9}) {
    const NoiseLevel at = level_at(GetParam(), share), before = level_at(GetParam(), share - kStep),
                     after = level_at(GetParam(), share + kStep);
    EXPECT_NEAR(at.d_alpha, (after.alpha - before.alpha) / (2 * kStep), 1e-6) << share;
    EXPECT_NEAR(at.d_sigma, (after.sigma - before.sigma) / (2 * kStep), 1e-6) << share;
  }
}

bool is_finite(const Combination& of) { return std::isfinite(of.x) && std::isfinite(of.out); }

TEST_P(Paths, AVelocityIsKnownAtBothEnds) {
  for (const double share : {0.0, 1.0}) {
    if (GetParam() == Path::Vp && share == 0) continue;  // whose sigma rises infinitely fast there
    const NoiseLevel at = level_at(GetParam(), share);
    EXPECT_TRUE(is_finite(noise_of(flow(GetParam()), at))) << share;
    EXPECT_TRUE(is_finite(image_of(flow(GetParam()), at))) << share;
    EXPECT_TRUE(is_finite(slope_of(flow(GetParam()), at))) << share;
  }
}

TEST(LinearPath, HasTheClosedFormsOfSiT) {
  for (const double t : {0.0, 0.2, 0.7, 1.0}) {
    const NoiseLevel at = level_at(Path::Linear, 1 - t);
    expect_combination(image_of(flow(Path::Linear), at), {1, 1 - t}, fmt::format("image at {}", t));
    expect_combination(noise_of(flow(Path::Linear), at), {1, -t}, fmt::format("noise at {}", t));
  }
}

TEST(LinearPath, ReversedIsTheOtherSignOfAVelocity) {
  const Objective sit = flow(Path::Linear), repa = {Path::Linear, Prediction::Velocity, ModelClock::Noise};
  for (const double share : {0.0, 0.3, 1.0}) {
    const NoiseLevel at = level_at(Path::Linear, share);
    for (const auto of : {image_of, noise_of, slope_of}) {
      const Combination forward = of(sit, at);
      expect_combination(of(repa, at), {forward.x, -forward.out}, fmt::format("share {}", share));
    }
  }
}

TEST(GvpPath, IsAQuarterTurn) {
  for (const double share : {0.0, 1.0 / 3, 0.5, 1.0}) {
    const NoiseLevel at = level_at(Path::Gvp, share);
    EXPECT_NEAR(at.alpha, std::cos(share * std::numbers::pi / 2), 1e-15);
    EXPECT_NEAR(at.alpha * at.alpha + at.sigma * at.sigma, 1, 1e-15);
  }
}

// exp(-(0.1 s + 9.95 s^2)) is the share of the image's variance that is left. (U-ViT's code)
TEST(VpPath, IsTheSdeOfUViT) {
  for (const double share : {1e-4, 0.1, 0.5, 1.0}) {
    const NoiseLevel at = level_at(Path::Vp, share);
    const double a = std::exp(-(0.1 * share + 9.95 * share * share));
    EXPECT_NEAR(at.alpha * at.alpha, a, 1e-14);
    EXPECT_NEAR(at.sigma * at.sigma, 1 - a, 1e-14);
    EXPECT_NEAR(half_squared_diffusion(Path::Vp, at), (0.1 + 19.9 * share) / 2, 1e-14);
  }
}

TEST(TrainingShares, LeaveOutWhereThereIsNothingToLearn) {
  const auto expect_shares = [](Path path, Prediction prediction, double least, double most) {
    const ShareInterval shares = training_shares(flow(path, prediction));
    EXPECT_EQ(shares.least, least) << kPredictionNames[prediction];
    EXPECT_EQ(shares.most, most) << kPredictionNames[prediction];
  };
  expect_shares(Path::Linear, Prediction::Velocity, 0, 1);
  expect_shares(Path::Gvp, Prediction::Velocity, 0, 1);
  expect_shares(Path::Vp, Prediction::Velocity, 1e-5, 1);
  expect_shares(Path::Linear, Prediction::Noise, 0.001, 0.999);
  expect_shares(Path::Gvp, Prediction::Noise, 0.001, 0.999);
}

TEST(Clocks, GoBothWays) {
  for (const auto& entry : kPathNames.entries) {
    const Objective objective = {entry.value.path, Prediction::Noise, entry.value.clock};
    for (const double share : {0.0, 0.25, 0.5, 0.999}) {
      const double time = time_at(objective, share);
      EXPECT_TRUE(is_time(objective, time)) << entry.name;
      EXPECT_NEAR(noise_share(objective, time), share, 1e-12) << entry.name;
    }
  }
}

TEST(Clocks, CountWhatTheNetworkIsGiven) {
  EXPECT_EQ(time_at({Path::Linear, Prediction::Velocity, ModelClock::Data}, 0.25), 0.75);
  EXPECT_EQ(time_at({Path::Linear, Prediction::Velocity, ModelClock::Noise}, 0.25), 0.25);
  EXPECT_EQ(time_at({Path::Vp, Prediction::Noise, ModelClock::Scaled}, 0.5), 499.5);
  EXPECT_EQ(time_at({}, 0.25), 250);
}

TEST(Clocks, OfATableTakeWholeStepsAlone) {
  EXPECT_TRUE(is_time({}, 999));
  EXPECT_FALSE(is_time({}, 7.5));
  EXPECT_FALSE(is_time({}, 1000));
  EXPECT_TRUE(is_time({Path::Vp, Prediction::Noise, ModelClock::Scaled}, 7.5));
  EXPECT_FALSE(is_time({Path::Linear, Prediction::Velocity, ModelClock::Data}, 1.5));
  EXPECT_FALSE(is_time({Path::Linear, Prediction::Velocity, ModelClock::Data}, std::nan("")));
}

}  // namespace
}  // namespace dydit
