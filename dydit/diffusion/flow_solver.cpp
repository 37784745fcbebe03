// A run is cut into steps; a step has one to three evaluations, each followed by a linear update. Read
// make_flow_solver() last.
#include "dydit/diffusion/flow_solver.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <numbers>

#include <fmt/format.h>

#include "dydit/base/error.h"
#include "dydit/diffusion/path.h"

namespace dydit {
namespace {

constexpr double kVpEnd = 1e-3;       // SiT's and U-ViT's last point of an ODE, and U-ViT's of an SDE
constexpr double kNoiseEnds = 1e-3;   // of noise prediction on paths whose alpha is 0 at noise
constexpr double kDpmFastEnd = 1e-4;  // U-ViT's
constexpr int kMaxSteps = kNumTrainTimesteps;

bool predicts_noise_on_vp(const Objective& objective) {
  return objective.path == Path::Vp && objective.prediction == Prediction::Noise;
}

DiffusionForm form_of(const Objective& objective, const SamplerOptions& options) {
  return options.form.value_or(predicts_noise_on_vp(objective) ? DiffusionForm::Sbdm : DiffusionForm::Sigma);
}

double last_size(const Objective& objective, const SamplerOptions& options) {
  if (options.last == LastStep::None) return 0;
  return options.last_size                 ? static_cast<double>(*options.last_size)
         : predicts_noise_on_vp(objective) ? kVpEnd
                                           : 0.04;
}

// Of one sampler run on one objective.
class Flow {
 public:
  Flow(const Objective& objective, const SamplerOptions& options)
      : objective_(objective), options_(options) {}

  // Where a run begins, and where its even steps end.
  double start() const {
    const bool undefined = objective_.prediction == Prediction::Noise && objective_.path != Path::Vp;
    return undefined ? 1 - kNoiseEnds : 1;
  }
  double end() const {
    if (options_.kind == SamplerKind::Ddim || options_.kind == SamplerKind::Dpm) return 0;
    const double undefined = objective_.path == Path::Vp                  ? kVpEnd
                             : objective_.prediction == Prediction::Noise ? kNoiseEnds
                                                                          : 0;
    const bool goes_all_the_way = !is_sde(options_.kind) || options_.last == LastStep::None;
    return goes_all_the_way ? undefined : last_size(objective_, options_);
  }
  // Whether a step of its own leads from there to the image.
  bool has_last() const {
    if (is_sde(options_.kind)) return options_.last != LastStep::None;
    return options_.kind == SamplerKind::Euler && predicts_noise_on_vp(objective_);
  }
  bool looks_ahead() const {
    return options_.kind == SamplerKind::Heun || options_.kind == SamplerKind::Midpoint ||
           options_.kind == SamplerKind::HeunSde;
  }

  // Where the steps of a run begin and, at the end, where the last one leads, the noisiest first.
  std::vector<double> edges(int steps) const {
    const int even = steps - has_last();
    std::vector<double> shares;
    for (int i = 0; i <= even; ++i)
      shares.push_back(even == 0 ? start() : start() + (end() - start()) * i / even);
    if (even > 0) shares.back() = end();
    if (has_last()) shares.push_back(0);
    return shares;
  }

  NoiseLevel level(double share) const { return level_at(objective_.path, share); }
  Combination noise(const NoiseLevel& at) const { return noise_of(objective_, at); }
  Combination image(const NoiseLevel& at) const { return image_of(objective_, at); }
  // Of a step towards the image, by its size.
  Combination ode(const NoiseLevel& at) const { return -1.0 * slope_of(objective_, at); }
  Combination drift(const NoiseLevel& at) const {
    if (!is_sde(options_.kind)) return ode(at);
    const double w = diffusion(at);
    return w == 0 ? ode(at) : ode(at) + (-w / at.sigma) * noise(at);  // the score is -noise / sigma
  }
  // w of the SDE, which adds sqrt(2 w size) noise in a step of that size.
  double diffusion(const NoiseLevel& at) const {
    const double n = options_.diffusion_norm, turn = std::numbers::pi * (1 - at.share);
    switch (form_of(objective_, options_)) {
      case DiffusionForm::Sigma:
        return n * at.sigma;
      case DiffusionForm::Linear:
        return n * at.share;
      case DiffusionForm::Decreasing:
        return std::pow(n * std::cos(turn) + 1, 2) / 4;
      case DiffusionForm::IncreasingDecreasing:
        return n * std::pow(std::sin(turn), 2);
      case DiffusionForm::Constant:
        return n;
      default:
        return n * half_squared_diffusion(objective_.path, at);
    }
  }
  double added_sigma(const NoiseLevel& at, double size) const { return std::sqrt(2 * diffusion(at) * size); }

  // A step that says what it predicts and goes where `next` says.
  SolverStep step(const NoiseLevel& at, const Combination& next) const {
    SolverStep made;
    const Combination x0 = image(at);
    made.recip = static_cast<float>(x0.x);
    made.recipm1 = static_cast<float>(-x0.out);
    made.d_factor = 0;
    made.x_factor = static_cast<float>(next.x);
    made.eps_factor = static_cast<float>(next.out);
    return made;
  }
  static void look_back(SolverStep& step, const Combination& held) {
    step.held_x_factor = static_cast<float>(held.x);
    step.held_eps_factor = static_cast<float>(held.out);
  }
  static void add_noise(SolverStep& step, double sigma) {
    step.noisy = sigma > 0;
    step.sigma = static_cast<float>(sigma);
  }

  void add_ddim(const NoiseLevel& from, const NoiseLevel& to, std::vector<SolverStep>& taken) const {
    const double kept = from.sigma > 0 && to.alpha > 0 ? from.alpha * to.sigma / (to.alpha * from.sigma) : 0;
    const double added = options_.eta * to.sigma * std::sqrt(std::max(0.0, 1 - kept * kept));
    const double left = std::sqrt(std::max(0.0, to.sigma * to.sigma - added * added));
    SolverStep made = step(from, left == 0 ? Combination{} : left * noise(from));
    made.d_factor = static_cast<float>(to.alpha);
    add_noise(made, added);
    taken.push_back(made);
  }

  // log(alpha / sigma); infinite at the ends of some paths.
  static double log_ratio(const NoiseLevel& at) { return std::log(at.alpha) - std::log(at.sigma); }

  void add_dpm(const NoiseLevel* before, const NoiseLevel& from, const NoiseLevel& to,
               std::vector<SolverStep>& taken) const {
    SolverStep made = step(from, {to.sigma / from.sigma, 0});
    const double h = log_ratio(to) - log_ratio(from);
    made.d_factor = static_cast<float>(to.alpha * -std::expm1(-h));
    if (before && to.sigma > 0)
      made.slope = static_cast<float>(h / (2 * (log_ratio(from) - log_ratio(*before))));
    taken.push_back(made);
  }

  // One noisy or even step of two evaluations, or of one. `noise` is added at its end.
  void add_even(const NoiseLevel& from, const NoiseLevel& to, double noise,
                std::vector<SolverStep>& taken) const {
    const double size = from.share - to.share;
    const Combination here = drift(from);
    if (options_.kind == SamplerKind::Midpoint) {
      const NoiseLevel middle = level((from.share + to.share) / 2);
      taken.push_back(step(from, Combination{1, 0} + size / 2 * here));
      taken.back().holds = true;
      taken.push_back(step(middle, size * drift(middle)));
      look_back(taken.back(), {1, 0});
      return;
    }
    taken.push_back(step(from, Combination{1, 0} + size * here));
    if (looks_ahead()) {
      taken.back().holds = true;
      taken.push_back(step(to, size / 2 * drift(to)));
      look_back(taken.back(), Combination{1, 0} + size / 2 * here);
    }
    add_noise(taken.back(), noise);
  }

  void add_last(const NoiseLevel& from, std::vector<SolverStep>& taken) const {
    const double size = from.share;
    if (options_.kind == SamplerKind::Euler || options_.last == LastStep::Euler) {
      taken.push_back(step(from, Combination{1, 0} + size * ode(from)));
    } else if (options_.last == LastStep::Tweedie) {
      taken.push_back(step(from, {}));
      taken.back().d_factor = 1;
    } else {
      taken.push_back(step(from, Combination{1, 0} + size * drift(from)));
    }
  }

  // DPM-Solver, orders 1 to 3 (Lu et al. 2022, Algorithms 1 and 2), in one step from `from` through the
  // levels between.
  void add_dpm_fast(const std::vector<NoiseLevel>& levels, std::vector<SolverStep>& taken) const {
    const NoiseLevel &from = levels.front(), &to = levels.back();
    const double h = log_ratio(to) - log_ratio(from);
    const Combination here = noise(from);
    // x at `at`, a share of h away, by the noise here.
    const auto plain = [&](const NoiseLevel& at, double share) {
      return Combination{at.alpha / from.alpha, 0} + (-at.sigma * std::expm1(share * h)) * here;
    };
    const auto add = [&](const NoiseLevel& at, const Combination& held, const Combination& now) {
      taken.push_back(step(at, now));
      look_back(taken.back(), held);
    };
    const size_t order = levels.size() - 1;
    taken.push_back(step(from, plain(levels[1], 1.0 / static_cast<double>(order))));
    taken.back().holds = order > 1;
    if (order == 2) {
      add(levels[1], {to.alpha / from.alpha, 0}, (-to.sigma * std::expm1(h)) * noise(levels[1]));
    } else if (order == 3) {
      const double part = 2 * h / 3;
      const double first = 2 * levels[2].sigma * (std::expm1(part) / part - 1),
                   second = 1.5 * to.sigma * (std::expm1(h) / h - 1);
      add(levels[1], plain(levels[2], 2.0 / 3) + first * here, -first * noise(levels[1]));
      add(levels[2], plain(to, 1) + second * here, -second * noise(levels[2]));
    }
  }

 private:
  const Objective& objective_;
  const SamplerOptions& options_;
};

// DPM-Solver fast: shares of each step's evaluations, then where it leads; the noisiest first.
std::vector<std::vector<double>> dpm_fast_steps(int evaluations) {
  const int steps = evaluations / 3 + 1;
  std::vector<int> orders(steps, 3);
  if (evaluations % 3 == 0) {
    orders[steps - 2 < 0 ? 0 : steps - 2] = 2;
    orders[steps - 1] = 1;
  } else {
    orders[steps - 1] = evaluations % 3;
  }
  const auto log_ratio_at = [](double share) {
    const NoiseLevel level = level_at(Path::Vp, share);
    return std::log(level.alpha) - std::log(level.sigma);
  };
  // The share of a log(alpha / sigma), closed for Vp.
  const auto share_at = [](double log_ratio) {
    const double q = 39.8 * std::log1p(std::exp(-2 * log_ratio));
    return q / ((std::sqrt(0.01 + q) + 0.1) * 19.9);
  };
  const double first = log_ratio_at(1), last = log_ratio_at(kDpmFastEnd), width = (last - first) / steps;
  std::vector<std::vector<double>> all;
  for (int k = 0; k < steps; ++k) {
    std::vector<double> shares;
    for (int i = 0; i <= orders[k]; ++i)
      shares.push_back(share_at(first + width * (k + static_cast<double>(i) / orders[k])));
    all.push_back(std::move(shares));
  }
  all.front().front() = 1;
  all.back().back() = kDpmFastEnd;
  return all;
}

// Shares of a run's evaluations as they are taken: each nearer to the image, or as the sampler chooses them.
void check_shares(const Objective& objective, const SamplerOptions& options, const Flow& flow,
                  std::span<const double> times, std::span<const double> shares) {
  const int S = static_cast<int>(times.size());
  DYDIT_USAGE_CHECK(S > 0, "no timesteps: expected one or more");
  if (flow.looks_ahead() || options.kind == SamplerKind::DpmFast) {
    constexpr double kSame = 1e-9;
    const int steps = options.kind == SamplerKind::DpmFast ? S : (S + 1) / 2;
    const bool possible = evaluations(options, steps) == S;
    const std::vector<double> chosen =
        possible ? choose_flow_times(objective, options, steps).timesteps : std::vector<double>();
    DYDIT_USAGE_CHECK(
        possible &&
            std::equal(times.begin(), times.end(), chosen.begin(),
                       [&](double a, double b) { return std::abs(a - b) <= kSame * last_time(objective); }),
        "sampler {}: a step evaluates at several times, which it chooses; these {} are others. Give "
        "--steps, or take ddim, dpm++, euler or em-sde",
        kSamplerNames[options.kind], S);
    return;
  }
  const double least = flow.has_last() ? 0 : flow.end();
  for (int i = 0; i < S; ++i) {
    const bool inside = shares[i] > least && shares[i] <= flow.start();
    DYDIT_USAGE_CHECK(inside && (i == 0 || shares[i] < shares[i - 1]),
                      "timestep {}: {} takes noise shares that fall from {} to above {}, this one is {}",
                      times[S - 1 - i], kSamplerNames[options.kind], flow.start(), least, shares[i]);
  }
}

Spacing spacing_of(const Objective& objective, std::vector<double> shares, std::string description) {
  Spacing spacing{{}, std::move(description)};
  std::transform(shares.rbegin(), shares.rend(), std::back_inserter(spacing.timesteps),
                 [&](double share) { return time_at(objective, share); });
  return spacing;
}

}  // namespace

void check_flow_sampler(const Objective& objective, const SamplerOptions& options) {
  const std::string_view name = kSamplerNames[options.kind];
  DYDIT_USAGE_CHECK(options.kind != SamplerKind::Ddpm,
                    "sampler ddpm: needs the 1000 betas of a DiT, this model was trained in continuous time; "
                    "take ddim, dpm++, euler, heun or em-sde");
  DYDIT_USAGE_CHECK(
      options.kind != SamplerKind::Lcm,
      "sampler lcm: is for distilled models of the 1000 betas of a DiT, this model was trained in "
      "continuous time; take dpm++");
  DYDIT_USAGE_CHECK(options.kind != SamplerKind::DpmFast || objective.path == Path::Vp,
                    "sampler dpm-fast: is for models of the path vp; take dpm++");
  if (!is_sde(options.kind)) {
    DYDIT_USAGE_CHECK(
        !options.form && !options.last_size && options.diffusion_norm == 1 && options.last == LastStep::Mean,
        "sampler {}: has no diffusion form and no last step; em-sde and heun-sde have", name);
    return;
  }
  DYDIT_USAGE_CHECK(form_of(objective, options) != DiffusionForm::Sbdm || objective.path == Path::Vp,
                    "diffusion form sbdm: is infinite at noise on this path; take sigma, or another form");
  DYDIT_USAGE_CHECK(options.diffusion_norm > 0 && std::isfinite(options.diffusion_norm),
                    "diffusion norm {}: expected a number above 0", options.diffusion_norm);
  const double size = last_size(objective, options);
  DYDIT_USAGE_CHECK(options.last == LastStep::None ? !options.last_size : size > 0 && size < 1,
                    "last step {}: its size is {}; expected above 0 and below 1, and none for none",
                    kLastStepNames[options.last], options.last_size.value_or(0.0f));
  DYDIT_USAGE_CHECK(
      options.last != LastStep::None || options.kind == SamplerKind::EmSde,
      "last step none: heun-sde would look at the image itself, where the score is infinite; take "
      "mean, euler or tweedie");
}

Spacing choose_flow_times(const Objective& objective, const SamplerOptions& options, int steps) {
  check_flow_sampler(objective, options);
  const Flow flow(objective, options);
  DYDIT_USAGE_CHECK(steps >= 1 + flow.has_last() && evaluations(options, steps) <= kMaxSteps,
                    "--steps {}: {} takes {} to {}", steps, kSamplerNames[options.kind], 1 + flow.has_last(),
                    flow.looks_ahead() ? kMaxSteps / 2 : kMaxSteps);
  std::vector<double> shares;
  if (options.kind == SamplerKind::DpmFast) {
    for (const std::vector<double>& step : dpm_fast_steps(steps))
      shares.insert(shares.end(), step.begin(), step.end() - 1);
    return spacing_of(objective, std::move(shares), "even in log(alpha/sigma)");
  }
  const std::vector<double> edges = flow.edges(steps);
  for (int i = 0; i < steps; ++i) {
    shares.push_back(edges[i]);
    const bool last = flow.has_last() && i == steps - 1;
    if (flow.looks_ahead() && !last)
      shares.push_back(options.kind == SamplerKind::Midpoint ? (edges[i] + edges[i + 1]) / 2 : edges[i + 1]);
  }
  return spacing_of(objective, std::move(shares), "even in the noise share");
}

Solver make_flow_solver(const Objective& objective, const SamplerOptions& options,
                        std::span<const double> times) {
  check_flow_sampler(objective, options);
  const Flow flow(objective, options);
  std::vector<double> shares;  // of the evaluations, in the order in which they are made
  for (auto time = times.rbegin(); time != times.rend(); ++time)
    shares.push_back(noise_share(objective, *time));
  check_shares(objective, options, flow, times, shares);
  const size_t S = shares.size();
  std::vector<SolverStep> taken;
  if (options.kind == SamplerKind::DpmFast) {
    for (const std::vector<double>& step : dpm_fast_steps(static_cast<int>(S))) {
      std::vector<NoiseLevel> levels;
      for (const double share : step) levels.push_back(flow.level(share));
      flow.add_dpm_fast(levels, taken);
    }
    return {{taken.rbegin(), taken.rend()}};
  }
  // Where the steps begin, then where the last one leads.
  std::vector<NoiseLevel> edges;
  const size_t each = flow.looks_ahead() ? 2 : 1;
  for (size_t i = 0; i < S; i += each) edges.push_back(flow.level(shares[i]));
  edges.push_back(flow.level(flow.has_last() ? 0 : flow.end()));
  const size_t even = edges.size() - 1 - flow.has_last();
  Solver solver;
  if (is_sde(options.kind) && flow.looks_ahead() && even > 0)
    solver.start_sigma = static_cast<float>(flow.added_sigma(edges[0], edges[0].share - edges[1].share));
  for (size_t i = 0; i < even; ++i) {
    const NoiseLevel &from = edges[i], &to = edges[i + 1];
    if (options.kind == SamplerKind::Ddim) {
      flow.add_ddim(from, to, taken);
    } else if (options.kind == SamplerKind::Dpm) {
      flow.add_dpm(i > 0 ? &edges[i - 1] : nullptr, from, to, taken);
    } else {
      // Heun adds the noise of a step before it looks: with the step before, the first with the start.
      const bool early = flow.looks_ahead();
      const size_t of = i + early;
      const double noise = is_sde(options.kind) && of < even
                               ? flow.added_sigma(edges[of], edges[of].share - edges[of + 1].share)
                               : 0;
      flow.add_even(from, to, noise, taken);
    }
  }
  if (flow.has_last()) flow.add_last(edges[even], taken);
  solver.steps.assign(taken.rbegin(), taken.rend());
  return solver;
}

}  // namespace dydit
