// Gaussian diffusion on a set of kept timesteps: tables in double, steps in float32, as the original computes
// them. Knows no network. Letters: a = alphas_cumprod, a' = a of the step before (closer to the image).
#pragma once

#include <span>
#include <vector>

namespace dydit {

/// Tables of a schedule respaced to `timesteps`; every vector has one entry a kept step, ascending.
struct DiffusionTables {
  std::vector<int> timesteps;  // original timesteps, given to the model
  std::vector<double> betas;   // recomputed from alphas_cumprod of the kept steps
  std::vector<double> alphas_cumprod;
  std::vector<double> alphas_cumprod_prev;
  std::vector<double> sqrt_recip_alphas_cumprod;
  std::vector<double> sqrt_recipm1_alphas_cumprod;
  std::vector<double> posterior_variance;
  std::vector<double> posterior_log_variance_clipped;  // entry 0 is that of entry 1
  std::vector<double> posterior_mean_coef1;            // of x0
  std::vector<double> posterior_mean_coef2;            // of x

  int num_steps() const { return static_cast<int>(timesteps.size()); }
};

/// `timesteps` ascending and without repeats, within 0..999, at least one; else UsageError.
DiffusionTables make_diffusion_tables(std::span<const int> timesteps);

/// One row (one sample) of a reverse step. All spans hold channels * height * width values.
struct StepRow {
  std::span<float> x;               // in: state at `step`; out: state one step closer to the image
  std::span<const float> eps;       // predicted noise
  std::span<const float> variance;  // learned variance values v; empty: the variance is beta
  std::span<const float> noise;     // standard normal; not read at step 0
  std::span<float> x0 = {};         // out: the image predicted at `step`; empty: not wanted
};

/// x <- coef1 x0 + coef2 x + exp(log var / 2) noise; x0 is never clamped; no noise at step 0. (DDPM, eq. 7)
void ddpm_step(const DiffusionTables& tables, int step, const StepRow& row);

/// x <- sqrt(a') x0 + sqrt(1 - a' - sigma^2) eps + sigma noise, sigma scaled by eta. (DDIM, eq. 12 and 16)
void ddim_step(const DiffusionTables& tables, int step, float eta, const StepRow& row);

/// DPM-Solver++(2M), midpoint, with a = alpha^2, sigma^2 = 1 - a, h the growth of log(alpha / sigma) to a':
/// x <- (sigma'/sigma) x + alpha' (1 - e^-h) D, D = x0 + h / (2 h before) (x0 - x0 before).
/// First order, D = x0, at the first step of a run and at step 0, where a' = 1 makes x the image itself.
/// row.x0 is never empty: it holds the x0 of step + 1 when the step begins. (Lu et al., Algorithm 2)
void dpm_step(const DiffusionTables& tables, int step, const StepRow& row);

}  // namespace dydit
