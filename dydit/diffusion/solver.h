// Reverse steps of all samplers as coefficients of one linear update. Letters as in gaussian.h.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "dydit/base/enum_names.h"
#include "dydit/diffusion/gaussian.h"

namespace dydit {

enum class SamplerKind { Ddpm, Ddim, Dpm };  // Dpm: DPM-Solver++(2M)
inline constexpr EnumNames<SamplerKind, 3> kSamplerNames = {
    "sampler", {{"ddpm", SamplerKind::Ddpm}, {"ddim", SamplerKind::Ddim}, {"dpm++", SamplerKind::Dpm}}};

struct SamplerOptions {
  SamplerKind kind = SamplerKind::Ddpm;
  float eta = 0;  // DDIM's share of DDPM's noise
};

/// The timesteps of a run (ascending) and how they were chosen, for the log.
struct Spacing {
  std::vector<int> timesteps;
  std::string description;
};

/// DDPM: even sections. DDIM: the fixed stride where one gives exactly `steps`, else even sections.
/// DPM-Solver++: linspace_timesteps.
Spacing choose_timesteps(SamplerKind kind, int steps);

/// x <- d_factor d + x_factor x + eps_factor eps + sigma noise, with
///   x0 = recip x - recipm1 eps    the image predicted at this step, never clamped,
///   d  = x0 + slope (x0 - x0 before)    "before": of the step that was taken before this one.
struct SolverStep {
  float recip = 1, recipm1 = 0;
  float d_factor = 1, x_factor = 0, eps_factor = 0;
  float slope = 0;     // 0: d = x0, what was before does not matter
  bool noisy = false;  // else no noise is drawn
  float sigma = 0;
  // Where the model has learned a variance v in [-1, 1], sigma^2 interpolates between these, in logs.
  bool learns_sigma = false;
  float min_log_variance = 0, max_log_variance = 0;
};

/// Of kept step `step` (an index into the tables, not a timestep); step 0 gives the image.
/// DDPM (eq. 7): the posterior's mean; its variance, or beta where none is learned.
/// DDIM (eq. 12 and 16): x <- sqrt(a') x0 + sqrt(1 - a' - sigma^2) eps + sigma noise, sigma scaled by eta.
/// DPM-Solver++(2M), midpoint (Lu et al., Algorithm 2), with a = alpha^2, sigma^2 = 1 - a, h the growth of
/// log(alpha / sigma) to a':
///   x <- (sigma'/sigma) x + alpha' (1 - e^-h) d, slope h / (2 h before); first order at the first step of a
///   run and at step 0, where a' = 1 makes x the image itself.
SolverStep make_solver_step(const DiffusionTables& tables, const SamplerOptions& options, int step);

/// Some values of one sample; all spans that are not empty have x's size.
struct StepRow {
  std::span<float> x;               // in: state at the step; out: state one step closer to the image
  std::span<const float> eps;       // predicted noise
  std::span<const float> variance;  // learned variance values v; empty: none
  std::span<const float> noise;     // standard normal; read where the step is noisy
  std::span<float> x0 = {};         // in: x0 before, where slope is not 0; out: x0; empty: not wanted
};

/// Takes the step. A plain loop over floats: one order of operations for every sample, so that results do not
/// depend on the batch.
void apply_step(const SolverStep& step, const StepRow& row);

}  // namespace dydit
