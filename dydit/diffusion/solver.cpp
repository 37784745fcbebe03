#include "dydit/diffusion/solver.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <functional>
#include <utility>

#include <fmt/format.h>

#include "dydit/base/error.h"
#include "dydit/diffusion/flow_solver.h"
#include "dydit/diffusion/lcm.h"
#include "dydit/diffusion/schedule.h"

namespace dydit {
namespace {

void make_ddpm(const DiffusionTables& tables, int step, SolverStep& made) {
  made.d_factor = static_cast<float>(tables.posterior_mean_coef1[step]);
  made.x_factor = static_cast<float>(tables.posterior_mean_coef2[step]);
  made.noisy = step > 0;
  made.learns_sigma = true;
  made.min_log_variance = static_cast<float>(tables.posterior_log_variance_clipped[step]);
  made.max_log_variance = static_cast<float>(std::log(tables.betas[step]));
  made.sigma = std::exp(0.5f * made.max_log_variance);  // the original's FIXED_LARGE
}

void make_ddim(const DiffusionTables& tables, float eta, int step, SolverStep& made) {
  const auto a = static_cast<float>(tables.alphas_cumprod[step]),
             a_prev = static_cast<float>(tables.alphas_cumprod_prev[step]);
  made.sigma = eta * std::sqrt((1 - a_prev) / (1 - a)) * std::sqrt(1 - a / a_prev);
  made.d_factor = std::sqrt(a_prev);
  // With eta 1 and a' near 1 the difference is nearly 0, and rounding may put it below.
  made.eps_factor = std::sqrt(std::max(0.0f, 1 - a_prev - made.sigma * made.sigma));
  made.noisy = step > 0 && eta > 0;
}

// log(alpha / sigma): half the logarithm of the signal-to-noise ratio.
double half_log_snr(double a) { return 0.5 * std::log(a / (1 - a)); }

void make_dpm(const DiffusionTables& tables, int step, SolverStep& made) {
  if (step == 0) return;
  const double a = tables.alphas_cumprod[step], a_prev = tables.alphas_cumprod_prev[step];
  const double h = half_log_snr(a_prev) - half_log_snr(a);
  made.x_factor = static_cast<float>(std::sqrt((1 - a_prev) / (1 - a)));
  made.d_factor = static_cast<float>(std::sqrt(a_prev) * -std::expm1(-h));
  if (step + 1 == tables.num_steps()) return;
  const double h_before = half_log_snr(a) - half_log_snr(tables.alphas_cumprod[step + 1]);
  made.slope = static_cast<float>(h / (2 * h_before));
}

void make_lcm(const DiffusionTables& tables, int step, SolverStep& made) {
  const LcmBoundary boundary = lcm_boundary(tables.timesteps[step]);
  const double a_prev = tables.alphas_cumprod_prev[step], alpha = std::sqrt(a_prev);
  made.d_factor = static_cast<float>(alpha * boundary.out);
  made.x_factor = static_cast<float>(alpha * boundary.skip);
  made.noisy = step > 0;
  made.sigma = static_cast<float>(std::sqrt(1 - a_prev));
}

}  // namespace

Spacing choose_timesteps(SamplerKind kind, int steps) {
  const auto spacing = [](const std::vector<int>& timesteps, std::string description) {
    return Spacing{{timesteps.begin(), timesteps.end()}, std::move(description)};
  };
  if (kind == SamplerKind::Dpm) return spacing(linspace_timesteps(steps), "linspace, 0 left out");
  if (kind == SamplerKind::Ddpm) return spacing(even_timesteps(steps), "even sections");
  if (kind == SamplerKind::Lcm)
    return spacing(lcm_timesteps(steps), fmt::format("of the grid of {}", kLcmGrid));
  const std::vector<int> strided = strided_timesteps(steps);
  if (strided.empty())
    return spacing(even_timesteps(steps),
                   fmt::format("even sections (no fixed stride gives {} steps)", steps));
  return spacing(strided, fmt::format("fixed stride {}", strided[1]));  // every stride is below 1000
}

void check_sampler(const Objective& objective, const SamplerOptions& options) {
  if (objective.continuous()) return check_flow_sampler(objective, options);
  DYDIT_USAGE_CHECK(
      options.kind <= SamplerKind::Dpm || options.kind == SamplerKind::Lcm,
      "sampler {}: is for models of continuous time (SiT, U-ViT); a DiT takes ddpm, ddim or dpm++",
      kSamplerNames[options.kind]);
}

std::vector<std::string> samplers_of(const Objective& objective) {
  std::vector<std::string> names;
  for (const auto& entry : kSamplerNames.entries) {
    if (entry.value == SamplerKind::Lcm) continue;
    try {
      check_sampler(objective, {.kind = entry.value});
      names.emplace_back(entry.name);
    } catch (const UsageError&) {
    }
  }
  return names;
}

SamplerKind default_sampler(const Objective& objective) {
  return objective.continuous() ? SamplerKind::Euler : SamplerKind::Ddpm;
}

int evaluations(const SamplerOptions& options, int steps) {
  if (options.kind == SamplerKind::Heun || options.kind == SamplerKind::Midpoint) return 2 * steps;
  return options.kind == SamplerKind::HeunSde ? 2 * steps - 1 : steps;  // its last step does not look ahead
}

Spacing choose_timesteps(const Objective& objective, const SamplerOptions& options, int steps) {
  if (objective.continuous()) return choose_flow_times(objective, options, steps);
  check_sampler(objective, options);
  return choose_timesteps(options.kind, steps);
}

bool Solver::holds() const {
  return std::any_of(steps.begin(), steps.end(), std::mem_fn(&SolverStep::holds));
}

Solver make_solver(const Objective& objective, const SamplerOptions& options,
                   std::span<const double> timesteps) {
  if (objective.continuous()) return make_flow_solver(objective, options, timesteps);
  check_sampler(objective, options);
  const DiffusionTables tables = make_diffusion_tables(timesteps);
  Solver solver;
  for (int step = 0; step < tables.num_steps(); ++step)
    solver.steps.push_back(make_solver_step(tables, options, step));
  return solver;
}

SolverStep make_solver_step(const DiffusionTables& tables, const SamplerOptions& options, int step) {
  SolverStep made;
  made.recip = static_cast<float>(tables.sqrt_recip_alphas_cumprod[step]);
  made.recipm1 = static_cast<float>(tables.sqrt_recipm1_alphas_cumprod[step]);
  if (options.kind == SamplerKind::Ddpm) make_ddpm(tables, step, made);
  if (options.kind == SamplerKind::Ddim) make_ddim(tables, options.eta, step, made);
  if (options.kind == SamplerKind::Dpm) make_dpm(tables, step, made);
  if (options.kind == SamplerKind::Lcm) make_lcm(tables, step, made);
  return made;
}

void apply_step(const SolverStep& step, const StepRow& row) {
  assert(step.slope == 0 || row.x0.size() == row.x.size());
  const bool looks_back = step.held_x_factor != 0 || step.held_eps_factor != 0;
  assert(!(looks_back || step.holds) || row.held_x.size() == row.x.size());
  const bool learned = step.learns_sigma && !row.variance.empty();
  for (size_t i = 0; i < row.x.size(); ++i) {
    const float x = row.x[i], eps = row.eps[i];
    const float x0 = step.recip * x - step.recipm1 * eps;
    const float d = step.slope != 0 ? x0 + step.slope * (x0 - row.x0[i]) : x0;
    float next = step.d_factor != 0 ? step.d_factor * d : 0.0f;
    if (step.x_factor != 0) next += step.x_factor * x;
    if (step.eps_factor != 0) next += step.eps_factor * eps;
    if (looks_back) next += step.held_x_factor * row.held_x[i] + step.held_eps_factor * row.held_eps[i];
    if (step.noisy) {
      float sigma = step.sigma;
      if (learned) {
        const float share = (row.variance[i] + 1.0f) / 2.0f;
        sigma = std::exp(0.5f * (share * step.max_log_variance + (1.0f - share) * step.min_log_variance));
      }
      next += sigma * row.noise[i];
    }
    if (step.holds) {
      row.held_x[i] = x;
      row.held_eps[i] = eps;
    }
    row.x[i] = next;
    if (!row.x0.empty()) row.x0[i] = x0;
  }
}

}  // namespace dydit
