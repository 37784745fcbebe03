// The capacity rule at inference: the file's counts are kept, the plan and the engine obey them.
#include <algorithm>
#include <cmath>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "dydit/engine/engine.h"
#include "dydit/io/safetensors.h"
#include "dydit/model/macs.h"
#include "dydit/plan/run_plan.h"
#include "tests/support/engines.h"
#include "tests/support/files.h"
#include "tests/support/random_model.h"

namespace dydit {
namespace {

using test::random_checkpoint;
using test::TemporaryFolder;
using test::tiny_config;

// 2 blocks of 4 heads on 16 tokens; every quarter has its own counts.
Checkpoint model_with_counts() {
  Checkpoint checkpoint = random_checkpoint(tiny_config());
  checkpoint.keep_counts = KeepCounts{.heads = {{1, 2, 3, 4}, {4, 1, 1, 2}},
                                      .groups = {{3, 1, 4, 2}, {2, 2, 2, 1}},
                                      .tokens = {{16, 1, 5, 8}, {2, 9, 16, 1}}};
  return checkpoint;
}

// The model's metadata with one entry changed, written and read.
void load_with(const std::string& key, const std::string& value) {
  const TemporaryFolder folder;
  save_checkpoint(folder / "m.safetensors", model_with_counts(), at::kFloat);
  SafetensorsFile file = read_safetensors(folder / "m.safetensors");
  if (value.empty()) {
    file.metadata.erase(key);
  } else {
    file.metadata[key] = value;
  }
  write_safetensors(folder / "changed.safetensors", file.tensors, file.metadata);
  load_checkpoint(folder / "changed.safetensors");
}

std::string counts_text(int heads, int tokens, int blocks = 2) {
  using Lists = std::vector<std::vector<int>>;
  const Lists width(2, std::vector<int>(4, heads)), rows(blocks, std::vector<int>(4, tokens));
  return nlohmann::json{{"heads", width}, {"groups", width}, {"tokens", rows}}.dump();
}

TEST(KeepCounts, AreKeptByAFile) {
  const TemporaryFolder folder;
  const Checkpoint saved = model_with_counts();
  save_checkpoint(folder / "m.safetensors", saved, at::kFloat);
  EXPECT_EQ(load_checkpoint(folder / "m.safetensors").keep_counts, saved.keep_counts);
  EXPECT_EQ(read_safetensors(folder / "m.safetensors").metadata.at("gate_rule"), "capacity");
}

TEST(KeepCounts, OfAThresholdModelAreNotThere) {
  const TemporaryFolder folder;
  save_checkpoint(folder / "m.safetensors", random_checkpoint(tiny_config()), at::kFloat);
  EXPECT_FALSE(load_checkpoint(folder / "m.safetensors").keep_counts.has_value());
}

TEST(KeepCounts, OfWidthRoutersAloneNameNoTokens) {
  const TemporaryFolder folder;
  DiTConfig config = tiny_config();
  config.token_routers = false;
  Checkpoint saved = random_checkpoint(config);
  saved.keep_counts = model_with_counts().keep_counts;
  saved.keep_counts->tokens.clear();
  save_checkpoint(folder / "m.safetensors", saved, at::kFloat);
  EXPECT_EQ(load_checkpoint(folder / "m.safetensors").keep_counts, saved.keep_counts);
}

TEST(KeepCounts, ThatDoNotFitTheModelAreRefused) {
  test::expect_error([] { load_with("keep_counts", ""); },
                     "gate rule 'capacity' without metadata 'keep_counts'");
  test::expect_error([] { load_with("keep_counts", "{"); }, "keep_counts");
  test::expect_error([] { load_with("keep_counts", "[]"); }, "must hold 2 lists of 'heads'");
  test::expect_error([] { load_with("keep_counts", counts_text(5, 1)); }, "'heads' holds 5, expected 1 to 4");
  test::expect_error([] { load_with("keep_counts", counts_text(0, 1)); }, "'heads' holds 0, expected 1 to 4");
  test::expect_error([] { load_with("keep_counts", counts_text(4, 17)); },
                     "'tokens' holds 17, expected 1 to 16");
  test::expect_error([] { load_with("keep_counts", counts_text(4, 1, 3)); }, "must hold 2 lists of 'tokens'");
  test::expect_error([] { load_with("gate_rule", "topk"); }, "gate rule 'topk'");
}

TEST(WidthPlanByCapacity, KeepsAsManyAsItsQuarterSays) {
  const Checkpoint model = model_with_counts();
  const std::vector<int> timesteps = {0, 249, 250, 499, 500, 749, 750, 999};
  const RunPlan plan = make_width_plan(model, timesteps, Mode::Dynamic);
  for (size_t i = 0; i < timesteps.size(); ++i) {
    const int quarter = timesteps[i] / 250;
    for (int b = 0; b < 2; ++b) {
      const BlockWidth& width = plan.steps[i].blocks[b];
      EXPECT_EQ(width.active_heads(), model.keep_counts->heads[b][quarter]) << timesteps[i];
      EXPECT_EQ(width.active_groups(), model.keep_counts->groups[b][quarter]) << timesteps[i];
      EXPECT_EQ(width.keep_tokens, model.keep_counts->tokens[b][quarter]) << timesteps[i];
      EXPECT_TRUE(width.heads[0] && width.groups[0]);
    }
  }
}

TEST(WidthPlanByCapacity, RanksTheLogitsAtEachTimestep) {
  Checkpoint model = model_with_counts();
  model.weights.at("blocks.0.attn_rate.router.weight").zero_();
  model.weights.at("blocks.0.attn_rate.router.bias").copy_(at::tensor({-7.0f, -3.0f, -5.0f}));
  const RunPlan plan = make_width_plan(model, std::vector<int>{10, 300, 600, 900}, Mode::Dynamic);
  using Parts = std::vector<uint8_t>;
  EXPECT_EQ(plan.steps[0].blocks[0].heads,
            (Parts{1, 0, 0, 0}));  // all below the threshold, and yet they are on
  EXPECT_EQ(plan.steps[1].blocks[0].heads, (Parts{1, 0, 1, 0}));
  EXPECT_EQ(plan.steps[2].blocks[0].heads, (Parts{1, 0, 1, 1}));
  EXPECT_EQ(plan.steps[3].blocks[0].heads, (Parts{1, 1, 1, 1}));
}

TEST(WidthPlanByCapacity, InStaticModeHasEverythingOn) {
  const RunPlan plan = make_width_plan(model_with_counts(), std::vector<int>{300}, Mode::Static);
  EXPECT_EQ(plan.steps[0].blocks[1].active_heads(), 4);
  EXPECT_FALSE(plan.steps[0].routes_tokens(plan.config));
}

TEST(SelectTokens, KeepsTheLargestLogits) {
  const std::vector<float> logits = {-4, 2, -1, 2, -9};
  using Mask = std::vector<uint8_t>;
  EXPECT_EQ(select_tokens(logits, 1), (Mask{0, 1, 0, 0, 0}));  // first of equals
  EXPECT_EQ(select_tokens(logits, 3), (Mask{0, 1, 1, 1, 0}));
  EXPECT_EQ(select_tokens(logits, 5), (Mask{1, 1, 1, 1, 1}));
  EXPECT_EQ(select_tokens(logits, -1), (Mask{0, 1, 0, 1, 0}));  // by threshold
  EXPECT_EQ(select_tokens(std::vector<float>{-1, -0.0f, 0, -2}, 1), (Mask{0, 1, 0, 0}));
  EXPECT_EQ(select_tokens(std::vector<float>{-1, NAN, 0, NAN, 3}, 3), (Mask{0, 1, 0, 1, 1}));
}

TEST(DecisionMargin, IsTheDistanceToAnotherDecision) {
  const std::vector<float> logits = {-1, 3, 0.5f, 2, -0.25f};
  EXPECT_FLOAT_EQ(decision_margin(logits, -1), 0.25f);  // to the threshold
  EXPECT_FLOAT_EQ(decision_margin(logits, 2), 1.5f);    // from the second largest to the third
  EXPECT_FLOAT_EQ(decision_margin(logits, 4), 0.75f);
  EXPECT_TRUE(std::isinf(decision_margin(logits, 5)));  // nothing to choose
  EXPECT_TRUE(std::isinf(decision_margin(logits, 0)));
  EXPECT_TRUE(std::isinf(decision_margin({}, -1)));
}

TEST(ReferenceEngineByCapacity, KeepsTheCountedTokensOfEachSampleAndCountsThem) {
  const Checkpoint model = model_with_counts();
  const std::vector<double> timesteps = {20, 480, 700, 940};
  const test::EngineOf engine(EngineKind::Reference, model, {}, Mode::Dynamic, timesteps);
  const test::Inputs inputs = test::random_inputs(model.config, 3);
  for (int step = 0; step < 4; ++step) {
    const auto [out, work, trace] = engine.forward(inputs, step);
    std::vector<int> counts;
    for (int b = 0; b < 2; ++b) counts.push_back(model.keep_counts->tokens[b][timesteps[step] / 250]);
    for (int row = 0; row < 3; ++row) {
      for (int b = 0; b < 2; ++b) {
        const at::Tensor on = trace.masks[row][b] > 0.5, logits = trace.logits[row][b];
        ASSERT_EQ(on.sum().item<int64_t>(), counts[b]);
        if (counts[b] == 16) continue;
        EXPECT_GE(logits.masked_select(on).min().item<float>(),
                  logits.masked_select(~on).max().item<float>());
      }
      EXPECT_EQ(work[row].required, required_macs(model.config, engine.plan.steps[step], counts));
    }
  }
}

}  // namespace
}  // namespace dydit
