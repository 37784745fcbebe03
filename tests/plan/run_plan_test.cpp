// The plan is the width routers' decisions, made once for each timestep.
#include "dydit/plan/run_plan.h"

#include <algorithm>
#include <numeric>
#include <random>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "dydit/diffusion/schedule.h"
#include "dydit/model/macs.h"
#include "tests/support/golden.h"
#include "tests/support/random_model.h"

namespace dydit {
namespace {

using test::one_head_config;
using test::random_checkpoint;
using test::static_config;
using test::tiny_config;

RunPlan plan_of(const Checkpoint& checkpoint, const std::vector<int>& timesteps, Mode mode = Mode::Dynamic) {
  return make_width_plan(checkpoint, timesteps, mode);
}

// Every part of every block has the same logit, whatever the timestep.
Checkpoint model_with_width_logits(double logit) {
  Checkpoint checkpoint = random_checkpoint(tiny_config());
  for (int b = 0; b < 2; ++b) {
    for (const char* router : {"attn_rate", "mlp_rate"}) {
      checkpoint.weights.at(fmt::format("blocks.{}.{}.router.weight", b, router)).zero_();
      checkpoint.weights.at(fmt::format("blocks.{}.{}.router.bias", b, router)).fill_(logit);
    }
  }
  return checkpoint;
}

// A plan of one block of three heads, whose groups are all on.
RunPlan hand_made(const std::vector<std::vector<uint8_t>>& heads) {
  RunPlan plan;
  plan.config = {.depth = 1, .num_heads = 3, .width_routers = true};
  for (const auto& on : heads)
    plan.steps.push_back({.mode = Mode::Dynamic, .blocks = {BlockWidth{on, {1, 1, 1}}}});
  return plan;
}

TEST(RunPlan, VariesWithTimestepAndBlock) {
  const RunPlan plan = plan_of(random_checkpoint(tiny_config()), even_timesteps(20));
  bool times_differ = false, blocks_differ = false;
  for (const StepPlan& step : plan.steps) {
    times_differ = times_differ || step.blocks != plan.steps[0].blocks;
    blocks_differ = blocks_differ || step.blocks[0] != step.blocks[1];
  }
  EXPECT_TRUE(times_differ && blocks_differ);
}

TEST(RunPlan, FirstHeadAndGroupAreOnWhenAllOthersAreOff) {
  const RunPlan plan = plan_of(model_with_width_logits(-1), {0, 999});
  const std::vector<uint8_t> first = {1, 0, 0, 0};
  for (const StepPlan& step : plan.steps) {
    for (const BlockWidth& width : step.blocks) EXPECT_EQ(width, (BlockWidth{first, first}));
  }
}

TEST(RunPlan, LogitOfZeroIsOff) {
  EXPECT_EQ(plan_of(model_with_width_logits(0), {5}).steps[0].blocks[0].active_heads(), 1);
}

TEST(RunPlan, SmallestPositiveLogitIsOn) {
  EXPECT_EQ(plan_of(model_with_width_logits(1e-30), {5}).steps[0].blocks[0].active_groups(), 4);
}

TEST(RunPlan, RouterOutputJDecidesPartJPlus1) {
  Checkpoint checkpoint = random_checkpoint(tiny_config());
  for (const char* router : {"attn_rate", "mlp_rate"}) {
    checkpoint.weights.at(fmt::format("blocks.1.{}.router.weight", router)).zero_();
  }
  checkpoint.weights.at("blocks.1.attn_rate.router.bias").copy_(at::tensor({-1.0f, 1.0f, -1.0f}));
  checkpoint.weights.at("blocks.1.mlp_rate.router.bias").copy_(at::tensor({1.0f, -1.0f, -1.0f}));
  const RunPlan plan = plan_of(checkpoint, {3});
  EXPECT_EQ(plan.steps[0].blocks[1].heads, (std::vector<uint8_t>{1, 0, 1, 0}));
  EXPECT_EQ(plan.steps[0].blocks[1].groups, (std::vector<uint8_t>{1, 1, 0, 0}));
}

TEST(RunPlan, DoesNotDependOnTheOtherTimestepsOrTheirOrder) {
  const Checkpoint model = random_checkpoint(tiny_config());
  std::vector<int> all(1000);
  std::iota(all.begin(), all.end(), 0);
  const RunPlan wanted = plan_of(model, all);
  std::mt19937 random(1);
  std::vector<int> shuffled = all;
  std::shuffle(shuffled.begin(), shuffled.end(), random);
  for (size_t count : {1, 31, 32, 33, 77}) {
    const std::vector<int> some(shuffled.begin(), shuffled.begin() + count);
    const RunPlan plan = plan_of(model, some);
    ASSERT_EQ(plan.steps.size(), count);
    for (size_t i = 0; i < count; ++i) {
      EXPECT_EQ(plan.steps[i].timestep, some[i]);
      EXPECT_EQ(plan.steps[i].blocks, wanted.steps[some[i]].blocks);
    }
  }
}

TEST(RunPlan, IsThePublishedCodesOnTheGoldenModel) {
  const Checkpoint model = load_checkpoint(test::golden_path("model.safetensors"));
  const std::vector<int64_t> t = [] {
    const at::Tensor values = test::golden("forward", "t");
    return std::vector<int64_t>(values.data_ptr<int64_t>(), values.data_ptr<int64_t>() + values.numel());
  }();
  const RunPlan plan = plan_of(model, {t.begin(), t.end()});
  const at::Tensor heads = test::golden("forward", "attn_mask"), groups = test::golden("forward", "mlp_mask");
  for (int i = 0; i < 12; ++i) {
    for (int b = 0; b < 2; ++b) {
      for (int h = 0; h < 3; ++h) {
        EXPECT_EQ(plan.steps[i].blocks[b].heads[h], heads[i][b][h].item<float>());
        EXPECT_EQ(plan.steps[i].blocks[b].groups[h], groups[i][b][h].item<float>());
      }
    }
  }
}

TEST(RunPlan, InStaticModeHasEverythingOn) {
  const RunPlan plan = plan_of(model_with_width_logits(-1), {0, 500}, Mode::Static);
  for (const StepPlan& step : plan.steps) {
    for (const BlockWidth& width : step.blocks) EXPECT_EQ(width.active_heads() + width.active_groups(), 8);
  }
  EXPECT_FALSE(plan.steps[0].routes_tokens(plan.config));
}

TEST(RunPlan, OfAStaticModelIsStatic) {
  const RunPlan plan = plan_of(random_checkpoint(static_config()), {7});
  EXPECT_EQ(plan.steps[0].mode, Mode::Static);
  EXPECT_FALSE(plan.steps[0].routes_tokens(plan.config));
}

TEST(RunPlan, OfTokenRoutersAloneRoutesTokensOnly) {
  DiTConfig config = tiny_config();
  config.width_routers = false;
  const RunPlan plan = plan_of(random_checkpoint(config), {7});
  EXPECT_TRUE(plan.steps[0].routes_tokens(plan.config));
  EXPECT_EQ(plan.steps[0].blocks[0].active_heads(), 4);
}

TEST(RunPlan, OfWidthRoutersAloneRoutesNoTokens) {
  DiTConfig config = tiny_config();
  config.token_routers = false;
  EXPECT_FALSE(plan_of(random_checkpoint(config), {7}).steps[0].routes_tokens(config));
}

TEST(RunPlan, OfOneHeadHasItOn) {
  const RunPlan plan = plan_of(random_checkpoint(one_head_config()), {0, 999});
  EXPECT_EQ(plan.steps[1].blocks[1], (BlockWidth{{1}, {1}}));
}

TEST(RequiredMacs, OfAStaticPlanAreTheStaticModels) {
  const RunPlan plan = plan_of(random_checkpoint(tiny_config()), {7}, Mode::Static);
  EXPECT_EQ(required_macs(plan.config, plan.steps[0]), static_macs(tiny_config()));
}

TEST(RequiredMacs, SumWhatIsOnOverTheBlocks) {
  const DiTConfig config = tiny_config();
  RunPlan plan = plan_of(random_checkpoint(config), {7, 8});
  plan.steps[1].blocks = {BlockWidth{{1, 0, 0, 0}, {1, 0, 1, 0}}, BlockWidth{{1, 1, 1, 0}, {1, 1, 1, 1}}};
  const std::vector<int> tokens = {5, 0};
  EXPECT_EQ(required_macs(plan.config, plan.steps[1], tokens),
            fixed_macs(config) + router_macs(config) + attention_macs(config, 1) + attention_macs(config, 3) +
                mlp_macs(config, 2, 5) + mlp_macs(config, 4, 0));
}

TEST(RequiredMacs, WithoutTokenCountsTakeAllTokens) {
  const RunPlan plan = plan_of(random_checkpoint(tiny_config()), {7});
  EXPECT_EQ(required_macs(plan.config, plan.steps[0]),
            required_macs(plan.config, plan.steps[0], std::vector<int>{16, 16}));
}

TEST(NestingShare, OfNestedPatternsIsOne) {
  EXPECT_EQ(nesting_share(hand_made({{1, 0, 0}, {1, 0, 1}, {1, 1, 1}, {1, 0, 1}})), 1);
}

TEST(NestingShare, CountsTheCrossingPatterns) {
  // {0, 2} is on twice, so {0, 1} is no prefix; the three patterns of groups are.
  EXPECT_DOUBLE_EQ(nesting_share(hand_made({{1, 0, 1}, {1, 0, 1}, {1, 1, 0}})), 5.0 / 6);
}

TEST(NestingShare, OfAStaticPlanIsOne) {
  EXPECT_EQ(nesting_share(plan_of(random_checkpoint(static_config()), {1, 2, 3})), 1);
}

}  // namespace
}  // namespace dydit
