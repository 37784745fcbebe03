// Plain loops over floats: one order of operations for every sample, so results do not depend on the batch.
#include "dydit/diffusion/gaussian.h"

#include <algorithm>
#include <cassert>
#include <cmath>

#include "dydit/base/error.h"
#include "dydit/diffusion/schedule.h"

namespace dydit {

DiffusionTables make_diffusion_tables(std::span<const int> timesteps) {
  DYDIT_USAGE_CHECK(!timesteps.empty(), "no timestep given; expected 1 to {}", kNumTrainTimesteps);
  for (size_t i = 0; i < timesteps.size(); ++i) {
    DYDIT_USAGE_CHECK(timesteps[i] >= 0 && timesteps[i] < kNumTrainTimesteps, "timestep {}: expected 0 to {}",
                      timesteps[i], kNumTrainTimesteps - 1);
    DYDIT_USAGE_CHECK(i == 0 || timesteps[i] > timesteps[i - 1],
                      "timestep {} after {}: expected them ascending, each once", timesteps[i],
                      timesteps[i - 1]);
  }
  DiffusionTables tables;
  tables.timesteps.assign(timesteps.begin(), timesteps.end());
  std::vector<double> all_cumprod = linear_betas();
  double product = 1.0;
  for (double& value : all_cumprod) value = product *= 1.0 - value;
  double previous = 1.0;
  for (const int t : timesteps) {
    const double beta = 1.0 - all_cumprod[t] / previous;
    tables.betas.push_back(beta);
    previous = all_cumprod[t];
  }
  double cumprod = 1.0;
  for (const double beta : tables.betas) {
    const double prev = cumprod, alpha = 1.0 - beta;
    cumprod *= alpha;
    tables.alphas_cumprod.push_back(cumprod);
    tables.alphas_cumprod_prev.push_back(prev);
    tables.sqrt_recip_alphas_cumprod.push_back(std::sqrt(1.0 / cumprod));
    tables.sqrt_recipm1_alphas_cumprod.push_back(std::sqrt(1.0 / cumprod - 1.0));
    tables.posterior_variance.push_back(beta * (1.0 - prev) / (1.0 - cumprod));
    tables.posterior_mean_coef1.push_back(beta * std::sqrt(prev) / (1.0 - cumprod));
    tables.posterior_mean_coef2.push_back((1.0 - prev) * std::sqrt(alpha) / (1.0 - cumprod));
  }
  for (size_t i = 0; i < tables.betas.size(); ++i) {
    // The posterior variance of entry 0 is 0; its logarithm is taken from entry 1 (a single step has none).
    const size_t source = i == 0 && tables.betas.size() > 1 ? 1 : i;
    const double variance = tables.posterior_variance[source];
    tables.posterior_log_variance_clipped.push_back(std::log(variance > 0 ? variance : tables.betas[source]));
  }
  return tables;
}

namespace {

// log var of the reverse step, element by element. Learned range: v in [-1, 1] interpolates, in logs, between
// the posterior variance and beta. Without learned values it is beta (the original's FIXED_LARGE).
class LogVariance {
 public:
  LogVariance(const DiffusionTables& tables, int step, std::span<const float> values)
      : values_(values),
        min_(static_cast<float>(tables.posterior_log_variance_clipped[step])),
        max_(static_cast<float>(std::log(tables.betas[step]))) {}

  float operator[](size_t i) const {
    if (values_.empty()) return max_;
    const float fraction = (values_[i] + 1.0f) / 2.0f;
    return fraction * max_ + (1.0f - fraction) * min_;
  }

 private:
  std::span<const float> values_;
  float min_, max_;
};

}  // namespace

void ddpm_step(const DiffusionTables& tables, int step, const StepRow& row) {
  const float recip = static_cast<float>(tables.sqrt_recip_alphas_cumprod[step]);
  const float recipm1 = static_cast<float>(tables.sqrt_recipm1_alphas_cumprod[step]);
  const float coef1 = static_cast<float>(tables.posterior_mean_coef1[step]);
  const float coef2 = static_cast<float>(tables.posterior_mean_coef2[step]);
  const LogVariance log_variance(tables, step, row.variance);
  for (size_t i = 0; i < row.x.size(); ++i) {
    const float x0 = recip * row.x[i] - recipm1 * row.eps[i];
    float next = coef1 * x0 + coef2 * row.x[i];
    if (step > 0) next += std::exp(0.5f * log_variance[i]) * row.noise[i];
    row.x[i] = next;
    if (!row.x0.empty()) row.x0[i] = x0;
  }
}

void ddim_step(const DiffusionTables& tables, int step, float eta, const StepRow& row) {
  const float recip = static_cast<float>(tables.sqrt_recip_alphas_cumprod[step]);
  const float recipm1 = static_cast<float>(tables.sqrt_recipm1_alphas_cumprod[step]);
  const float a = static_cast<float>(tables.alphas_cumprod[step]);
  const float a_prev = static_cast<float>(tables.alphas_cumprod_prev[step]);
  const float sigma = eta * std::sqrt((1 - a_prev) / (1 - a)) * std::sqrt(1 - a / a_prev);
  // With eta 1 and a' near 1 the difference is nearly 0, and rounding may put it below.
  const float x0_factor = std::sqrt(a_prev),
              eps_factor = std::sqrt(std::max(0.0f, 1 - a_prev - sigma * sigma));
  const bool noisy = step > 0 && sigma > 0;
  for (size_t i = 0; i < row.x.size(); ++i) {
    const float x0 = recip * row.x[i] - recipm1 * row.eps[i];
    float next = x0_factor * x0 + eps_factor * row.eps[i];
    if (noisy) next += sigma * row.noise[i];
    row.x[i] = next;
    if (!row.x0.empty()) row.x0[i] = x0;
  }
}

namespace {

// log(alpha / sigma): half the logarithm of the signal-to-noise ratio.
double half_log_snr(double a) { return 0.5 * std::log(a / (1 - a)); }

}  // namespace

void dpm_step(const DiffusionTables& tables, int step, const StepRow& row) {
  assert(row.x0.size() == row.x.size());
  const float recip = static_cast<float>(tables.sqrt_recip_alphas_cumprod[step]);
  const float recipm1 = static_cast<float>(tables.sqrt_recipm1_alphas_cumprod[step]);
  const bool second_order = step > 0 && step + 1 < tables.num_steps();
  float x_factor = 0, d_factor = 1, slope = 0;  // those of step 0
  if (step > 0) {
    const double a = tables.alphas_cumprod[step], a_prev = tables.alphas_cumprod_prev[step];
    const double h = half_log_snr(a_prev) - half_log_snr(a);
    x_factor = static_cast<float>(std::sqrt((1 - a_prev) / (1 - a)));
    d_factor = static_cast<float>(std::sqrt(a_prev) * -std::expm1(-h));
    if (second_order) {
      const double h_before = half_log_snr(a) - half_log_snr(tables.alphas_cumprod[step + 1]);
      slope = static_cast<float>(h / (2 * h_before));
    }
  }
  for (size_t i = 0; i < row.x.size(); ++i) {
    const float x0 = recip * row.x[i] - recipm1 * row.eps[i];
    const float d = second_order ? x0 + slope * (x0 - row.x0[i]) : x0;
    row.x[i] = x_factor * row.x[i] + d_factor * d;
    row.x0[i] = x0;
  }
}

}  // namespace dydit
