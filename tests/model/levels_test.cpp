// Levels of patch sizes: what a new level is made of, and how a file says that there are some.
#include <string>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "dydit/base/error.h"
#include "dydit/engine/engine.h"
#include "dydit/io/safetensors.h"
#include "dydit/model/edit.h"
#include "dydit/model/layouts.h"
#include "dydit/model/macs.h"
#include "tests/support/checkpoint_files.h"
#include "tests/support/engines.h"
#include "tests/support/files.h"
#include "tests/support/random_model.h"

namespace dydit {
namespace {

using test::EngineOf;
using test::expect_error;
using test::random_checkpoint;
using test::random_inputs;
using test::relative_difference;
using test::TemporaryFolder;
using test::tiny_config;

Checkpoint with_levels(const std::vector<int>& level_from = {500, 750}) {
  return add_levels(random_checkpoint(tiny_config()), level_from);
}

TEST(Levels, LeaveEveryTensorOfTheFirstAsItWas) {
  const Checkpoint plain = random_checkpoint(tiny_config()), leveled = with_levels();
  EXPECT_EQ(leveled.weights.size(), plain.weights.size() + 2 * 6);
  for (const auto& [name, tensor] : plain.weights) EXPECT_TRUE(at::equal(leveled.weights.at(name), tensor));
}

TEST(Levels, LeaveEveryBitOfTheFirstsForwardsAsItWas) {
  const at::Tensor x = random_inputs(tiny_config(), 2).x;
  for (const EngineKind kind : {EngineKind::Reference, EngineKind::Cpu}) {
    const EngineOf plain(kind, random_checkpoint(tiny_config())), leveled(kind, with_levels());
    EXPECT_TRUE(at::equal(leveled.forward(x, 1, {0, 3}).out, plain.forward(x, 1, {0, 3}).out));
  }
}

// A patch of 4 x 4 equal pixels is what a patch of 2 x 2 of them is.
TEST(Levels, EmbedALargePatchAsTheMeanOfItsSmallOnes) {
  const Checkpoint leveled = with_levels();
  const at::Tensor small = leveled.weights.at("x_embedder.proj.weight");
  for (int level = 1; level <= 2; ++level) {
    const at::Tensor large = leveled.weights.at(fmt::format("levels.{}.x_embedder.proj.weight", level));
    EXPECT_LT(relative_difference(large.sum({2, 3}), small.sum({2, 3})), 1e-5);
    EXPECT_LT(relative_difference(at::avg_pool2d(large, 1 << level), small / double(1 << (2 * level))), 1e-6);
  }
}

TEST(Levels, PredictEachPixelOfALargePatchByItsSmallPixel) {
  const Checkpoint leveled = with_levels();
  const int out = leveled.config.out_channels();
  const at::Tensor small = leveled.weights.at("final_layer.linear.weight"),
                   large = leveled.weights.at("levels.1.final_layer.linear.weight");
  for (int u = 0; u < 4; ++u) {
    for (int v = 0; v < 4; ++v) {
      const int64_t row = (u * 4 + v) * out, from = (u / 2 * 2 + v / 2) * out;
      EXPECT_TRUE(at::equal(large.slice(0, row, row + out), small.slice(0, from, from + out)));
    }
  }
}

TEST(Levels, CostOneAnothersShareOfTokens) {
  const DiTConfig config = with_levels().config;
  EXPECT_EQ(mlp_macs(config, 4, config.num_tokens(1)) * 4, mlp_macs(config, 4, config.num_tokens()));
  EXPECT_LT(static_macs(config, 1) * 2, static_macs(config));
  EXPECT_EQ(num_parameters(config), with_levels().num_parameters());
}

TEST(Levels, KeepOfTheCapacityRuleTokensInProportion) {
  const Checkpoint leveled =
      add_levels(keep_shares(random_checkpoint(tiny_config()), {.heads = 0.5, .tokens = 0.5}), {0});
  EXPECT_EQ(leveled.keep_counts->tokens.at(0)[0], 8);
  EXPECT_EQ(leveled.keep_counts->tokens.at(2)[0], 2);
  EXPECT_EQ(leveled.keep_counts->heads.at(2)[0], 2);
}

TEST(Levels, AreWrittenAndRead) {
  const TemporaryFolder folder;
  const Checkpoint leveled =
      add_levels(keep_shares(random_checkpoint(tiny_config()), {.tokens = 0.5}), {500, 750});
  save_checkpoint(folder / "a.safetensors", leveled, at::kFloat);
  const Checkpoint read = load_checkpoint(folder / "a.safetensors");
  EXPECT_EQ(read.config, leveled.config);
  EXPECT_EQ(read.keep_counts, leveled.keep_counts);
  EXPECT_EQ(read_safetensors(folder / "a.safetensors").metadata.at("dydit_format"), "2");
  save_checkpoint(folder / "b.safetensors", random_checkpoint(tiny_config()), at::kFloat);
  EXPECT_EQ(read_safetensors(folder / "b.safetensors").metadata.at("dydit_format"), "1");
}

TEST(LongSkips, ChangeNoBitUntilTheyAreTrained) {
  const at::Tensor x = random_inputs(tiny_config(), 2).x;
  for (const EngineKind kind : {EngineKind::Reference, EngineKind::Cpu}) {
    const EngineOf plain(kind, random_checkpoint(tiny_config())),
        skips(kind, add_long_skips(random_checkpoint(tiny_config())));
    EXPECT_TRUE(at::equal(skips.forward(x, 1, {0, 3}).out, plain.forward(x, 1, {0, 3}).out));
  }
}

TEST(LongSkips, ThatAreAddedAreWrittenAndRead) {
  const TemporaryFolder folder;
  const Checkpoint skips = add_long_skips(random_checkpoint(test::static_config()));
  save_checkpoint(folder / "a.safetensors", skips, at::kFloat);
  EXPECT_EQ(load_checkpoint(folder / "a.safetensors").config, skips.config);
  nlohmann::json config = config_to_json(skips.config);
  config["skip"] = "twice";
  Checkpoint other = skips;
  other.config.join = Join::Normed;
  expect_error(
      [&] {
        test::load(other.weights, {{"dydit_format", "2"}, {"config", config.dump()}});
      },
      "skip is \"twice\"; residual or nothing is wanted");
}

TEST(LongSkips, AreAddedOnceToAnEvenNumberOfBlocks) {
  expect_error([] { add_long_skips(add_long_skips(random_checkpoint(tiny_config()))); },
               "already has long skips");
  expect_error([] { add_long_skips(random_checkpoint(test::odd_config())); },
               "has 3 blocks; long skips join an even number");
}

TEST(LongSkips, ThatAreAddedAreNotWrittenInTheAuthorsNames) {
  const TemporaryFolder folder;
  expect_error(
      [&] {
        save_in_layout(folder / "a.pt", add_long_skips(random_checkpoint(test::static_config())), at::kFloat,
                       Layout::SkipDiT, /*torch=*/true);
      },
      "adds its long skips to the stream, which files in the authors' names cannot say");
}

TEST(TokenScope, OfBlocksIsWrittenAndRead) {
  const TemporaryFolder folder;
  const Checkpoint checkpoint = keep_shares(random_checkpoint(test::block_scope_config()), {.tokens = 0.5});
  save_checkpoint(folder / "a.safetensors", checkpoint, at::kFloat);
  EXPECT_EQ(load_checkpoint(folder / "a.safetensors").config, checkpoint.config);
  EXPECT_EQ(read_safetensors(folder / "a.safetensors").metadata.at("dydit_format"), "2");
  EXPECT_EQ(drop_routers(checkpoint).config.token_scope, TokenScope::Mlp);
}

TEST(Regions, OfTheCapacityRuleAreWrittenAndRead) {
  const TemporaryFolder folder;
  Checkpoint checkpoint = keep_shares(random_checkpoint(tiny_config()), {.tokens = 0.5});
  for (auto* kind :
       {&checkpoint.keep_counts->heads, &checkpoint.keep_counts->groups, &checkpoint.keep_counts->tokens}) {
    for (auto& counts : *kind) counts = {1, 2, 1, 2, 1, 2, 1, 2, 1, 2};
  }
  save_checkpoint(folder / "a.safetensors", checkpoint, at::kFloat);
  EXPECT_EQ(load_checkpoint(folder / "a.safetensors").keep_counts, checkpoint.keep_counts);
  EXPECT_EQ(read_safetensors(folder / "a.safetensors").metadata.at("regions"), "10");
}

TEST(Levels, OfAFileThatDoesNotSayWhenAreOfAllTimes) {
  const TemporaryFolder folder;
  save_in_layout(folder / "a.pt", with_levels(), at::kFloat, Layout::DiT, /*torch=*/true);
  EXPECT_EQ(load_checkpoint(folder / "a.pt").config.level_from, (std::vector<int>{0, 0}));
}

TEST(Levels, ThatContradictTheFilesTensorsAreRefused) {
  const TemporaryFolder folder;
  Checkpoint leveled = with_levels();
  leveled.weights.erase("levels.2.embedding");
  save_checkpoint(folder / "a.safetensors", leveled, at::kFloat);
  expect_error([&] { load_checkpoint(folder / "a.safetensors"); }, "tensor levels.2.embedding is missing");
  leveled = with_levels();
  std::erase_if(leveled.weights, [](const auto& entry) { return entry.first.starts_with("levels.2"); });
  save_checkpoint(folder / "b.safetensors", leveled, at::kFloat);
  expect_error([&] { load_checkpoint(folder / "b.safetensors"); },
               "level_from is [500,750]; its tensors have 1 levels beside the first");
}

TEST(Levels, ThatCannotBeAreRefused) {
  const Checkpoint plain = random_checkpoint(tiny_config());
  expect_error([&] { add_levels(with_levels(), {0}); }, "levels are added once");
  expect_error([&] { add_levels(plain, {}); }, "1 levels of patch sizes; 2 to 4 can be");
  expect_error([&] { add_levels(plain, {0, 0, 0}); }, "level 3 has patches of 16x16, which do not fill 8x8");
  expect_error([&] { add_levels(plain, {1000}); }, "level 1 from t = 1000: 0 to 999 are t");
  expect_error([&] { add_levels(plain, {750, 500}); }, "begins no lower than a smaller");
  expect_error([&] { add_levels(plain, {0, 500}); }, "all begin above 0, or all at 0");
  expect_error([&] { add_levels(init_checkpoint(named_config("U-ViT-S/2"), 0), {0}); },
               "levels of patch sizes for a U-ViT; they are for DiT and SiT");
}

TEST(Levels, AreOfTheTimesWhereTheyWereTrained) {
  const DiTConfig config = with_levels().config;
  EXPECT_EQ(level_at(config, 499), 0);
  EXPECT_EQ(level_at(config, 500), 1);
  EXPECT_EQ(level_at(config, 750), 2);
  EXPECT_TRUE(levels_share_time(config));
  EXPECT_FALSE(levels_share_time(with_levels({0, 0}).config));
  DiTConfig flow = config;
  flow.objective = {Path::Linear, Prediction::Velocity, ModelClock::Data};
  EXPECT_EQ(level_at(flow, time_at(flow.objective, 0.6)), 1);
  EXPECT_EQ(level_at(flow, time_at(flow.objective, 0.1)), 0);
}

}  // namespace
}  // namespace dydit
