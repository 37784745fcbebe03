// Plans around long skips, and plans of continuous time: Skip-DiT's cache as the authors' code takes it,
// ranges that are kept as they are, and times that are fractions.
#include <algorithm>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "dydit/base/error.h"
#include "dydit/model/macs.h"
#include "dydit/plan/plan_spec.h"
#include "dydit/plan/policies.h"
#include "dydit/plan/run_plan.h"
#include "dydit/plan/stated_plan.h"
#include "tests/support/files.h"
#include "tests/support/golden.h"
#include "tests/support/random_model.h"
#include "tests/support/random_plan.h"

namespace dydit {
namespace {

using test::expect_error;
using test::golden_ints;
using test::random_checkpoint;
using test::static_config;
using test::tiny_config;
using Times = std::vector<double>;

constexpr Action kC = kCompute, kX = kSkipped;
constexpr Objective kLinear = {Path::Linear, Prediction::Velocity, ModelClock::Data};

DiTConfig skip_config(int depth = 12) {
  DiTConfig config = static_config();
  config.depth = depth;
  config.join = Join::Normed;
  return config;
}

DiTConfig flow_config() { return with_objective(tiny_config(), kLinear); }

// Fits, with guidance and without.
PlanSpec plan_of(const std::string& policy, const DiTConfig& config, const Times& times) {
  PlanSpec spec = policy_plan(policy, config, times);
  for (const bool guided : {false, true}) check_spec(spec, config, guided, policy);
  return spec;
}

// 1 where a step computes everything, as they are taken.
std::vector<int> full_steps(const PlanSpec& spec) {
  std::vector<int> full;
  for (auto step = spec.steps.rbegin(); step != spec.steps.rend(); ++step)
    full.push_back(step->computes_all());
  return full;
}

// Skip-DiT's cache.

TEST(SkipPolicy, ComputesTheStepsThatTheAuthorsDo) {
  for (const auto& [run, policy] : {std::pair("n2_ddim20", "skip:2,4"),
                                    {"n3_ddim20", "skip:3,4"},
                                    {"n2_ddpm12", "skip:2,4"},
                                    {"n2_late", "skip:2,4"},
                                    {"n3_late", "skip:3,4"},
                                    {"full_ddim20", "skip:1,4"}}) {
    const std::vector<int> timesteps = golden_ints("skip_dit/runs", fmt::format("{}.timesteps", run));
    const PlanSpec spec = plan_of(policy, skip_config(), Times(timesteps.begin(), timesteps.end()));
    EXPECT_EQ(full_steps(spec), golden_ints("skip_dit/runs", fmt::format("{}.full", run))) << run;
  }
}

// The first step with t <= 20 may itself be a cached one; what it forgets, the next ones compute.
TEST(SkipPolicy, ForgetsNearTheImageAfterTheStep) {
  const Times times = {5, 20, 21, 300, 600};
  EXPECT_EQ(full_steps(plan_of("skip:2", skip_config(), times)), (std::vector<int>{1, 0, 1, 0, 1}));
  EXPECT_EQ(full_steps(plan_of("skip:4", skip_config(), times)), (std::vector<int>{1, 0, 0, 0, 1}));
  EXPECT_EQ(full_steps(plan_of("skip:9", skip_config(), {1, 5, 20})), (std::vector<int>{1, 1, 1}));
}

TEST(SkipPolicy, KeepsTheStreamBeforeTheLastBlocks) {
  const PlanSpec spec = plan_of("skip:2,4", skip_config(), {300, 600});
  EXPECT_EQ(spec.name, "skip:2,4");
  const std::vector<Action> actions = {kC, kC, kC, kC, kX, kX, kX, kX, kC, kC, kC, kC};
  EXPECT_EQ(
      spec.steps[0],
      (StepSpec{.timestep = 300, .attn = actions, .mlp = actions, .ranges = {{4, 8, 0, /*absolute=*/true}}}));
  EXPECT_TRUE(spec.steps[1].computes_all());
}

TEST(SkipPolicy, WithoutANumberOfBlocksTakesFourOrAllThatThereAre) {
  const auto kept = [](int depth) {
    return plan_of("skip:2", skip_config(depth), {300, 600}).steps[0].ranges.at(0);
  };
  EXPECT_EQ(kept(28), (RangeSkip{4, 24, 0, true}));
  EXPECT_EQ(kept(12), (RangeSkip{4, 8, 0, true}));
  EXPECT_EQ(kept(8), (RangeSkip{3, 5, 0, true}));
  EXPECT_EQ(kept(4), (RangeSkip{1, 3, 0, true}));
}

TEST(SkipPolicy, ServesAModelWithoutSkipsAndAUViT) {
  DiTConfig plain = skip_config(), uvit = skip_config(13);
  plain.join = Join::None;
  uvit.join = Join::Plain;
  uvit.objective = {Path::Vp, Prediction::Noise, ModelClock::Scaled};
  EXPECT_EQ(plan_of("skip:2,4", plain, {300, 600}).steps[0].ranges.at(0), (RangeSkip{4, 8, 0, true}));
  EXPECT_EQ(plan_of("skip:2,4", uvit, {300.5, 999}).steps[0].ranges.at(0), (RangeSkip{4, 9, 0, true}));
}

// Of the noise share, as t / 1000 is of a table.
TEST(SkipPolicy, InContinuousTimeIsNearTheImageByTheNoiseShare) {
  DiTConfig config = skip_config();
  config.objective = kLinear;
  EXPECT_EQ(full_steps(plan_of("skip:9", config, {0.995, 0.985, 0.97, 0.5, 0})),
            (std::vector<int>{1, 0, 0, 0, 1}));
}

TEST(SkipPolicy, SpellingThatCannotBeMeantIsRefused) {
  const auto refused = [](const std::string& policy, const std::string& message, int depth = 12) {
    SCOPED_TRACE(policy);
    const Times times = {300, 600};
    EXPECT_THROW(policy_plan(policy, skip_config(depth), times), UsageError);
    expect_error([&] { policy_plan(policy, skip_config(depth), times); }, message);
  };
  refused("skip", "policy \"skip\" has 0 arguments; choose from none, fora:N");
  refused("skip:2,4,1", "has 3 arguments");
  refused("skip:0", "N is \"0\"; a whole number from 1 to 1000 is wanted");
  refused("skip:2,6", "B is \"6\"; a whole number from 1 to 5 is wanted");
  refused("skip:2,0", "B is \"0\"; a whole number from 1 to 5 is wanted");
  refused("skip:2,x", "B is \"x\"; a whole number from 1 to 5 is wanted");
  refused("skip:2", "2 blocks leave none between the first and the last", 2);
}

// Ranges and joins.

// Two steps of 12 blocks, the second without [from, to).
PlanSpec skipping(const DiTConfig& config, int from, int to, bool absolute) {
  const Times times = {300, 600};
  PlanSpec spec = full_spec(config, times);
  std::fill(spec.steps[0].attn.begin() + from, spec.steps[0].attn.begin() + to, kX);
  std::fill(spec.steps[0].mlp.begin() + from, spec.steps[0].mlp.begin() + to, kX);
  spec.steps[0].ranges = {{from, to, 0, absolute}};
  return spec;
}

TEST(CheckSpec, WhatOthersAreJoinedWithMayNotBeSkippedAlone) {
  const DiTConfig config = skip_config();
  const auto check = [&](int from, int to) {
    check_spec(skipping(config, from, to, false), config, /*guided=*/false, "FILE");
  };
  for (const auto& [from, to] : {std::pair(4, 8), {0, 12}, {6, 12}, {5, 12}, {5, 7}})
    EXPECT_NO_THROW(check(from, to)) << from << " to " << to;
  expect_error(
      [&] { check(2, 4); },
      "FILE: step t = 300: block 8 is joined with the output of block 3, which a range skips; skip both "
      "or neither");
  expect_error([&] { check(0, 6); }, "block 6 is joined with the output of block 5, which a range skips");
  expect_error([&] { check(0, 8); }, "block 8 is joined with the output of block 3, which a range skips");
}

TEST(CheckSpec, AnyRangeOfAModelWithoutJoinsMayBeSkipped) {
  DiTConfig config = skip_config();
  config.join = Join::None;
  for (const auto& [from, to] : {std::pair(2, 4), {0, 6}, {0, 8}})
    EXPECT_NO_THROW(check_spec(skipping(config, from, to, false), config, /*guided=*/false, "FILE"));
}

// What is kept in the one form is nothing to go by in the other.
TEST(CheckSpec, AbsoluteRangesHaveAHistoryOfTheirOwn) {
  const DiTConfig config = skip_config();
  const Times times = {100, 300, 600};
  PlanSpec spec = full_spec(config, times);
  for (int s : {0, 1}) {
    const PlanSpec one = skipping(config, 4, 8, /*absolute=*/s == 1);
    spec.steps[s].attn = one.steps[0].attn;
    spec.steps[s].mlp = one.steps[0].mlp;
    spec.steps[s].ranges = one.steps[0].ranges;
  }
  EXPECT_NO_THROW(check_spec(spec, config, /*guided=*/false, "FILE"));
  const RunPlan plan = test::plan_of_spec(random_checkpoint(config), spec, Mode::Static, /*guided=*/false);
  EXPECT_EQ(plan.slots, 2);
  EXPECT_EQ(plan.steps[2].ranges.size(), 2u);
  EXPECT_TRUE(plan.steps[1].skipped_from(4)->absolute);
  EXPECT_FALSE(plan.steps[0].skipped_from(4)->absolute);
  EXPECT_NE(plan.steps[1].skipped_from(4)->terms.at(0).slot, plan.steps[0].skipped_from(4)->terms.at(0).slot);
  EXPECT_FALSE(plan.steps[0].same_work(plan.steps[1]));
}

TEST(PlanMacs, OfACachedStepAreTheBlocksAtBothEndsAndTheirJoins) {
  const DiTConfig config = skip_config();
  const RunPlan plan = test::plan_of_spec(random_checkpoint(config), plan_of("skip:2,4", config, {300, 600}),
                                          Mode::Static, /*guided=*/false);
  const int64_t block = attention_macs(config, config.num_heads) +
                        mlp_macs(config, config.num_heads, config.num_tokens()) + 2 * adaLN_macs(config);
  EXPECT_EQ(required_macs(config, plan.steps[1]), static_macs(config));
  EXPECT_EQ(static_macs(config) - required_macs(config, plan.steps[0]),
            4 * block + 2 * join_macs(config, 11));
}

// Files.

TEST(PlanFile, KeepsThatARangeIsAbsolute) {
  const DiTConfig config = skip_config();
  const PlanSpec spec = plan_of("skip:2,4", config, {300, 600});
  const std::string text = plan_text(spec, config);
  EXPECT_NE(text.find(R"("ranges": [{"from": 4, "to": 8, "order": 0, "absolute": true}])"), text.npos)
      << text;
  EXPECT_EQ(parse_plan(text, config, "WRITTEN"), spec);
  EXPECT_EQ(plan_text(skipping(config, 4, 8, /*absolute=*/false), config).find("absolute"), text.npos);
  std::string damaged = text;
  damaged.replace(damaged.find("true}"), 4, "1");
  expect_error([&] { parse_plan(damaged, config, "FILE"); }, "absolute is 1; true or false is wanted");
}

TEST(PlanFile, OfContinuousTimeSaysItsPathAndFractions) {
  const Times times = {0.75, 0.5, 0};  // the noisiest last
  EXPECT_EQ(
      plan_text(full_spec(flow_config(), times), flow_config()),
      "{\"dydit_plan\": 1, \"name\": \"none\", \"depth\": 2, \"num_heads\": 4, \"num_tokens\": 16, "
      "\"forecast\": \"taylor\", \"path\": \"linear\",\n \"steps\": [\n"
      "  {\"t\": 0, \"attn\": \"cc\", \"mlp\": \"cc\"},\n  {\"t\": 0.5, \"attn\": \"cc\", \"mlp\": \"cc\"},\n"
      "  {\"t\": 0.75, \"attn\": \"cc\", \"mlp\": \"cc\"}]}\n");
}

TEST(PlanFile, OfContinuousTimeKeepsEveryBitOfATime) {
  for (const PathName& name : {PathName{Path::Linear, ModelClock::Data},
                               {Path::Linear, ModelClock::Noise},
                               {Path::Gvp, ModelClock::Data},
                               {Path::Vp, ModelClock::Scaled}}) {
    const DiTConfig config = with_objective(tiny_config(), {name.path, Prediction::Noise, name.clock});
    Times times;
    for (const double share : {1e-4, 1.0 / 3, 0.1 + 0.2, 0.999, 1.0})
      times.push_back(time_at(config.objective, share));
    std::sort(times.begin(), times.end(), [&](double a, double b) {
      return noise_share(config.objective, a) < noise_share(config.objective, b);
    });
    const PlanSpec spec = full_spec(config, times);
    EXPECT_NO_THROW(check_spec(spec, config, /*guided=*/true, "FILE"));
    EXPECT_EQ(parse_plan(plan_text(spec, config), config, "WRITTEN"), spec) << path_name(config.objective);
  }
}

TEST(PlanFile, OfAnotherPathIsRefused) {
  const Times flow = {0.5, 0}, table = {0, 500};
  const std::string of_flow = plan_text(full_spec(flow_config(), flow), flow_config()),
                    of_table = plan_text(full_spec(tiny_config(), table), tiny_config());
  const DiTConfig gvp = with_objective(tiny_config(), {Path::Gvp, Prediction::Velocity, ModelClock::Data});
  expect_error([&] { parse_plan(of_flow, gvp, "FILE"); },
               "FILE: its times are of the path \"linear\", but the model's is gvp");
  expect_error([&] { parse_plan(of_flow, tiny_config(), "FILE"); },
               "its times are of the path \"linear\", but the model's is table");
  expect_error([&] { parse_plan(of_table, flow_config(), "FILE"); },
               "its times are of the path \"table\", but the model's is linear");
}

TEST(PlanFile, WithoutItsModelIsOfThePathThatItStates) {
  const Times times = {0.5, 0};
  std::string text = plan_text(full_spec(flow_config(), times), flow_config());
  EXPECT_EQ(parse_stated_plan(text, "FILE").config.objective.path, Path::Linear);
  EXPECT_EQ(parse_stated_plan(text, "FILE").spec.timesteps(), times);
  text.replace(text.find("linear"), 6, "cosine");
  expect_error([&] { parse_stated_plan(text, "FILE"); }, "path is \"cosine\"; table, linear");
}

TEST(PlanFile, TimesOfATableAreWhole) {
  const DiTConfig config = flow_config();
  const Times times = {0.5, 0};
  std::string text = plan_text(full_spec(config, times), config);
  text.replace(text.find(R"(, "path": "linear")"), 18, "");
  expect_error([&] { parse_plan(text, tiny_config(), "FILE"); },
               "step 2: t is 0.5; a whole number below 2^31 is wanted");
}

TEST(PlanFile, TimesThatAreNoNumbersAreRefused) {
  const Times times = {0.5, 0};
  std::string text = plan_text(full_spec(flow_config(), times), flow_config());
  text.replace(text.find("0.5"), 3, "\"half\"");
  expect_error([&] { parse_plan(text, flow_config(), "FILE"); }, "step 2: t is \"half\"; a number is wanted");
}

// Order.

void expect_refused(const Times& times, const DiTConfig& config, const std::string& message) {
  expect_error([&] { check_spec(full_spec(config, times), config, /*guided=*/false, "FILE"); }, message);
}

TEST(CheckSpec, NoiseSharesFallFromStepToStep) {
  expect_refused(
      {0.25, 0.5}, flow_config(),
      "FILE: step t = 0.25: comes after t = 0.5; the noise share of t must fall from step to step");
  const DiTConfig reversed =
      with_objective(tiny_config(), {Path::Linear, Prediction::Velocity, ModelClock::Noise});
  const Times rising = {0.25, 0.5};
  EXPECT_NO_THROW(check_spec(full_spec(reversed, rising), reversed, /*guided=*/false, "FILE"));
  expect_refused({0.5, 0.25}, reversed, "the noise share of t must fall");
}

TEST(CheckSpec, TimesAreThoseOfTheClock) {
  expect_refused({0.5, -0.5}, flow_config(), "FILE: step t = -0.5: t is outside 0 to 1");
  expect_refused({1.5, 0}, flow_config(), "FILE: step t = 1.5: t is outside 0 to 1");
  expect_refused({0, 7.5}, tiny_config(), "FILE: step t = 7.5: t is outside 0 to 999");
}

// A step of Heun ends where the next one begins.
TEST(CheckSpec, ATimeMayComeTwiceInContinuousTimeAlone) {
  const Times heun = {1, 0.5, 0.5, 0}, table = {0, 500, 500, 999};
  EXPECT_NO_THROW(check_spec(full_spec(flow_config(), heun), flow_config(), /*guided=*/false, "FILE"));
  expect_refused(table, tiny_config(),
                 "FILE: step t = 500: comes after t = 500; t must fall from step to step");
}

TEST(WidthPlan, TimesOfAnotherClockAreRefused) {
  const Times times = {1.5};
  expect_error([&] { make_width_plan(random_checkpoint(flow_config()), times, Mode::Static); },
               "timestep 1.5: expected 0 to 1");
}

// As t / 250 is of a table: the last quarter is nearest to noise.
TEST(Quarters, AreOfTheNoiseShare) {
  EXPECT_EQ(region_of(kLinear, 1), 0);
  EXPECT_EQ(region_of(kLinear, 0.76), 0);
  EXPECT_EQ(region_of(kLinear, 0.75), 1);
  EXPECT_EQ(region_of(kLinear, 0.2), 3);
  EXPECT_EQ(region_of(kLinear, 0), 3);
  EXPECT_EQ(region_of({Path::Vp, Prediction::Noise, ModelClock::Scaled}, 999), 3);
  EXPECT_EQ(region_of({}, 249), 0);
  EXPECT_EQ(region_of({}, 999), 3);
}

// Guidance from 600 to 200 thousandths of the noise.
TEST(GuidePolicy, IntervalInContinuousTimeIsOfTheNoiseShare) {
  const Times times = {0.9, 0.75, 0.5, 0.25, 0};
  const auto kinds = [&](const GuideOptions& guide) {
    PlanSpec spec = policy_plan("none", flow_config(), times);
    apply_guide(guide, flow_config(), 4, spec);
    std::string text;  // as they are taken
    for (auto step = spec.steps.rbegin(); step != spec.steps.rend(); ++step)
      text += step->guide == GuideKind::Full ? 'f' : 'o';
    return text;
  };
  EXPECT_EQ(kinds({.from = 600, .to = 200}), "ooffo");
  EXPECT_EQ(kinds({}), "fffff");  // the first step, which is all noise, too
}

}  // namespace
}  // namespace dydit
