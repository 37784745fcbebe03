// Gaussian diffusion on a set of kept timesteps: tables in double, as the original computes them. Letters:
// a = alphas_cumprod, a' = a of the step before (closer to the image).
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
/// Of choose_timesteps' for a table, whole numbers all of them.
DiffusionTables make_diffusion_tables(std::span<const double> timesteps);

}  // namespace dydit
