// Reverse steps of all samplers as coefficients of one linear update. Letters as in gaussian.h.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "dydit/base/enum_names.h"
#include "dydit/base/objective.h"
#include "dydit/diffusion/gaussian.h"

namespace dydit {

/// Dpm: DPM-Solver++(2M). DpmFast: DPM-Solver's single steps of order 3, the last ones lower. Of an ODE:
/// Euler, Heun, Midpoint; of an SDE: EmSde (Euler-Maruyama), HeunSde. Lcm: of models that were distilled to a
/// few steps, and of no others (lcm.h).
enum class SamplerKind { Ddpm, Ddim, Dpm, Euler, Heun, Midpoint, EmSde, HeunSde, DpmFast, Lcm };
inline constexpr EnumNames<SamplerKind, 10> kSamplerNames = {"sampler",
                                                             {{"ddpm", SamplerKind::Ddpm},
                                                              {"ddim", SamplerKind::Ddim},
                                                              {"dpm++", SamplerKind::Dpm},
                                                              {"euler", SamplerKind::Euler},
                                                              {"heun", SamplerKind::Heun},
                                                              {"midpoint", SamplerKind::Midpoint},
                                                              {"em-sde", SamplerKind::EmSde},
                                                              {"heun-sde", SamplerKind::HeunSde},
                                                              {"dpm-fast", SamplerKind::DpmFast},
                                                              {"lcm", SamplerKind::Lcm}}};

/// How much noise an SDE sampler puts in, w of the noise share s and a norm n: n sigma, n s,
/// (n cos(pi (1 - s)) + 1)^2 / 4, n sin^2(pi s), n, n half_squared_diffusion. (SiT, table 4 of its appendix)
enum class DiffusionForm { Sigma, Linear, Decreasing, IncreasingDecreasing, Constant, Sbdm };
inline constexpr EnumNames<DiffusionForm, 6> kDiffusionFormNames = {
    "diffusion form",
    {{"sigma", DiffusionForm::Sigma},
     {"linear", DiffusionForm::Linear},
     {"decreasing", DiffusionForm::Decreasing},
     {"increasing-decreasing", DiffusionForm::IncreasingDecreasing},
     {"constant", DiffusionForm::Constant},
     {"sbdm", DiffusionForm::Sbdm}}};

/// An SDE sampler's step to the image, which adds no noise: Mean: the drift; Euler: the ODE's; Tweedie: the
/// image that is predicted; None: the noisy steps go all the way.
enum class LastStep { Mean, Euler, Tweedie, None };
inline constexpr EnumNames<LastStep, 4> kLastStepNames = {"last step",
                                                          {{"mean", LastStep::Mean},
                                                           {"euler", LastStep::Euler},
                                                           {"tweedie", LastStep::Tweedie},
                                                           {"none", LastStep::None}}};

struct SamplerOptions {
  SamplerKind kind = SamplerKind::Ddpm;
  float eta = 0;  // DDIM's share of DDPM's noise
  // Of the SDE samplers; unset: sigma and .04 (SiT), of noise prediction on the path vp sbdm and .001
  // (U-ViT).
  std::optional<DiffusionForm> form = {};
  std::optional<float> last_size = {};  // of the last step, a share of the noise
  float diffusion_norm = 1;
  LastStep last = LastStep::Mean;

  bool operator==(const SamplerOptions&) const = default;
};

inline bool is_sde(SamplerKind kind) { return kind == SamplerKind::EmSde || kind == SamplerKind::HeunSde; }
/// Throws UsageError for options that an objective cannot be sampled with.
void check_sampler(const Objective& objective, const SamplerOptions& options);
/// Names of the samplers that it can be sampled with, those of distilled models left out.
std::vector<std::string> samplers_of(const Objective& objective);
/// The sampler of a request that names none.
SamplerKind default_sampler(const Objective& objective);
/// How often a run of `steps` steps evaluates the network: more than once a step where a step looks ahead.
int evaluations(const SamplerOptions& options, int steps);

/// The network's time at each evaluation of a run, those nearest to the image first (a table's timesteps
/// ascend), and how they were chosen, for the log.
struct Spacing {
  std::vector<double> timesteps;
  std::string description;
};

/// DDPM: even sections. DDIM: the fixed stride where one gives exactly `steps`, else even sections.
/// DPM-Solver++: linspace_timesteps. LCM: lcm_timesteps. In continuous time: even in the noise share, from
/// noise to the image or to where the last step begins; DPM-Solver fast: even in log(alpha / sigma). Throws
/// UsageError for options that this objective cannot be sampled with.
Spacing choose_timesteps(const Objective& objective, const SamplerOptions& options, int steps);
/// The same of the table.
Spacing choose_timesteps(SamplerKind kind, int steps);

/// x <- d_factor d + x_factor x + eps_factor eps + sigma noise, with
///   x0 = recip x - recipm1 eps    the image predicted at this step, never clamped,
///   d  = x0 + slope (x0 - x0 before)    "before": of the step that was taken before this one,
/// and eps what the network predicts, noise or velocity. An evaluation that others of the same step look back
/// to is held: they add held_x_factor x + held_eps_factor eps of it.
struct SolverStep {
  float recip = 1, recipm1 = 0;
  float d_factor = 1, x_factor = 0, eps_factor = 0;
  float slope = 0;     // 0: d = x0, what was before does not matter
  bool noisy = false;  // else no noise is drawn
  float sigma = 0;
  bool holds = false;
  float held_x_factor = 0, held_eps_factor = 0;
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
/// LCM: x <- sqrt(a') f + sqrt(1 - a') noise, f the consistency function (lcm.h); step 0 adds none.
SolverStep make_solver_step(const DiffusionTables& tables, const SamplerOptions& options, int step);

/// A run's updates: steps[i] follows the evaluation at the i-th of its timesteps, the last of which is taken
/// first.
struct Solver {
  std::vector<SolverStep> steps;
  float start_sigma = 0;  // of noise that is added to the start, 0: none

  bool holds() const;  // whether any step does
};

/// Of choose_timesteps' times or, where a step is one evaluation, of any that come nearer to the image with
/// every one; else UsageError. A table's update is make_solver_step's. In continuous time (path.h), with
/// v = dx/ds, a step from s to s' is
///   Euler: x <- x + (s' - s) v;  Heun: of the mean of v here and where Euler would go;  Midpoint: of v
///   halfway; SDE: of -v + w score, + sqrt(2 w (s - s')) noise, the last one as LastStep says (SiT,
///   section 2.3); DDIM: x <- alpha' x0 + sqrt(sigma'^2 - z^2) noise in x + z noise, z of eta;  DPM-Solver++
///   as above.
Solver make_solver(const Objective& objective, const SamplerOptions& options,
                   std::span<const double> timesteps);

/// Some values of one sample; all spans that are not empty have x's size.
struct StepRow {
  std::span<float> x;               // in: state at the step; out: state one step closer to the image
  std::span<const float> eps;       // what the network predicts: noise, or velocity
  std::span<const float> variance;  // learned variance values v; empty: none
  std::span<const float> noise;     // standard normal; read where the step is noisy
  std::span<float> x0 = {};         // in: x0 before, where slope is not 0; out: x0; empty: not wanted
  std::span<float> held_x = {}, held_eps = {};  // where the solver holds: written there, read by others
};

/// Takes the step. A plain loop over floats: one order of operations for every sample, so that results do not
/// depend on the batch.
void apply_step(const SolverStep& step, const StepRow& row);

}  // namespace dydit
