// Samplers of continuous time: where they evaluate, how they move, what noise they add and what they refuse.
// Runs of one value whose way is known; times against the recorded ones of golden/uvit.
#include "dydit/diffusion/flow_solver.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "dydit/base/error.h"
#include "dydit/diffusion/path.h"
#include "dydit/diffusion/schedule.h"
#include "tests/support/files.h"
#include "tests/support/golden.h"

namespace dydit {
namespace {

using test::expect_error;
using test::golden;
using test::golden_doubles;
using Times = std::vector<double>;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr Objective kSit = {Path::Linear, Prediction::Velocity, ModelClock::Data};
constexpr Objective kGvp = {Path::Gvp, Prediction::Velocity, ModelClock::Data};
constexpr Objective kVp = {Path::Vp, Prediction::Velocity, ModelClock::Data};
constexpr Objective kUViT = {Path::Vp, Prediction::Noise, ModelClock::Scaled};
constexpr Objective kLinearNoise = {Path::Linear, Prediction::Noise, ModelClock::Data};

// As they are visited.
Times visited(const Objective& objective, const SamplerOptions& options, int steps) {
  Times times = choose_timesteps(objective, options, steps).timesteps;
  std::reverse(times.begin(), times.end());
  return times;
}

void expect_times(const Times& got, const Times& wanted) {
  ASSERT_EQ(got.size(), wanted.size());
  for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], wanted[i], 1e-12) << "evaluation " << i;
}

// The updates as they are made.
std::vector<SolverStep> taken(const Objective& objective, const SamplerOptions& options, int steps) {
  const Solver solver =
      make_solver(objective, options, choose_timesteps(objective, options, steps).timesteps);
  return {solver.steps.rbegin(), solver.steps.rend()};
}

// What a step makes of the state and of the network's output, but for what it holds and adds.
Combination effect(const SolverStep& step) {
  return {double{step.d_factor} * step.recip + step.x_factor,
          step.eps_factor - double{step.d_factor} * step.recipm1};
}

void expect_effect(const SolverStep& step, double x, double out) {
  EXPECT_NEAR(effect(step).x, x, 1e-6 * std::max(1.0, std::abs(x)));
  EXPECT_NEAR(effect(step).out, out, 1e-6 * std::max(1.0, std::abs(out)));
}

// What a network gives for a state at its time.
using Network = std::function<double(double x, double time)>;

// One value through a run; what nobody has written is nothing to go by.
double run(const Objective& objective, const SamplerOptions& options, int steps, double start,
           const Network& network) {
  const Times times = choose_timesteps(objective, options, steps).timesteps;
  const Solver solver = make_solver(objective, options, times);
  auto x = static_cast<float>(start);
  float x0 = kNaN, held_x = kNaN, held_eps = kNaN;
  for (size_t step = times.size(); step-- > 0;) {
    const auto out = static_cast<float>(network(x, times[step]));
    apply_step(solver.steps[step], {.x = {&x, 1},
                                    .eps = {&out, 1},
                                    .variance = {},
                                    .noise = {},
                                    .x0 = {&x0, 1},
                                    .held_x = {&held_x, 1},
                                    .held_eps = {&held_eps, 1}});
  }
  return x;
}

// Where evaluations are.

TEST(FlowTimes, AreEvenFromNoiseToTheImage) {
  expect_times(visited(kSit, {.kind = SamplerKind::Euler}, 4), {0, 0.25, 0.5, 0.75});
  expect_times(visited(kSit, {.kind = SamplerKind::Ddim}, 4), {0, 0.25, 0.5, 0.75});
  expect_times(visited(kGvp, {.kind = SamplerKind::Dpm}, 2), {0, 0.5});
  EXPECT_EQ(choose_timesteps(kSit, {.kind = SamplerKind::Euler}, 4).description, "even in the noise share");
}

TEST(FlowTimes, OfTheReversedClockAreNoiseShares) {
  const Objective repa = {Path::Linear, Prediction::Velocity, ModelClock::Noise};
  expect_times(visited(repa, {.kind = SamplerKind::Euler}, 4), {1, 0.75, 0.5, 0.25});
}

TEST(FlowTimes, OfHeunAreBothEndsOfAStep) {
  expect_times(visited(kSit, {.kind = SamplerKind::Heun}, 2), {0, 0.5, 0.5, 1});
}

TEST(FlowTimes, OfMidpointAreAStepsBeginningAndItsMiddle) {
  expect_times(visited(kSit, {.kind = SamplerKind::Midpoint}, 2), {0, 0.25, 0.5, 0.75});
}

TEST(FlowTimes, OfNoiseStayAwayFromWhereItTellsNothing) {
  expect_times(visited(kLinearNoise, {.kind = SamplerKind::Euler}, 2), {0.001, 0.5});
}

TEST(FlowTimes, OfAnSdeEndWhereItsLastStepBegins) {
  expect_times(visited(kSit, {.kind = SamplerKind::EmSde}, 4), {0, 0.32, 0.64, 0.96});
  expect_times(visited(kSit, {.kind = SamplerKind::EmSde, .last_size = 0.25f}, 4), {0, 0.25, 0.5, 0.75});
  expect_times(visited(kSit, {.kind = SamplerKind::EmSde, .last = LastStep::None}, 4), {0, 0.25, 0.5, 0.75});
}

TEST(FlowTimes, OfHeunsSdeLookAheadInEveryStepButTheLast) {
  expect_times(visited(kSit, {.kind = SamplerKind::HeunSde}, 3), {0, 0.48, 0.48, 0.96, 0.96});
}

// As the network was given them, in float32.
void expect_recorded(const Times& got, const std::string& name) {
  const at::Tensor wanted = golden("uvit/uncond_runs", name).to(at::kDouble);
  ASSERT_EQ(static_cast<int64_t>(got.size()), wanted.numel()) << name;
  for (size_t i = 0; i < got.size(); ++i) {
    const double of_run = wanted[static_cast<int64_t>(i)].item<double>();
    EXPECT_NEAR(got[i], of_run, 1e-6 * of_run) << name << ", evaluation " << i;
  }
}

TEST(FlowTimes, OfUViTsEulerAreTheAuthors) {
  expect_recorded(visited(kUViT, {.kind = SamplerKind::EmSde}, 12), "sde_12.model_times");
  expect_recorded(visited(kUViT, {.kind = SamplerKind::Euler}, 10), "ode_10.model_times");
}

TEST(FlowTimes, OfDpmFastAreTheAuthors) {
  for (const int steps : {9, 13, 17})
    expect_recorded(visited(kUViT, {.kind = SamplerKind::DpmFast}, steps),
                    fmt::format("dpm_fast_{}.model_times", steps));
}

TEST(FlowTimes, ByHandAreSortedByNoise) {
  EXPECT_EQ(sorted_timesteps({0.25, 0.75, 0}, kSit), (Times{0.75, 0.25, 0}));
  EXPECT_EQ(sorted_timesteps({0.25, 999, 0.5}, kUViT), (Times{0.25, 0.5, 999}));
  expect_error([] { sorted_timesteps({0.25, 1.5}, kSit); }, "--timesteps: 1.5 is outside 0 to 1");
}

TEST(FlowTimes, OfAPictureGoFromTheImageToNoise) {
  EXPECT_EQ(even_times(kSit, 3), (Times{1, 0.5, 0}));
  EXPECT_EQ(even_times(kUViT, 3), (Times{0, 499.5, 999}));
  EXPECT_EQ(even_times({}, 3), (Times{0, 500, 999}));
}

// How many there are.

TEST(Evaluations, AreMoreThanOneWhereAStepLooksAhead) {
  const auto of_ten = [](SamplerKind kind) { return evaluations({.kind = kind}, 10); };
  for (const SamplerKind kind : {SamplerKind::Ddpm, SamplerKind::Ddim, SamplerKind::Dpm, SamplerKind::Euler,
                                 SamplerKind::EmSde, SamplerKind::DpmFast})
    EXPECT_EQ(of_ten(kind), 10) << kSamplerNames[kind];
  EXPECT_EQ(of_ten(SamplerKind::Heun), 20);
  EXPECT_EQ(of_ten(SamplerKind::Midpoint), 20);
  EXPECT_EQ(of_ten(SamplerKind::HeunSde), 19);
}

TEST(Evaluations, AreAsManyAsTimesAreChosen) {
  for (const auto& entry : kSamplerNames.entries) {
    if (entry.value == SamplerKind::Ddpm || entry.value == SamplerKind::Lcm) continue;
    for (const int steps : {2, 3, 9, 50}) {
      const SamplerOptions options = {.kind = entry.value};
      EXPECT_EQ(static_cast<int>(visited(kUViT, options, steps).size()), evaluations(options, steps))
          << entry.name << ", " << steps << " steps";
    }
  }
}

TEST(DefaultSampler, IsOfTheObjective) {
  EXPECT_EQ(default_sampler({}), SamplerKind::Ddpm);
  EXPECT_EQ(default_sampler(kSit), SamplerKind::Euler);
  EXPECT_EQ(default_sampler(kUViT), SamplerKind::Euler);
}

// How they move.

TEST(EulerSampler, OnTheLinearPathIsDdim) {
  const std::vector<SolverStep> euler = taken(kSit, {.kind = SamplerKind::Euler}, 7),
                                ddim = taken(kSit, {.kind = SamplerKind::Ddim}, 7);
  for (size_t i = 0; i < euler.size(); ++i) {
    SCOPED_TRACE(i);
    expect_effect(ddim[i], effect(euler[i]).x, effect(euler[i]).out);
    EXPECT_FALSE(ddim[i].noisy);
  }
  const Network field = [](double x, double t) { return std::sin(x + 3 * t); };
  for (const double start : {-1.7, 0.3, 2.1})
    EXPECT_NEAR(run(kSit, {.kind = SamplerKind::Euler}, 7, start, field),
                run(kSit, {.kind = SamplerKind::Ddim}, 7, start, field), 2e-6);
}

TEST(EulerSampler, GoesAlongTheVelocity) {
  for (const SolverStep& step : taken(kSit, {.kind = SamplerKind::Euler}, 4)) expect_effect(step, 1, 0.25);
}

// A velocity that is a line in time: where it leads is known.
TEST(FlowSolver, HeunAndMidpointAreExactForALineInTime) {
  const Network line = [](double, double t) { return 0.7 - 3 * t; };
  const double wanted = 0.4 + 0.7 - 1.5;
  for (const SamplerKind kind : {SamplerKind::Heun, SamplerKind::Midpoint})
    EXPECT_NEAR(run(kSit, {.kind = kind}, 5, 0.4, line), wanted, 1e-6) << kSamplerNames[kind];
  EXPECT_NEAR(run(kSit, {.kind = SamplerKind::Euler}, 5, 0.4, line), wanted + 0.3, 1e-6);  // 3 dt / 2
}

// Normal data, of deviation kDeviation: velocity and noise in closed form, and x in proportion to the
// deviation.
constexpr double kDeviation = 0.5;
double variance_at(const NoiseLevel& level) {
  return std::pow(level.alpha * kDeviation, 2) + std::pow(level.sigma, 2);
}
double normal_velocity(double x, double t) {
  const NoiseLevel level = level_at(Path::Linear, 1 - t);
  const double slope = level.alpha * level.d_alpha * kDeviation * kDeviation + level.sigma * level.d_sigma;
  return -slope * x / variance_at(level);
}
double normal_noise(double x, double time) {
  const NoiseLevel level = level_at(Path::Vp, time / 999);
  return level.sigma * x / variance_at(level);
}

TEST(FlowSolver, HeunAndMidpointComeNearerThanEuler) {
  const auto error = [](SamplerKind kind) {
    return std::abs(run(kSit, {.kind = kind}, 10, 1.3, normal_velocity) / (1.3 * kDeviation) - 1);
  };
  EXPECT_GT(error(SamplerKind::Euler), 0.1);
  EXPECT_LT(error(SamplerKind::Heun), 5e-3);
  EXPECT_LT(error(SamplerKind::Midpoint), 5e-4);
}

TEST(FlowSolver, DpmFastComesNearerThanDdim) {
  const auto error = [](SamplerKind kind, double end) {
    const double wanted =
        1.3 * std::sqrt(variance_at(level_at(Path::Vp, end)) / variance_at(level_at(Path::Vp, 1)));
    return std::abs(run(kUViT, {.kind = kind}, 30, 1.3, normal_noise) / wanted - 1);
  };
  EXPECT_GT(error(SamplerKind::Ddim, 0), 0.05);
  EXPECT_LT(error(SamplerKind::Dpm, 0), 0.02);
  EXPECT_LT(error(SamplerKind::DpmFast, 1e-4), 5e-3);
}

// The image that is always predicted is where a run ends, wherever it began.
TEST(FlowSolver, OfImagesEndsAtTheImage) {
  constexpr double kImage = -0.8;
  for (const Objective& objective : {kSit, kGvp, kVp}) {
    const Network network = [&](double x, double t) {
      const NoiseLevel level = level_at(objective.path, 1 - t);
      const double noise = (x - level.alpha * kImage) / level.sigma;
      return -(level.d_alpha * kImage + level.d_sigma * noise);
    };
    for (const SamplerKind kind : {SamplerKind::Ddim, SamplerKind::Dpm})
      EXPECT_NEAR(run(objective, {.kind = kind}, 6, 1.9, network), kImage, 1e-4)
          << kSamplerNames[kind] << " on " << kPathNames[{objective.path, objective.clock}];
  }
}

TEST(FlowSolver, FollowsAConstantNoiseExactly) {
  constexpr double kImage = 0.7, kNoise = -0.4;
  const NoiseLevel start = level_at(Path::Vp, 1), end = level_at(Path::Vp, 1e-4);
  const double from = start.alpha * kImage + start.sigma * kNoise;
  const Network network = [](double, double) { return kNoise; };
  EXPECT_NEAR(run(kUViT, {.kind = SamplerKind::Ddim}, 5, from, network), kImage, 1e-4);
  EXPECT_NEAR(run(kUViT, {.kind = SamplerKind::Dpm}, 5, from, network), kImage, 1e-4);
  for (const int steps : {1, 2, 3, 9, 13, 17})
    EXPECT_NEAR(run(kUViT, {.kind = SamplerKind::DpmFast}, steps, from, network),
                end.alpha * kImage + end.sigma * kNoise, 1e-4)
        << steps << " evaluations";
}

// "h" where an evaluation is held for later ones of its step.
std::string held(int steps) {
  std::string text;
  for (const SolverStep& step : taken(kUViT, {.kind = SamplerKind::DpmFast}, steps))
    text += step.holds ? 'h' : '.';
  return text;
}

TEST(DpmFast, IsOfOrder3ButForItsLastSteps) {
  EXPECT_EQ(held(9), "h..h..h..");           // 3, 3, 2, 1
  EXPECT_EQ(held(13), "h..h..h..h...");      // 3, 3, 3, 3, 1
  EXPECT_EQ(held(17), "h..h..h..h..h..h.");  // 3, 3, 3, 3, 3, 2
  EXPECT_EQ(held(1), ".");
  EXPECT_EQ(held(2), "h.");
  EXPECT_EQ(held(3), "h..");  // 2, 1
}

// Noise shares of its steps' ends are even in log(alpha / sigma), in double.
TEST(DpmFast, StepsBeginWhereTheAuthorsDo) {
  const auto expect_begins = [](int steps, const std::vector<int>& begins) {
    const Times times = visited(kUViT, {.kind = SamplerKind::DpmFast}, steps);
    const Times wanted = golden_doubles("uvit/uncond_runs", fmt::format("f64.dpm_fast_{}.times", steps));
    ASSERT_EQ(begins.size() + 1, wanted.size());  // the last is where the run ends
    for (size_t k = 0; k < begins.size(); ++k)
      EXPECT_NEAR(times[begins[k]] / 999, wanted[k], 1e-10 * wanted[k]) << steps << ", step " << k;
  };
  expect_begins(9, {0, 3, 6, 8});
  expect_begins(13, {0, 3, 6, 9, 12});
  expect_begins(17, {0, 3, 6, 9, 12, 15});
}

// Half-way through the first of two steps, then where the second begins: a quarter and a half of four steps.
TEST(DpmFast, OfThreeEvaluationsIsAStepOfOrder2AndOneOfOrder1) {
  const Times quarters = golden_doubles("uvit/uncond_runs", "f64.dpm_fast_9.times"),
              times = visited(kUViT, {.kind = SamplerKind::DpmFast}, 3);
  ASSERT_EQ(times.size(), 3u);
  for (size_t i = 0; i < 3; ++i) EXPECT_NEAR(times[i] / 999, quarters[i], 1e-10) << i;
}

// Noise that is added.

TEST(EulerMaruyama, AddsTheNoiseOfEachStepAndNoneAtTheLast) {
  const std::vector<SolverStep> steps = taken(kSit, {.kind = SamplerKind::EmSde}, 5);
  constexpr double kSize = 0.96 / 4;
  for (int i = 0; i < 4; ++i) {
    EXPECT_TRUE(steps[i].noisy);
    EXPECT_NEAR(steps[i].sigma, std::sqrt(2 * (1 - i * kSize) * kSize), 1e-6) << "step " << i;  // w = sigma
  }
  EXPECT_FALSE(steps[4].noisy);
}

// v + w score, whose sigma noise is x - t v: w = sigma leaves x - t v itself.
TEST(EulerMaruyama, GoesAlongVelocityAndScore) {
  const std::vector<SolverStep> steps = taken(kSit, {.kind = SamplerKind::EmSde}, 5);
  constexpr double kSize = 0.96 / 4;
  for (int i = 0; i < 4; ++i) expect_effect(steps[i], 1 - kSize, kSize * (1 + i * kSize));
}

TEST(EulerMaruyama, WithoutALastStepAddsNoiseInAll) {
  const SamplerOptions options = {.kind = SamplerKind::EmSde, .last = LastStep::None};
  for (const SolverStep& step : taken(kSit, options, 4)) EXPECT_TRUE(step.noisy);
}

// x + (t - s) (beta x / 2 - beta noise / sigma) + sqrt(beta (t - s)) n, the last of .001 without n.
TEST(EulerMaruyama, OfUViTsHasTheReverseSdeOfItsPath) {
  const std::vector<SolverStep> steps = taken(kUViT, {.kind = SamplerKind::EmSde}, 3);
  const std::vector<double> shares = {1, 0.5005, 0.001, 0};
  for (size_t i = 0; i < 3; ++i) {
    SCOPED_TRACE(i);
    const double size = shares[i] - shares[i + 1], beta = 0.1 + 19.9 * shares[i];
    expect_effect(steps[i], 1 + size * beta / 2, -size * beta / level_at(Path::Vp, shares[i]).sigma);
    EXPECT_EQ(steps[i].noisy, i < 2);
    if (i < 2) {
      EXPECT_NEAR(steps[i].sigma, std::sqrt(beta * size), 1e-5);
    }
  }
}

// The recorded amounts, of the norm .7, at times by hand. The step nearest to the image adds nothing.
void expect_recorded_form(const Objective& objective, DiffusionForm form) {
  const std::string name = fmt::format("{}.diffusion.{}", kPathNames[{objective.path, objective.clock}],
                                       kDiffusionFormNames[form]);
  SCOPED_TRACE(name);
  const at::Tensor wanted = golden("sit/paths", name).flatten(), t = golden("sit/paths", "t").to(at::kDouble);
  Times times = {t.data_ptr<double>(), t.data_ptr<double>() + t.numel()};
  std::reverse(times.begin(), times.end());
  const Solver solver =
      make_solver(objective, {.kind = SamplerKind::EmSde, .form = form, .diffusion_norm = 0.7f}, times);
  EXPECT_FALSE(solver.steps[0].noisy);
  for (size_t i = 1; i < times.size(); ++i) {
    const double size = times[i - 1] - times[i], sigma = solver.steps[i].sigma;
    const double of_time = wanted[static_cast<int64_t>(times.size() - 1 - i)].item<double>();
    EXPECT_NEAR(sigma * sigma / (2 * size), of_time, 1e-4 * of_time) << "t = " << times[i];
  }
}

TEST(DiffusionForms, AreTheAuthors) {
  for (const Objective& objective : {kSit, kGvp, kVp}) {
    for (const DiffusionForm form : {DiffusionForm::Sigma, DiffusionForm::Linear, DiffusionForm::Decreasing,
                                     DiffusionForm::IncreasingDecreasing})
      expect_recorded_form(objective, form);
  }
  expect_recorded_form(kVp, DiffusionForm::Sbdm);
}

TEST(DiffusionForms, ConstantIsTheNorm) {
  const SamplerOptions options = {
      .kind = SamplerKind::EmSde, .form = DiffusionForm::Constant, .diffusion_norm = 0.7f};
  for (int i = 0; i < 4; ++i)
    EXPECT_NEAR(taken(kSit, options, 5)[i].sigma, std::sqrt(2 * 0.7 * 0.24), 1e-6) << "step " << i;
}

// A step's noise comes before it looks: the first one's with the start, the others' with the step before.
TEST(HeunSde, AddsTheNoiseOfAStepBeforeIt) {
  const SamplerOptions options = {.kind = SamplerKind::HeunSde};
  const Solver solver = make_solver(kSit, options, choose_timesteps(kSit, options, 3).timesteps);
  EXPECT_NEAR(solver.start_sigma, std::sqrt(2 * 1 * 0.48), 1e-6);
  std::string noisy;  // as they are taken: two evaluations a step, then the last
  for (auto step = solver.steps.rbegin(); step != solver.steps.rend(); ++step)
    noisy += step->noisy ? 'n' : '.';
  EXPECT_EQ(noisy, ".n...");
  EXPECT_NEAR(solver.steps[3].sigma, std::sqrt(2 * 0.52 * 0.48), 1e-6);
  EXPECT_TRUE(solver.holds());
}

TEST(FlowSolver, OfOtherSamplersAddsNothingToTheStart) {
  for (const auto& entry : kSamplerNames.entries) {
    if (entry.value == SamplerKind::Ddpm || entry.value == SamplerKind::HeunSde ||
        entry.value == SamplerKind::Lcm)
      continue;
    const SamplerOptions options = {.kind = entry.value};
    const Solver solver = make_solver(kUViT, options, choose_timesteps(kUViT, options, 5).timesteps);
    EXPECT_EQ(solver.start_sigma, 0) << entry.name;
  }
}

TEST(FlowSolver, DdimsEtaKeepsTheNoiseLevel) {
  const std::vector<SolverStep> steps = taken(kUViT, {.kind = SamplerKind::Ddim, .eta = 1}, 4);
  for (size_t i = 0; i < 4; ++i) {
    const double sigma = level_at(Path::Vp, 0.75 - 0.25 * static_cast<double>(i)).sigma;
    EXPECT_NEAR(std::hypot(steps[i].eps_factor, steps[i].noisy ? steps[i].sigma : 0), sigma, 1e-6) << i;
    EXPECT_EQ(steps[i].noisy, i < 3);
  }
}

// The last step of an SDE, from a noise share of .04.
SolverStep last_step(LastStep last) { return taken(kSit, {.kind = SamplerKind::EmSde, .last = last}, 5)[4]; }

TEST(LastSteps, OfMeanIsTheDriftWithoutNoise) { expect_effect(last_step(LastStep::Mean), 0.96, 0.04 * 1.96); }
TEST(LastSteps, OfEulerIsTheVelocityAlone) { expect_effect(last_step(LastStep::Euler), 1, 0.04); }
TEST(LastSteps, OfTweedieIsTheImageThatIsPredicted) {
  expect_effect(last_step(LastStep::Tweedie), 1, 0.04);  // of the linear path x + (1 - t) v
  const std::vector<SolverStep> gvp = taken(kGvp, {.kind = SamplerKind::EmSde, .last = LastStep::Tweedie}, 5);
  const Combination image = image_of(kGvp, level_at(Path::Gvp, 0.04));
  expect_effect(gvp[4], image.x, image.out);
}

// What they refuse.

void expect_refused(const Objective& objective, const SamplerOptions& options, const std::string& message) {
  const auto choose = [&] { choose_timesteps(objective, options, 5); };
  EXPECT_THROW(choose(), UsageError) << message;
  expect_error(choose, message);
  const Times times = {time_at(objective, 0.25), time_at(objective, 0.5)};
  expect_error([&] { make_solver(objective, options, times); }, message);
}

TEST(FlowSolver, RefusesASamplerOfAnotherKindOfModel) {
  expect_refused(kSit, {.kind = SamplerKind::Ddpm}, "sampler ddpm: needs the 1000 betas of a DiT");
  expect_refused(kSit, {.kind = SamplerKind::DpmFast}, "sampler dpm-fast: is for models of the path vp");
  for (const SamplerKind kind : {SamplerKind::Euler, SamplerKind::Heun, SamplerKind::Midpoint,
                                 SamplerKind::EmSde, SamplerKind::HeunSde, SamplerKind::DpmFast})
    expect_refused({}, {.kind = kind},
                   fmt::format("sampler {}: is for models of continuous time", kSamplerNames[kind]));
}

TEST(FlowSolver, RefusesAnSdesOptionsWithoutAnSde) {
  const std::string message = "sampler euler: has no diffusion form and no last step";
  expect_refused(kSit, {.kind = SamplerKind::Euler, .form = DiffusionForm::Sigma}, message);
  expect_refused(kSit, {.kind = SamplerKind::Euler, .last_size = 0.04f}, message);
  expect_refused(kSit, {.kind = SamplerKind::Euler, .diffusion_norm = 0.5f}, message);
  expect_refused(kSit, {.kind = SamplerKind::Euler, .last = LastStep::Tweedie}, message);
}

TEST(FlowSolver, RefusesADiffusionThatIsInfinite) {
  for (const Objective& objective : {kSit, kGvp, kLinearNoise})
    expect_refused(objective, {.kind = SamplerKind::EmSde, .form = DiffusionForm::Sbdm},
                   "diffusion form sbdm: is infinite at noise on this path");
}

TEST(FlowSolver, RefusesANormThatIsNoNumberAboveZero) {
  for (const float norm : {0.0f, -1.0f, kNaN, std::numeric_limits<float>::infinity()})
    expect_refused(kSit, {.kind = SamplerKind::EmSde, .diffusion_norm = norm}, "expected a number above 0");
}

TEST(FlowSolver, RefusesALastStepThatCannotBeMeant) {
  for (const float size : {0.0f, 1.0f, -0.5f})
    expect_refused(kSit, {.kind = SamplerKind::EmSde, .last_size = size}, "expected above 0 and below 1");
  expect_refused(kSit, {.kind = SamplerKind::EmSde, .last_size = 0.1f, .last = LastStep::None},
                 "last step none: its size is 0.1; expected above 0 and below 1, and none for none");
  expect_refused(kSit, {.kind = SamplerKind::HeunSde, .last = LastStep::None},
                 "last step none: heun-sde would look at the image itself");
}

TEST(FlowSolver, RefusesStepsOutOfRange) {
  const auto refused = [](SamplerKind kind, int steps, const std::string& range) {
    const std::string message = fmt::format("--steps {}: {} takes {}", steps, kSamplerNames[kind], range);
    EXPECT_THROW(choose_timesteps(kSit, {.kind = kind}, steps), UsageError) << message;
    expect_error([&] { choose_timesteps(kSit, {.kind = kind}, steps); }, message);
  };
  refused(SamplerKind::Euler, 0, "1 to 1000");
  refused(SamplerKind::Euler, 1001, "1 to 1000");
  refused(SamplerKind::Heun, 501, "1 to 500");
  refused(SamplerKind::EmSde, 1, "2 to 1000");
  refused(SamplerKind::HeunSde, 1, "2 to 500");
  refused(SamplerKind::HeunSde, 501, "2 to 500");
  EXPECT_NO_THROW(choose_timesteps(kSit, {.kind = SamplerKind::HeunSde}, 500));
}

void expect_times_refused(const Objective& objective, SamplerKind kind, const Times& times,
                          const std::string& message) {
  EXPECT_THROW(make_solver(objective, {.kind = kind}, times), UsageError) << message;
  expect_error([&] { make_solver(objective, {.kind = kind}, times); }, message);
}

TEST(FlowSolver, RefusesTimesThatDoNotComeNearerToTheImage) {
  const std::string message = "takes noise shares that fall from 1 to above 0";
  expect_times_refused(kSit, SamplerKind::Euler, {0.25, 0.5}, "timestep 0.25: euler " + message);
  expect_times_refused(kSit, SamplerKind::Ddim, {0.5, 0.5}, "timestep 0.5: ddim " + message);
  expect_times_refused(kSit, SamplerKind::Euler, {1, 0.5}, "timestep 1: euler " + message);  // is the image
  expect_times_refused(kUViT, SamplerKind::Ddim, {500, 100}, "timestep 500: ddim " + message);
  expect_times_refused(kLinearNoise, SamplerKind::Euler, {0}, "fall from 0.999 to above 0.001");
  expect_times_refused(kSit, SamplerKind::Euler, {}, "no timesteps: expected one or more");
}

TEST(FlowSolver, TakesTimesByHandWhereAStepIsOneEvaluation) {
  const Times times = {0.9, 0.5, 0.2};
  for (const SamplerKind kind : {SamplerKind::Euler, SamplerKind::Ddim, SamplerKind::Dpm, SamplerKind::EmSde})
    EXPECT_EQ(make_solver(kSit, {.kind = kind}, times).steps.size(), 3u) << kSamplerNames[kind];
  const std::vector<SolverStep> steps = make_solver(kSit, {.kind = SamplerKind::Euler}, times).steps;
  expect_effect(steps[2], 1, 0.3);
  expect_effect(steps[1], 1, 0.4);
  expect_effect(steps[0], 1, 0.1);
}

TEST(FlowSolver, RefusesTimesByHandWhereAStepEvaluatesAtSeveral) {
  const std::string message = "a step evaluates at several times, which it chooses; these ";
  expect_times_refused(kSit, SamplerKind::Heun, {0.75, 0.5, 0.25, 0}, message + "4 are others");
  expect_times_refused(kSit, SamplerKind::Midpoint, {0.5, 0.25, 0}, message + "3 are others");
  expect_times_refused(kSit, SamplerKind::HeunSde, {0.5, 0}, message + "2 are others");
  expect_times_refused(kUViT, SamplerKind::DpmFast, {100, 500, 999}, message + "3 are others");
}

}  // namespace
}  // namespace dydit
