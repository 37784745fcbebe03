// Plans of levels: which steps have larger patches, which are guided by them, and what that costs.
#include <numeric>
#include <string>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "dydit/base/error.h"
#include "dydit/model/macs.h"
#include "dydit/plan/policies.h"
#include "dydit/plan/run_plan.h"
#include "dydit/plan/stated_plan.h"
#include "tests/support/files.h"
#include "tests/support/random_model.h"
#include "tests/support/random_plan.h"

namespace dydit {
namespace {

using test::expect_error;
using test::levels_config;
using test::plan_of_spec;
using test::random_checkpoint;
using test::spread_timesteps;

PlanSpec plan_of(const std::string& cache, const LevelSchedule& levels, const GuideOptions& guide = {},
                 int S = 10) {
  PlanSpec spec = policy_plan(cache, levels_config(), spread_timesteps(S));
  apply_levels(levels, levels_config(), spec);
  apply_guide(guide, levels_config(), 4, spec);
  check_spec(spec, levels_config(), /*guided=*/true, "policy");
  return spec;
}

// In the order in which they are taken.
std::string levels_of(const PlanSpec& spec) {
  std::string text;
  for (auto step = spec.steps.rbegin(); step != spec.steps.rend(); ++step)
    text += std::to_string(step->level);
  return text;
}

TEST(LevelSchedule, GivesTheFirstStepsTheLargerPatches) {
  EXPECT_EQ(levels_of(plan_of("none", {.steps = {4}})), "1111000000");
  EXPECT_EQ(levels_of(plan_of("none", {.steps = {4, 1}})), "2111000000");
  EXPECT_EQ(levels_of(plan_of("none", {.steps = {0}})), "0000000000");
  EXPECT_EQ(levels_of(plan_of("none", {.from = {500}})), "1111100000");  // t: 892 ... 500, 402 ...
  EXPECT_EQ(levels_of(plan_of("none", {.from = {500, 800}})), "2111100000");
}

TEST(LevelSchedule, ComputesAllWhereThePatchesChange) {
  const PlanSpec spec = plan_of("fora:3", {.steps = {3}});
  EXPECT_TRUE(spec.steps[6].computes_all());  // the first of level 0, which fora:3 computes anyway
  EXPECT_TRUE(plan_of("fora:3", {.steps = {2}}).steps[7].computes_all());
  EXPECT_FALSE(plan_of("fora:3", {.steps = {0}}).steps[7].computes_all());
}

TEST(LevelSchedule, ThatTheModelCannotFollowIsRefused) {
  PlanSpec spec = full_spec(levels_config(), spread_timesteps(10));
  const auto refused = [&](const LevelSchedule& levels, const std::string& why) {
    expect_error([&] { apply_levels(levels, levels_config(), spec); }, why);
  };
  refused({.steps = {11}}, "level 1: its number of steps is 11; 0 to 10 is wanted");
  refused({.steps = {3, 4}}, "level 2: 4 after 3; the largest patches are of the noisiest steps");
  refused({.from = {1000}}, "level 1: where it begins is 1000; 0 to 999 is wanted");
  refused({.steps = {3, 2, 1}}, "3 levels of larger patches: the model has 2");
  expect_error([&] { apply_levels({.steps = {3}}, test::tiny_config(), spec); }, "the model has one");
}

TEST(WeakGuidance, IsOfEveryStepButThoseOfTheLargestPatches) {
  const PlanSpec spec = plan_of("none", {.steps = {4, 2}}, {.weak = true});
  for (int s = 0; s < 10; ++s) {
    EXPECT_EQ(spec.steps[s].guide, s >= 8 ? GuideKind::Full : GuideKind::Weak) << s;
    EXPECT_FLOAT_EQ(spec.steps[s].scale.value_or(4), s >= 8 ? 4 : 2.2f) << s;
  }
}

TEST(WeakGuidance, GoesWithEverySoManiethStep) {
  const PlanSpec spec = plan_of("none", {}, {.every = 3, .weak = true});
  EXPECT_EQ(spec.steps[9].guide, GuideKind::Weak);
  EXPECT_EQ(spec.steps[6].guide, GuideKind::Forecast);
  EXPECT_FLOAT_EQ(*spec.steps[6].scale, 2.2f);
}

TEST(WeakGuidance, RunsItsSecondRowAtTheLargestPatches) {
  const RunPlan plan = plan_of_spec(random_checkpoint(levels_config()),
                                    plan_of("fora:2", {.steps = {4}}, {.weak = true}), Mode::Dynamic, true);
  for (size_t s = 0; s < plan.steps.size(); ++s) {
    EXPECT_EQ(plan.of_row(s, 0).level, s >= 6 ? 1 : 0);
    EXPECT_EQ(plan.of_row(s, 1).level, 2);
    EXPECT_EQ(plan.of_row(s, 1).timestep, plan.steps[s].timestep);
    EXPECT_EQ(plan.of_row(s, 1).branches.size(), plan.steps[s].branches.size());
  }
}

TEST(PlanOfLevels, CostsWhatEachRowsPatchesDo) {
  const Checkpoint checkpoint = random_checkpoint(levels_config());
  const DiTConfig& config = checkpoint.config;
  const RunPlan plan =
      plan_of_spec(checkpoint, plan_of("none", {.steps = {4}}, {.weak = true}), Mode::Static, true);
  EXPECT_EQ(plan_macs(plan, true),
            4 * static_macs(config, 1) + 6 * static_macs(config) + 10 * static_macs(config, 2));
}

TEST(PlanOfLevels, IsWrittenAndRead) {
  const PlanSpec spec = plan_of("taylor:3,1", {.steps = {5, 2}}, {.every = 2, .weak = true});
  EXPECT_EQ(parse_plan(plan_text(spec, levels_config()), levels_config(), "plan"), spec);
  for (uint32_t seed = 0; seed < 20; ++seed) {
    const PlanSpec random = test::random_spec(levels_config(), spread_timesteps(9), seed,
                                              {.guided = true, .widths = seed % 2 > 0});
    EXPECT_EQ(parse_plan(plan_text(random, levels_config()), levels_config(), "plan"), random);
  }
}

// Everything but the steps as given.
std::string plan_file(const std::string& steps) {
  return R"({"dydit_plan": 1, "depth": 2, "num_heads": 4, "num_tokens": 16, "steps": [)" + steps + "]}";
}

TEST(PlanOfLevels, ThatCannotBeTakenIsRefused) {
  const auto refused = [&](const std::string& steps, const std::string& why, const DiTConfig& config) {
    expect_error([&] { check_spec(parse_plan(plan_file(steps), config, "p"), config, true, "p"); }, why);
  };
  const std::string c = R"("attn": "cc", "mlp": "cc")", full = R"({"t": 900, )" + c + "}, ";
  refused(full + R"({"t": 800, "level": 3, )" + c + "}", "level is 3; 0 to 2 is wanted", levels_config());
  refused(full + R"({"t": 800, "level": 1, )" + c + "}", "level is 1; 0 to 0 is wanted", test::tiny_config());
  refused(full + R"({"t": 800, "guide": "weak", )" + c + "}",
          "guide is weak, but the model has one patch size", test::tiny_config());
  refused(full + R"({"t": 800, "level": 2, "guide": "weak", )" + c + "}",
          "the step itself is at the level of the largest patches", levels_config());
  refused(full + R"({"t": 800, "level": 1, "attn": "00", "mlp": "cc"})",
          "attn of block 0 has nothing to forecast from since the first step or the last restart (another "
          "level is one)",
          levels_config());
  refused(full + R"({"t": 800, "guide": "weak", "attn": "00", "mlp": "cc"})", "has nothing to forecast from",
          levels_config());
  refused(full + R"({"t": 800, "level": 1, "tokens": [5, 4], )" + c + "}",
          "tokens of block 0 is 5; 1 to 4 may be kept", levels_config());
}

TEST(PlanOfLevels, WithoutItsModelHasPatchesThatCanBeJoined) {
  const std::string steps = R"([{"t": 900, "level": 1, "attn": "cc", "mlp": "cc"}]})";
  const auto text = [&](int tokens) {
    return fmt::format(
               R"({{"dydit_plan": 1, "depth": 2, "num_heads": 4, "num_tokens": {}, "levels": 2, "steps": )",
               tokens) +
           steps;
  };
  EXPECT_EQ(parse_stated_plan(text(16), "p").config.levels(), 2);
  expect_error([&] { parse_stated_plan(text(9), "p"); },
               "levels is 2, but 3 tokens a side cannot be joined by 2");
}

TEST(PlanOfLevels, ForgetsWhatItKeptWhereThePatchesChange) {
  PlanSpec spec = full_spec(levels_config(), spread_timesteps(4));
  spec.steps[3].level = 1;
  for (const int s : {0, 2}) spec.steps[s].attn = {0, 0};
  spec.steps[2].level = 1;
  check_spec(spec, levels_config(), false, "by hand");
  const RunPlan plan = plan_of_spec(random_checkpoint(levels_config()), spec, Mode::Static, false);
  EXPECT_EQ(plan.steps[2].branches[0].terms.at(0).step, 3);
  EXPECT_EQ(plan.steps[0].branches[0].terms.at(0).step, 1);
}

}  // namespace
}  // namespace dydit
