#include "dydit/diffusion/gaussian.h"

#include <cmath>

#include "dydit/base/error.h"
#include "dydit/diffusion/schedule.h"

namespace dydit {

DiffusionTables make_diffusion_tables(std::span<const double> timesteps) {
  for (const double t : timesteps)
    DYDIT_USAGE_CHECK(t == std::floor(t), "timestep {}: a table has whole ones, 0 to {}", t,
                      kNumTrainTimesteps - 1);
  return make_diffusion_tables(std::vector<int>(timesteps.begin(), timesteps.end()));
}

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

}  // namespace dydit
