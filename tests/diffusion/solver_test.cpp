// Which steps draw, what they predict, and guidance.
#include "dydit/diffusion/solver.h"

#include <cmath>
#include <vector>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "dydit/diffusion/guidance.h"
#include "tests/support/random_model.h"
#include "tests/support/sampling.h"

namespace dydit {
namespace {

using test::random_tensor;
using test::relative_difference;
using test::sample;

std::vector<int> chosen(SamplerKind kind, int steps) {
  const std::vector<double> timesteps = choose_timesteps(kind, steps).timesteps;
  return {timesteps.begin(), timesteps.end()};
}

struct SamplerRun {
  at::Tensor x = random_tensor({2, 3, 4, 4}, 1, 0);
  std::vector<int> draws;
};

// A run whose denoiser answers 0.1 x and, with `variance_channels`, zeros for the variance.
SamplerRun run_sampler(const SamplerOptions& options, int num_steps, int variance_channels) {
  SamplerRun run;
  const DiffusionTables tables = make_diffusion_tables(chosen(options.kind, num_steps));
  sample(
      tables, options, run.x,
      [&](const at::Tensor& x, int) {
        return at::cat({0.1 * x, at::zeros({2, variance_channels, 4, 4})}, 1);
      },
      [&](at::Tensor& noise, int draw) {
        run.draws.push_back(draw);
        noise.copy_(random_tensor(noise.sizes(), 2, draw));
      });
  return run;
}

TEST(Sampler, DdpmDrawsForEveryStepButTheLast) {
  EXPECT_EQ(run_sampler({}, 4, 3).draws, (std::vector<int>{0, 1, 2}));
}

TEST(Sampler, DdimWithoutEtaDrawsNothing) {
  EXPECT_TRUE(run_sampler({SamplerKind::Ddim, 0.0f}, 4, 3).draws.empty());
}

TEST(Sampler, DdimWithEtaDrawsForEveryStepButTheLast) {
  EXPECT_EQ(run_sampler({SamplerKind::Ddim, 0.5f}, 4, 3).draws, (std::vector<int>{0, 1, 2}));
}

TEST(Sampler, DpmDrawsNothing) { EXPECT_TRUE(run_sampler({SamplerKind::Dpm, 0.0f}, 4, 3).draws.empty()); }

TEST(Sampler, GivesThePredictedImageOfEveryStepWhenAskedTo) {
  for (const SamplerKind kind : {SamplerKind::Ddpm, SamplerKind::Ddim, SamplerKind::Dpm}) {
    const DiffusionTables tables = make_diffusion_tables(chosen(kind, 4));
    at::Tensor x = random_tensor({2, 3, 4, 4}, 1, 0), wanted;
    int steps = 0;
    const auto denoise = [&](const at::Tensor& state, int step) {
      const double a = tables.alphas_cumprod[step];
      wanted = (state - std::sqrt(1 - a) * 0.1 * state) / std::sqrt(a);
      return at::mul(state, 0.1);
    };
    const auto compare = [&](int, const at::Tensor& x0) {
      ++steps;
      EXPECT_LT(relative_difference(x0, wanted), 1e-5);
    };
    sample(
        tables, {kind, 0}, x, denoise, [](at::Tensor& noise, int) { noise.zero_(); }, compare);
    EXPECT_EQ(steps, 4);
    EXPECT_LT(relative_difference(x, wanted), 1e-5);  // the last prediction is the image
  }
}

TEST(Sampler, ModelsWithoutLearnedSigmaWork) {
  const SamplerRun fixed = run_sampler({}, 4, 0), learned = run_sampler({}, 4, 3);
  EXPECT_TRUE(at::isfinite(fixed.x).all().item<bool>());
  EXPECT_GT(relative_difference(fixed.x, learned.x), 1e-3);  // beta is not the learned value
}

TEST(Sampler, OneStepRunIsFinite) {
  for (const SamplerKind kind : {SamplerKind::Ddpm, SamplerKind::Ddim, SamplerKind::Dpm}) {
    const SamplerRun run = run_sampler({kind, 1.0f}, 1, 3);
    EXPECT_TRUE(at::isfinite(run.x).all().item<bool>());
    EXPECT_TRUE(run.draws.empty());
  }
}

TEST(Guidance, GuidesTheFirstChannelsOnly) {
  const at::Tensor before = random_tensor({4, 8, 2, 2}, 3, 0);
  at::Tensor after = before.clone();
  apply_guidance(after, 4.0f, 3);
  EXPECT_TRUE(at::equal(after.slice(1, 3), before.slice(1, 3)));
}

TEST(Guidance, MovesFromUnconditionalPastConditional) {
  const at::Tensor before = random_tensor({4, 8, 2, 2}, 3, 0);
  at::Tensor after = before.clone();
  apply_guidance(after, 4.0f, 3);
  const at::Tensor cond = before.slice(0, 0, 2).slice(1, 0, 3), uncond = before.slice(0, 2, 4).slice(1, 0, 3);
  EXPECT_LT(relative_difference(after.slice(0, 0, 2).slice(1, 0, 3), uncond + 4.0 * (cond - uncond)), 1e-6);
}

TEST(Guidance, BothHalvesAreEqualThere) {
  at::Tensor out = random_tensor({4, 8, 2, 2}, 3, 0);
  apply_guidance(out, 4.0f, 3);
  EXPECT_TRUE(at::equal(out.slice(0, 0, 2).slice(1, 0, 3), out.slice(0, 2, 4).slice(1, 0, 3)));
}

}  // namespace
}  // namespace dydit
