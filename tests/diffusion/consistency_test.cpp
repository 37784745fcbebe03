// LCM: grid, boundary, the two sides of the loss and the sampler. The authors' numbers are replayed by dydit
// verify.
#include "dydit/diffusion/consistency.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <vector>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "dydit/base/error.h"
#include "dydit/diffusion/gaussian.h"
#include "dydit/diffusion/lcm.h"
#include "dydit/diffusion/losses.h"
#include "dydit/diffusion/solver.h"
#include "tests/support/files.h"
#include "tests/support/random_model.h"
#include "tests/support/sampling.h"

namespace dydit {
namespace {

using test::random_tensor;

at::Tensor images(uint64_t index) { return random_tensor({3, 2, 4, 4}, /*seed=*/41, index); }

at::Tensor times(const std::vector<int64_t>& t) { return at::tensor(t, at::kLong); }

TEST(LcmTimesteps, AreOfTheGridAsDescendingIndicesSay) {
  EXPECT_EQ(lcm_timesteps(1), (std::vector<int>{999}));
  EXPECT_EQ(lcm_timesteps(4), (std::vector<int>{259, 499, 759, 999}));
  const std::vector<int> all = lcm_timesteps(kLcmGrid);
  EXPECT_EQ(all.size(), 50u);
  EXPECT_EQ(all.front(), 19);
  for (size_t i = 1; i < all.size(); ++i) EXPECT_EQ(all[i] - all[i - 1], 20);
  for (const int steps : {0, 51})
    test::expect_error([&] { lcm_timesteps(steps); }, fmt::format("--steps {}: lcm takes 1 to 50", steps));
}

TEST(LcmDraw, IsOfTheGridAndOfSeedStepAndSampleAlone) {
  std::vector<int> count(1000);
  for (int sample = 0; sample < 5000; ++sample) ++count[static_cast<size_t>(lcm_draw(3, 7, sample))];
  for (int t = 0; t < 1000; ++t) {
    if (t % 20 == 19) {
      EXPECT_NEAR(count[static_cast<size_t>(t)], 100, 45) << t;  // 4.5 standard deviations
    } else {
      EXPECT_EQ(count[static_cast<size_t>(t)], 0) << t;
    }
  }
  std::set<int> others;
  for (uint64_t k = 0; k < 8; ++k) {
    others.insert(lcm_draw(k, 7, 0));
    others.insert(lcm_draw(3, k, 0));
  }
  EXPECT_GT(others.size(), 5u);
  EXPECT_EQ(lcm_draw(3, 7, 11), lcm_draw(3, 7, 11));
}

TEST(LcmShareOf, CountsTheGrid) {
  EXPECT_DOUBLE_EQ(lcm_share_of(0, 4), 0.24);
  EXPECT_DOUBLE_EQ(lcm_share_of(1, 4), 0.26);
  EXPECT_DOUBLE_EQ(lcm_share_of(0, 1), 1);
}

TEST(Consistency, IsItsInputAtTheImage) {
  const at::Tensor x = images(0);
  EXPECT_TRUE(at::equal(lcm_consistency(x, images(1), times({0, 0, 0})), x));
}

TEST(Consistency, OfTrueNoiseIsTheImage) {
  const at::Tensor x0 = images(0), noise = images(1), t = times({19, 499, 759});
  EXPECT_LT(test::relative_difference(lcm_consistency(q_sample(x0, t, noise), noise, t), x0), 1e-4);
}

TEST(TeacherStep, OfTrueNoiseStaysOnThePath) {
  const at::Tensor x0 = images(0), noise = images(1), t = times({19, 39, 699});
  EXPECT_TRUE(at::equal(lcm_previous(t), times({0, 19, 679})));
  const at::Tensor end = lcm_teacher_step(q_sample(x0, t, noise), noise, {}, t, {});
  EXPECT_LT(test::relative_difference(end, q_sample(x0, lcm_previous(t), noise)), 1e-5);
}

TEST(TeacherStep, IsDdimOfTheGuidedNoise) {
  constexpr double kScale = 2.5;
  const at::Tensor cond = images(1), uncond = images(2);
  for (const int64_t t : {39, 499, 999}) {
    at::Tensor x = images(0);
    const at::Tensor got = lcm_teacher_step(x, cond, uncond, times({t, t, t}), at::full({1}, kScale - 1));
    const SolverStep ddim = make_solver_step(make_diffusion_tables(lcm_timesteps(kLcmGrid)),
                                             {.kind = SamplerKind::Ddim}, static_cast<int>(t / 20));
    test::reverse_step(ddim, x, (uncond + kScale * (cond - uncond)).contiguous(), {});
    EXPECT_LT(test::relative_difference(got, x), 2e-5) << t;
  }
}

TEST(ConsistencyLoss, IsTheMeanOfEachSample) {
  const at::Tensor f = images(0), g = images(1), d = (f - g).to(at::kDouble);
  const auto of = [&](ConsistencyLoss loss) { return consistency_loss(f, g, loss).to(at::kDouble); };
  EXPECT_LT(test::relative_difference(of(ConsistencyLoss::L2), d.square().flatten(1).mean(1)), 1e-6);
  const at::Tensor huber = (at::sqrt(d.square() + 1e-6) - 1e-3).flatten(1).mean(1);
  EXPECT_LT(test::relative_difference(of(ConsistencyLoss::Huber), huber), 1e-6);
  EXPECT_NEAR(consistency_loss(f, f, ConsistencyLoss::Huber).abs().max().item<float>(), 0, 1e-9);
}

TEST(LcmSampler, PutsFreshNoiseOnTheImageThatItPredicts) {
  const SamplerOptions lcm = {.kind = SamplerKind::Lcm};
  const Spacing spacing = choose_timesteps({}, lcm, 4);
  EXPECT_EQ(spacing.timesteps, (std::vector<double>{259, 499, 759, 999}));
  const Solver solver = make_solver({}, lcm, spacing.timesteps);
  const at::Tensor eps = images(1), noise = images(2);
  for (int step = 3; step >= 0; --step) {
    at::Tensor x = images(0);
    const auto t = static_cast<int64_t>(spacing.timesteps[static_cast<size_t>(step)]);
    at::Tensor wanted = lcm_consistency(x, eps, times({t, t, t}));
    if (step > 0) {
      const auto next = static_cast<int64_t>(spacing.timesteps[static_cast<size_t>(step - 1)]);
      wanted = q_sample(wanted, times({next, next, next}), noise);
    }
    EXPECT_EQ(solver.steps[static_cast<size_t>(step)].noisy, step > 0);
    test::reverse_step(solver.steps[static_cast<size_t>(step)], x, eps.clone(), noise);
    EXPECT_LT(test::relative_difference(x, wanted), 1e-5) << step;
  }
}

TEST(LcmSampler, HeedsNoLearnedVariance) {
  const SamplerOptions lcm = {.kind = SamplerKind::Lcm};
  const Solver solver = make_solver({}, lcm, choose_timesteps({}, lcm, 4).timesteps);
  for (const SolverStep& step : solver.steps) EXPECT_FALSE(step.learns_sigma);
}

TEST(LcmSampler, IsOfTheBetasAndNamedForNoObjective) {
  const std::vector<std::string> names = samplers_of(Objective());
  EXPECT_EQ(std::count(names.begin(), names.end(), "lcm"), 0);
  const Objective sit = {Path::Linear, Prediction::Velocity, ModelClock::Data};
  test::expect_error([&] { check_sampler(sit, {.kind = SamplerKind::Lcm}); },
                     "sampler lcm: is for distilled models");
}

}  // namespace
}  // namespace dydit
