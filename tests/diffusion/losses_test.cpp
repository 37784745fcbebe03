// The diffusion loss against a plain double loop over the formulas of DDPM and improved DDPM.
#include "dydit/diffusion/losses.h"

#include <cmath>
#include <numbers>

#include <gtest/gtest.h>
#include <torch/torch.h>

#include "tests/support/random_model.h"

namespace dydit {
namespace {

constexpr int kC = 2, kSide = 4, kPixels = kC * kSide * kSide;

// beta_t and the product of 1 - beta up to t, from the definition.
double beta(int t) { return 1e-4 + (2e-2 - 1e-4) * t / 999.0; }
double alpha_product(int t) {
  double product = 1;
  for (int s = 0; s <= t; ++s) product *= 1 - beta(s);
  return product;
}
double posterior_variance(int t) {
  return beta(t) * (t > 0 ? 1 - alpha_product(t - 1) : 0.0) / (1 - alpha_product(t));
}

double cdf(double x) {
  return 0.5 * (1 + std::tanh(std::sqrt(2 / std::numbers::pi) * (x + 0.044715 * x * x * x)));
}

struct Pixel {
  double x0, noise, eps, v;
};

double log_variance(const Pixel& p, int t) {
  const double low = std::log(posterior_variance(std::max(t, 1))), high = std::log(beta(t));
  const double fraction = (p.v + 1) / 2;
  return fraction * high + (1 - fraction) * low;
}

// Mean of the posterior q(x_{t-1} | x_t, x0).
double posterior_mean(double x0, double x_t, int t) {
  const double before = t > 0 ? alpha_product(t - 1) : 1.0, now = alpha_product(t);
  return beta(t) * std::sqrt(before) / (1 - now) * x0 +
         (1 - before) * std::sqrt(1 - beta(t)) / (1 - now) * x_t;
}

double noisy(const Pixel& p, int t) {
  return std::sqrt(alpha_product(t)) * p.x0 + std::sqrt(1 - alpha_product(t)) * p.noise;
}

// The bound of one value, in nats.
double bound(const Pixel& p, int t) {
  const double a = alpha_product(t), x_t = noisy(p, t);
  const double mean = posterior_mean((x_t - std::sqrt(1 - a) * p.eps) / std::sqrt(a), x_t, t);
  const double lv = log_variance(p, t);
  if (t > 0) {
    const double true_lv = std::log(posterior_variance(t)), gap = posterior_mean(p.x0, x_t, t) - mean;
    return 0.5 * (lv - true_lv - 1 + std::exp(true_lv - lv) + gap * gap * std::exp(-lv));
  }
  const double sd = std::exp(0.5 * lv), plus = cdf((p.x0 - mean + 1.0 / 255) / sd),
               minus = cdf((p.x0 - mean - 1.0 / 255) / sd);
  const double likelihood = p.x0 < -0.999 ? plus : p.x0 > 0.999 ? 1 - minus : plus - minus;
  return -std::log(std::max(likelihood, 1e-12));
}

struct Case {
  at::Tensor t, x0, noise, output;

  Pixel pixel(int64_t b, int i) const {
    const auto value = [&](const at::Tensor& tensor, int at) {
      return tensor[b].flatten()[at].item<double>();
    };
    return {value(x0, i), value(noise, i), value(output, i), value(output, kPixels + i)};
  }
};

// eps near the noise, so that the likelihood at t = 0 is not in the tails that float32 cannot resolve.
Case make_case(std::vector<int64_t> timesteps) {
  const auto B = static_cast<int64_t>(timesteps.size());
  Case c;
  c.t = at::tensor(timesteps);
  c.x0 = test::random_tensor({B, kC, kSide, kSide}, /*seed=*/1, 0).clamp(-1, 1);
  c.noise = test::random_tensor({B, kC, kSide, kSide}, /*seed=*/1, 1);
  const at::Tensor eps = c.noise + test::random_tensor({B, kC, kSide, kSide}, /*seed=*/1, 2, 0.3);
  c.output = at::cat({eps, test::random_tensor({B, kC, kSide, kSide}, /*seed=*/1, 3, 0.5)}, 1);
  return c;
}

TEST(QSample, MixesImageAndNoiseByTheSchedule) {
  const Case c = make_case({0, 1, 500, 999});
  const at::Tensor x_t = q_sample(c.x0, c.t, c.noise);
  for (int b = 0; b < 4; ++b) {
    const int t = static_cast<int>(c.t[b].item<int64_t>());
    for (int i = 0; i < kPixels; ++i) {
      EXPECT_NEAR(x_t[b].flatten()[i].item<double>(), noisy(c.pixel(b, i), t), 2e-6) << t;
    }
  }
}

TEST(DiffusionLoss, EqualsADoubleLoop) {
  const Case c = make_case({0, 0, 1, 2, 250, 700, 999});
  ASSERT_TRUE((c.x0[0] == 1).any().item<bool>());  // both open bins of t = 0 are met
  ASSERT_TRUE((c.x0[0] == -1).any().item<bool>());
  const DiffusionLoss loss = diffusion_loss(c.output, c.x0, q_sample(c.x0, c.t, c.noise), c.t, c.noise);
  ASSERT_EQ(loss.vb.sizes().vec(), std::vector<int64_t>{7});
  for (int b = 0; b < 7; ++b) {
    const int t = static_cast<int>(c.t[b].item<int64_t>());
    double mse = 0, nats = 0;
    for (int i = 0; i < kPixels; ++i) {
      const Pixel p = c.pixel(b, i);
      mse += (p.noise - p.eps) * (p.noise - p.eps) / kPixels;
      nats += bound(p, t) / kPixels;
    }
    EXPECT_NEAR(loss.mse[b].item<double>(), mse, 1e-5 * mse) << t;
    const double bits = nats / std::numbers::ln2;
    EXPECT_NEAR(loss.vb[b].item<double>(), bits, 3e-4 * std::abs(bits) + 3e-6) << t;
  }
}

TEST(DiffusionLoss, IsMseAloneWithoutLearnedSigma) {
  const Case c = make_case({0, 300});
  const at::Tensor eps = c.output.slice(1, 0, kC), x_t = q_sample(c.x0, c.t, c.noise);
  const DiffusionLoss loss = diffusion_loss(eps, c.x0, x_t, c.t, c.noise);
  EXPECT_TRUE(at::equal(loss.vb, at::zeros({2})));
  EXPECT_TRUE(at::equal(loss.mse, diffusion_loss(c.output, c.x0, x_t, c.t, c.noise).mse));
}

TEST(DiffusionLoss, TheBoundSendsNoGradientIntoTheMean) {
  const Case c = make_case({0, 5, 800});
  const at::Tensor x_t = q_sample(c.x0, c.t, c.noise);
  at::Tensor output = c.output.clone().requires_grad_();
  diffusion_loss(output, c.x0, x_t, c.t, c.noise).vb.sum().backward();
  EXPECT_EQ(output.grad().slice(1, 0, kC).abs().max().item<float>(), 0);
  for (int b = 0; b < 3; ++b) EXPECT_GT(output.grad()[b].slice(0, kC).abs().min().item<float>(), 0) << b;
}

TEST(DiffusionLoss, TheMseSendsNoGradientIntoTheVariance) {
  const Case c = make_case({0, 5, 800});
  at::Tensor output = c.output.clone().requires_grad_();
  diffusion_loss(output, c.x0, q_sample(c.x0, c.t, c.noise), c.t, c.noise).mse.sum().backward();
  EXPECT_EQ(output.grad().slice(1, kC).abs().max().item<float>(), 0);
  EXPECT_TRUE(at::allclose(output.grad().slice(1, 0, kC),
                           2.0 * (c.output.slice(1, 0, kC) - c.noise) / kPixels, 1e-4, 1e-7));
}

}  // namespace
}  // namespace dydit
