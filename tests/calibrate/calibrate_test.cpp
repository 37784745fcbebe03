// What is measured of plans, and what the search knows of them, against real runs of the golden model.
#include "dydit/calibrate/calibrate.h"

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "dydit/calibrate/forecast_errors.h"
#include "dydit/calibrate/input_change.h"
#include "tests/support/files.h"

namespace dydit {
namespace {

using test::expect_error;

constexpr int kSteps = 8;

const Checkpoint& golden() {
  static const Checkpoint checkpoint = load_checkpoint(DYDIT_TESTS_DIR "/golden/model.safetensors");
  return checkpoint;
}

GenerateOptions options_of(SamplerKind sampler = SamplerKind::Ddim) {
  GenerateOptions options;
  options.classes = {0, 1, 2};
  options.num_images = 3;
  options.num_steps = kSteps;
  options.sampler = {sampler, 0};
  options.cfg_scale = 2;
  options.seed = 7;
  return options;
}

const Pipeline& pipeline() {
  static const Pipeline pipeline(golden(), EngineKind::Cpu, {});
  return pipeline;
}

PlanSpec reuse_at(int step, const std::vector<double>& timesteps) {
  PlanSpec plan = full_spec(golden().config, timesteps);
  plan.steps[step].attn = plan.steps[step].mlp = std::vector<Action>(golden().config.depth, 0);
  return plan;
}

TEST(PlanMeter, APlanThatComputesEverythingHasNoError) {
  const GenerateOptions options = options_of();
  const PlanMeter meter(pipeline(), options, options, nullptr);
  const std::vector<double> timesteps = run_spacing(options, {}).timesteps;
  const MeasuredPlan full = meter.measure(full_spec(golden().config, timesteps));
  EXPECT_EQ(full.error, 0);
  EXPECT_EQ(full.error_se, 0);
  EXPECT_FALSE(full.psnr);
  EXPECT_GT(full.cost, 0.3);
  EXPECT_LE(full.cost, full.cost_max);
  const MeasuredPlan reuse = meter.measure(reuse_at(3, timesteps));
  EXPECT_GT(reuse.error, 0);
  EXPECT_GT(reuse.error_se, 0);
  EXPECT_LT(reuse.error_se, reuse.error);
  EXPECT_GT(reuse.psnr, 0);
  EXPECT_LT(reuse.cost, full.cost);
}

TEST(PlanMeter, SharesAreOfTheFullRunOfTheStaticModel) {
  GenerateOptions options = options_of();
  options.mode = Mode::Static;
  const PlanMeter meter(pipeline(), options, options, nullptr);
  const DiTConfig& config = golden().config;
  EXPECT_NEAR(meter.measure(full_spec(config, run_spacing(options, {}).timesteps)).cost, 1, 1e-12);
  const MeasuredPlan half =
      meter.measure(full_spec(config, choose_timesteps(SamplerKind::Ddim, kSteps / 2).timesteps));
  EXPECT_NEAR(half.cost, 0.5, 1e-12);  // fewer steps are held against the longer run
  EXPECT_GT(half.error, 0);
}

TEST(PlanMeter, TheParetoSetKeepsWhatNoOtherBeats) {
  const auto plan = [](double cost, double error, const std::string& name) {
    return MeasuredPlan{.cost = cost, .cost_max = cost, .error = error, .plan = {.name = name}};
  };
  const std::vector<MeasuredPlan> kept =
      pareto_set({plan(1, 0, "full"), plan(0.5, 0.1, "a"), plan(0.6, 0.1, "dearer"), plan(0.4, 0.3, "b"),
                  plan(0.4, 0.2, "c"), plan(0.7, 0.2, "worse"), plan(0.5, 0.1, "the same")});
  std::vector<std::string> names;
  for (const MeasuredPlan& measured : kept) names.push_back(measured.plan.name);
  EXPECT_EQ(names, (std::vector<std::string>{"c", "a", "full"}));
}

class ForecastErrorsOf : public testing::TestWithParam<SamplerKind> {};

// One step alone is forecast: the table times the sensitivity is the error of the real run.
TEST_P(ForecastErrorsOf, FollowASingleForecastToTheImage) {
  const GenerateOptions options = options_of(GetParam());
  const ForecastErrors errors = measure_forecast_errors(pipeline(), options, 1, nullptr, nullptr);
  const PlanMeter meter(pipeline(), options, options, nullptr);
  const std::vector<double> timesteps = run_spacing(options, {}).timesteps;
  for (int t = 0; t <= kSteps - 2; ++t) {
    const MeasuredPlan real = meter.measure(reuse_at(t, timesteps));
    ErrorTable table = errors.table;
    EXPECT_GT(table.at(0, t, 1), 0) << t;
    EXPECT_NEAR(errors.sensitivity[t] * table.at(0, t, 1), real.error, 1e-4 * real.error) << t;
  }
}

INSTANTIATE_TEST_SUITE_P(Samplers, ForecastErrorsOf,
                         testing::Values(SamplerKind::Ddim, SamplerKind::Dpm, SamplerKind::Ddpm),
                         [](const auto& info) { return std::to_string(static_cast<int>(info.param)); });

TEST(ForecastErrors, SchedulesCostWhatTheSearchThinks) {
  GenerateOptions options = options_of();
  options.mode = Mode::Static;  // else tokens decide, and the search counts all
  const ForecastErrors errors = measure_forecast_errors(pipeline(), options, 1, nullptr, nullptr);
  const PlanMeter meter(pipeline(), options, options, nullptr);
  const auto hull = efficient_schedules(errors.table, errors.sensitivity, errors.costs);
  ASSERT_GT(hull.size(), 3u);
  for (const Schedule& schedule : hull) {
    PlanSpec plan = full_spec(golden().config, run_spacing(options, {}).timesteps);
    plan.forecast = kSearchForecast;
    for (int s = 0; s < kSteps; ++s)
      plan.steps[s].attn = plan.steps[s].mlp =
          std::vector<Action>(golden().config.depth, schedule.actions[s]);
    EXPECT_NEAR(meter.measure(plan).cost, schedule.cost, 1e-9);
  }
}

TEST(Calibrate, KeepsACurveFromCheapPlansToTheFullRun) {
  const GenerateOptions options = options_of();
  std::set<std::string> kinds, phases;
  std::vector<Family> all;
  for (const std::string& name : kFamilyNames.names()) all.push_back(kFamilyNames.at(name));
  const PlanSet set = calibrate(
      golden(), {options, all, 2},
      {.on_plan =
           [&](const MeasuredPlan& plan) {
             kinds.insert(plan.plan.name.substr(0, plan.plan.name.find_first_of(":-")));
             if (plan.plan.name.find("guide-every") != std::string::npos) kinds.insert("guide");
           },
       .on_progress = [&](const Progress& progress) { phases.insert(std::string(progress.what)); }});
  for (const char* kind : {"none", "fora", "taylor", "lagrange", "stack", "ddim", "search", "guide"})
    EXPECT_TRUE(kinds.contains(kind)) << kind;
  EXPECT_EQ(phases.size(), 6u);
  EXPECT_EQ(set.measured.classes, (std::vector<int>{0, 1, 2}));
  ASSERT_GT(set.plans.size(), 3u);
  for (size_t i = 1; i < set.plans.size(); ++i) {
    EXPECT_LT(set.plans[i - 1].cost_max, set.plans[i].cost_max);
    EXPECT_GT(set.plans[i - 1].error, set.plans[i].error);
  }
  EXPECT_EQ(set.plans.back().plan.name, "none");
  EXPECT_EQ(set.plans.back().error, 0);
  // What is written can be run by whom it is read.
  const PlanSet read = parse_plan_set(plan_set_text(set, golden().config), "FILE");
  EXPECT_NO_THROW(check_plan_set(read, golden(), options, "FILE"));
  const PlanMeter meter(pipeline(), options, options, nullptr);
  const MeasuredPlan *half = plan_within(read, 0.3), again = meter.measure(half->plan);
  EXPECT_NEAR(again.error, half->error, 1e-5 * half->error);
  EXPECT_LE(again.cost_max, 0.3);
}

TEST(Calibrate, AThresholdAddsUpChangesUntilTheyReachIt) {
  const std::vector<double> changes = {9, .1, .1, .3, .1, .1, 0};  // the last is of the first step taken
  const std::vector<double> timesteps = {0, 1, 2, 3, 4, 5, 6};
  const PlanSpec plan = threshold_plan(changes, .3, golden().config, timesteps);
  std::string full;
  for (const StepSpec& step : plan.steps) full += step.computes_all() ? 'c' : '-';
  EXPECT_EQ(full, "c--c--c");
  check_spec(plan, golden().config, true, "FILE");
}

TEST(Calibrate, TheSearchStaysWithinItsMemory) {
  GenerateOptions options = options_of();
  options.cache_memory = 1000;
  expect_error([&] { calibrate(golden(), {options, {Family::Search}}, {}); }, "the search keeps");
}

TEST(Calibrate, StopsWhenItIsAsked) {
  const CancelFlag cancel = true;
  EXPECT_THROW(calibrate(golden(), {options_of(), {Family::Fora}}, {.cancel = &cancel}), Cancelled);
}

}  // namespace
}  // namespace dydit
