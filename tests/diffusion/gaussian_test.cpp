// Tables and single reverse steps, against the golden tables and the equations written out by hand.
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "dydit/base/error.h"
#include "dydit/diffusion/schedule.h"
#include "dydit/diffusion/solver.h"
#include "tests/support/files.h"
#include "tests/support/golden.h"

namespace dydit {
namespace {

using test::golden_doubles;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

void expect_near(const std::vector<double>& got, const std::string& name) {
  const std::vector<double> wanted = golden_doubles("diffusion", name);
  ASSERT_EQ(got.size(), wanted.size()) << name;
  for (size_t i = 0; i < got.size(); ++i) {
    // Products in another order move the last digits; near t = 0, 1 - a loses as many as it has zeros.
    EXPECT_NEAR(got[i], wanted[i], 1e-11 * std::max(1.0, std::abs(wanted[i]))) << name << "[" << i << "]";
  }
}

DiffusionTables tables_of(int steps) { return make_diffusion_tables(even_timesteps(steps)); }

// x after one step; every vector holds one value a pixel.
std::vector<float> ddpm(const DiffusionTables& tables, int step, std::vector<float> x,
                        const std::vector<float>& eps, const std::vector<float>& variance,
                        const std::vector<float>& noise) {
  apply_step(make_solver_step(tables, {SamplerKind::Ddpm, 0}, step), {x, eps, variance, noise});
  return x;
}

std::vector<float> ddim(const DiffusionTables& tables, int step, float eta, std::vector<float> x,
                        const std::vector<float>& eps, const std::vector<float>& noise) {
  apply_step(make_solver_step(tables, {SamplerKind::Ddim, eta}, step), {x, eps, {}, noise});
  return x;
}

// Mean of the DDPM step, in double.
double ddpm_mean(const DiffusionTables& tables, int step, double x, double eps) {
  const double a = tables.alphas_cumprod[step];
  const double x0 = std::sqrt(1 / a) * x - std::sqrt(1 / a - 1) * eps;
  return tables.posterior_mean_coef1[step] * x0 + tables.posterior_mean_coef2[step] * x;
}

TEST(DiffusionTables, OfAllStepsAreTheOriginals) {
  const DiffusionTables tables = tables_of(1000);
  expect_near(tables.betas, "betas");
  expect_near(tables.alphas_cumprod, "alphas_cumprod");
  expect_near(tables.sqrt_recip_alphas_cumprod, "sqrt_recip_alphas_cumprod");
  expect_near(tables.sqrt_recipm1_alphas_cumprod, "sqrt_recipm1_alphas_cumprod");
  expect_near(tables.posterior_variance, "posterior_variance");
  expect_near(tables.posterior_log_variance_clipped, "posterior_log_variance_clipped");
  expect_near(tables.posterior_mean_coef1, "posterior_mean_coef1");
  expect_near(tables.posterior_mean_coef2, "posterior_mean_coef2");
}

TEST(DiffusionTables, RespacedBetasAreTheOriginals) {
  expect_near(tables_of(20).betas, "betas_20");
  expect_near(make_diffusion_tables(strided_timesteps(20)).betas, "betas_ddim20");
  expect_near(make_diffusion_tables(strided_timesteps(10)).betas, "betas_ddim10");
}

TEST(DiffusionTables, KeptStepsKeepTheirNoiseLevel) {
  const DiffusionTables all = tables_of(1000), some = tables_of(20);
  for (int i = 0; i < 20; ++i) {
    const double wanted = all.alphas_cumprod[some.timesteps[i]];
    EXPECT_NEAR(some.alphas_cumprod[i], wanted, 1e-13 * wanted + 1e-16);
  }
}

TEST(DdpmStep, FixedVarianceIsBeta) {
  const DiffusionTables tables = tables_of(20);
  const double wanted = ddpm_mean(tables, 7, 0.3, -0.4) + std::sqrt(tables.betas[7]) * 1.7;
  EXPECT_NEAR(ddpm(tables, 7, {0.3f}, {-0.4f}, {}, {1.7f})[0], wanted, 1e-6);
}

TEST(DdpmStep, LearnedVarianceOfOneIsBeta) {
  const DiffusionTables tables = tables_of(20);
  const double wanted = ddpm_mean(tables, 7, 0.3, -0.4) + std::sqrt(tables.betas[7]) * 1.7;
  EXPECT_NEAR(ddpm(tables, 7, {0.3f}, {-0.4f}, {1.0f}, {1.7f})[0], wanted, 1e-6);
}

TEST(DdpmStep, LearnedVarianceOfMinusOneIsThePosteriors) {
  const DiffusionTables tables = tables_of(20);
  const double wanted = ddpm_mean(tables, 7, 0.3, -0.4) + std::sqrt(tables.posterior_variance[7]) * 1.7;
  EXPECT_NEAR(ddpm(tables, 7, {0.3f}, {-0.4f}, {-1.0f}, {1.7f})[0], wanted, 1e-6);
}

TEST(DdpmStep, LearnedVarianceIsInterpolatedInLogs) {
  const DiffusionTables tables = tables_of(20);
  const double variance = std::sqrt(tables.posterior_variance[7] * tables.betas[7]);
  const double wanted = ddpm_mean(tables, 7, 0.3, -0.4) + std::sqrt(variance) * 1.7;
  EXPECT_NEAR(ddpm(tables, 7, {0.3f}, {-0.4f}, {0.0f}, {1.7f})[0], wanted, 1e-6);
}

TEST(DdpmStep, AddsNoNoiseAtStep0) {
  const DiffusionTables tables = tables_of(20);
  EXPECT_NEAR(ddpm(tables, 0, {0.3f}, {-0.4f}, {0.5f}, {kNaN})[0], ddpm_mean(tables, 0, 0.3, -0.4), 1e-6);
}

TEST(DdpmStep, NeverClampsTheImage) {
  // x0 = 50 or so: a clamp to [-1, 1] would leave the mean near x.
  const DiffusionTables tables = tables_of(20);
  EXPECT_NEAR(ddpm(tables, 0, {50.0f}, {0.0f}, {}, {0.0f})[0], 50 * tables.sqrt_recip_alphas_cumprod[0],
              1e-3);
}

TEST(DdimStep, EtaZeroIgnoresNoise) {
  const DiffusionTables tables = tables_of(20);
  const double a = tables.alphas_cumprod[7], prev = tables.alphas_cumprod[6];
  const double x0 = std::sqrt(1 / a) * 0.3 - std::sqrt(1 / a - 1) * -0.4;
  const double wanted = std::sqrt(prev) * x0 + std::sqrt(1 - prev) * -0.4;
  EXPECT_NEAR(ddim(tables, 7, 0, {0.3f}, {-0.4f}, {kNaN})[0], wanted, 1e-6);
}

TEST(DdimStep, EtaOneHasThePosteriorsMeanAndVariance) {
  const DiffusionTables tables = tables_of(20);
  const double wanted = ddpm_mean(tables, 7, 0.3, -0.4) + std::sqrt(tables.posterior_variance[7]) * 1.7;
  EXPECT_NEAR(ddim(tables, 7, 1, {0.3f}, {-0.4f}, {1.7f})[0], wanted, 1e-5);
}

TEST(DdimStep, Step0GivesThePredictedImage) {
  const DiffusionTables tables = tables_of(20);
  const double a = tables.alphas_cumprod[0];
  const double x0 = std::sqrt(1 / a) * 0.3 - std::sqrt(1 / a - 1) * -0.4;
  EXPECT_NEAR(ddim(tables, 0, 1, {0.3f}, {-0.4f}, {kNaN})[0], x0, 1e-6);
}

// Every step of any sampler on these timesteps gives a number.
void expect_finite_steps(const std::vector<int>& timesteps) {
  const DiffusionTables tables = make_diffusion_tables(timesteps);
  const int last = tables.num_steps() - 1;
  for (int step = 0; step <= last; ++step) {
    std::vector<std::pair<const char*, float>> got;
    for (const float eta : {0.0f, 0.3f, 0.999f, 1.0f})
      got.emplace_back("ddim", ddim(tables, step, eta, {0.3f}, {-0.4f}, {1.7f})[0]);
    got.emplace_back("ddpm, fixed", ddpm(tables, step, {0.3f}, {-0.4f}, {}, {1.7f})[0]);
    for (const float v : {-1.0f, 1.0f})
      got.emplace_back("ddpm, learned", ddpm(tables, step, {0.3f}, {-0.4f}, {v}, {1.7f})[0]);
    std::vector<float> x = {0.3f}, eps = {-0.4f}, x0 = {0.9f};
    apply_step(make_solver_step(tables, {SamplerKind::Dpm, 0}, step),
               {.x = x, .eps = eps, .variance = {}, .noise = {}, .x0 = x0});
    got.emplace_back("dpm++", x[0]);
    for (const auto& [name, value] : got)
      ASSERT_TRUE(std::isfinite(value))
          << name << ", t " << timesteps[step] << " of " << timesteps[0] << " to " << timesteps[last];
  }
}

// With eta 1 what is left beside the noise is nearly nothing, and was below it by rounding for (0, 870) and
// others.
TEST(ReverseStep, IsFiniteForEveryPairWithASmallTimestep) {
  for (int small = 0; small < 12; ++small) {
    for (int t = small + 1; t < kNumTrainTimesteps; ++t) expect_finite_steps({small, t});
  }
}

TEST(ReverseStep, IsFiniteForNeighboursAndForOneTimestep) {
  for (int t = 0; t < kNumTrainTimesteps; ++t) expect_finite_steps({t});
  for (int t = 1; t < kNumTrainTimesteps; ++t) expect_finite_steps({t - 1, t});
  expect_finite_steps({0, 1, 2, 997, 998, 999});
}

TEST(DdimStep, EtaOneLeavesNothingOfTheNoiseThatWasPredictedAtTheEnd) {
  const DiffusionTables tables = make_diffusion_tables(std::vector<int>{0, 870});
  const double a = tables.alphas_cumprod[1], prev = tables.alphas_cumprod[0];
  const double wanted = std::sqrt(prev) * (std::sqrt(1 / a) * 0.3 - std::sqrt(1 / a - 1) * -0.4) +
                        std::sqrt(tables.posterior_variance[1]) * 1.7;
  EXPECT_NEAR(ddim(tables, 1, 1, {0.3f}, {-0.4f}, {1.7f})[0], wanted, 1e-4 * std::abs(wanted));
}

void expect_refused(const std::vector<int>& timesteps, const std::string& part) {
  EXPECT_THROW(make_diffusion_tables(timesteps), UsageError) << part;
  test::expect_error([&] { make_diffusion_tables(timesteps); }, part);
}

TEST(DiffusionTables, OfAnythingButAscendingTimestepsAreRefused) {
  expect_refused({}, "no timestep given; expected 1 to 1000");
  expect_refused({-1, 5}, "timestep -1: expected 0 to 999");
  expect_refused({5, 1000}, "timestep 1000: expected 0 to 999");
  expect_refused({5, 3}, "timestep 3 after 5: expected them ascending, each once");
  expect_refused({3, 5, 5}, "timestep 5 after 5");
}

TEST(DiffusionTables, TakeTimesOfATableThatAreWhole) {
  EXPECT_EQ(make_diffusion_tables(std::vector<double>{3, 500}).betas,
            make_diffusion_tables(std::vector<int>{3, 500}).betas);
  test::expect_error(
      [] {
        make_diffusion_tables(std::vector<double>{3, 500.5});
      },
      "timestep 500.5: a table has whole ones");
}

TEST(ReverseStep, SingleStepRunIsFinite) {
  const DiffusionTables tables = tables_of(1);
  EXPECT_TRUE(std::isfinite(tables.posterior_log_variance_clipped[0]));
  EXPECT_TRUE(std::isfinite(ddpm(tables, 0, {0.3f}, {-0.4f}, {0.5f}, {0.0f})[0]));
  EXPECT_TRUE(std::isfinite(ddim(tables, 0, 1, {0.3f}, {-0.4f}, {0.0f})[0]));
}

}  // namespace
}  // namespace dydit
