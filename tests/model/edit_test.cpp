// Weights from nothing, routers put on and taken off, counts of the capacity rule, the order of heads and
// channels.
#include "dydit/model/edit.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "dydit/train/gates.h"
#include "tests/support/files.h"
#include "tests/support/random_model.h"

namespace dydit {
namespace {

using test::static_config;

bool ends_zero(const std::string& name) {
  return name.find("adaLN") != std::string::npos || name.starts_with("final_layer.linear");
}

bool is_table(const std::string& name) {
  return name.starts_with("y_embedder") || name == "t_embedder.mlp.0.weight" ||
         name == "t_embedder.mlp.2.weight";
}

TEST(InitCheckpoint, LinearsAreXavierUniform) {
  int linears = 0;
  for (const auto& [name, weight] : init_checkpoint(static_config(), 1).weights) {
    if (name == "pos_embed" || !name.ends_with("weight") || ends_zero(name) || is_table(name)) continue;
    const double bound = std::sqrt(6.0 / static_cast<double>(weight.size(0) + weight[0].numel()));
    const double largest = weight.abs().max().item<double>();
    EXPECT_LE(largest, bound * (1 + 1e-6)) << name;
    EXPECT_GT(largest, 0.98 * bound) << name;
    EXPECT_NEAR(weight.std().item<double>(), bound / std::sqrt(3.0), 0.05 * bound) << name;
    EXPECT_NEAR(weight.mean().item<double>(), 0, 0.1 * bound) << name;
    ++linears;
  }
  EXPECT_EQ(linears, 2 * 4 + 1);  // qkv, proj, fc1, fc2 of two blocks; the patch embedding
}

TEST(InitCheckpoint, TablesHaveDeviationTwoHundredths) {
  DiTConfig config = static_config();
  config.num_classes = 99;
  int tables = 0;
  for (const auto& [name, weight] : init_checkpoint(config, 1).weights) {
    if (!is_table(name)) continue;
    EXPECT_NEAR(weight.std().item<double>(), 0.02, 0.001) << name;
    EXPECT_GT(weight.abs().max().item<double>(), 0.05) << name;  // normal, not uniform
    ++tables;
  }
  EXPECT_EQ(tables, 3);
}

TEST(InitCheckpoint, BiasesAdaLNAndTheFinalLinearAreZero) {
  int zeros = 0;
  for (const auto& [name, weight] : init_checkpoint(static_config(), 1).weights) {
    const bool zero = name.ends_with("bias") || ends_zero(name);
    EXPECT_EQ(weight.abs().max().item<float>() == 0, zero) << name;
    zeros += zero;
  }
  EXPECT_EQ(zeros, 2 * (4 + 2) + 1 + 2 + 4);  // blocks, patch, timestep MLP, final layer
}

TEST(InitCheckpoint, IsAFunctionOfConfigAndSeed) {
  const Checkpoint a = init_checkpoint(static_config(), 1), again = init_checkpoint(static_config(), 1),
                   other = init_checkpoint(static_config(), 2);
  for (const auto& [name, weight] : a.weights) {
    EXPECT_TRUE(at::equal(weight, again.weights.at(name))) << name;
    const bool drawn = name != "pos_embed" && weight.abs().max().item<float>() > 0;
    EXPECT_EQ(at::equal(weight, other.weights.at(name)), !drawn) << name;
  }
}

TEST(InitCheckpoint, TensorsDoNotRepeatEachOther) {
  const Weights weights = init_checkpoint(static_config(), 1).weights;
  EXPECT_FALSE(at::equal(weights.at("blocks.0.attn.proj.weight"), weights.at("blocks.1.attn.proj.weight")));
  const at::Tensor signs =
      at::sign(weights.at("blocks.0.attn.proj.weight")) * at::sign(weights.at("blocks.1.attn.proj.weight"));
  EXPECT_LT(signs.mean().abs().item<double>(), 0.1);
}

// A static model whose timestep embedding is of ordinary size, so that a bias of 15 is never overruled.
Checkpoint ordinary_static() {
  Checkpoint checkpoint = test::random_checkpoint(static_config());
  for (auto& [name, weight] : checkpoint.weights) {
    if (name.starts_with("t_embedder")) weight = weight * 0.25;
  }
  return checkpoint;
}

at::Tensor static_output(const Checkpoint& checkpoint) {
  at::NoGradGuard no_grad;
  DiT model = make_model(checkpoint);
  const test::Inputs inputs = test::random_inputs(checkpoint.config, 4);
  return model->forward(inputs.x, model->embed_timestep(at::tensor({3, 300, 600, 999})), inputs.labels());
}

TEST(AddRouters, BiasesAreFifteenAndThirtyFive) {
  const Checkpoint dynamic = add_routers(ordinary_static(), {}, 1);
  EXPECT_TRUE(dynamic.config.width_routers && dynamic.config.token_routers);
  for (int l = 0; l < 2; ++l) {
    const std::string block = fmt::format("blocks.{}.", l);
    for (const char* router : {"attn_rate", "mlp_rate"}) {
      EXPECT_TRUE(at::equal(dynamic.weights.at(block + router + ".router.bias"), at::full({3}, 15.0f)));
      const at::Tensor& weight = dynamic.weights.at(block + router + ".router.weight");
      const double bound = std::sqrt(6.0 / (3 + 64)), largest = weight.abs().max().item<double>();
      EXPECT_LE(largest, bound * (1 + 1e-6));
      EXPECT_GT(largest, 0.9 * bound);
    }
    EXPECT_TRUE(
        at::equal(dynamic.weights.at(block + "token_selection.mlp_head.2.bias"), at::full({1}, 35.0f)));
    EXPECT_TRUE(at::equal(dynamic.weights.at(block + "token_selection.mlp_head.0.bias"), at::zeros({4})));
    EXPECT_GT(dynamic.weights.at(block + "token_selection.mlp_head.0.weight").abs().max().item<float>(), 0.1);
  }
}

TEST(AddRouters, StatedBiasesAreTaken) {
  const Checkpoint dynamic = add_routers(ordinary_static(), {.width_bias = -2, .token_bias = 0.5}, 1);
  EXPECT_EQ(dynamic.weights.at("blocks.1.mlp_rate.router.bias")[0].item<float>(), -2);
  EXPECT_EQ(dynamic.weights.at("blocks.1.token_selection.mlp_head.2.bias")[0].item<float>(), 0.5);
}

TEST(AddRouters, OneKindCanBeLeftOut) {
  const Checkpoint width = add_routers(ordinary_static(), {.tokens = false}, 1);
  EXPECT_TRUE(width.weights.contains("blocks.0.attn_rate.router.bias"));
  EXPECT_FALSE(width.weights.contains("blocks.0.token_selection.mlp_head.0.weight"));
  const Checkpoint tokens = add_routers(ordinary_static(), {.width = false}, 1);
  EXPECT_FALSE(tokens.weights.contains("blocks.0.attn_rate.router.bias"));
  EXPECT_TRUE(tokens.weights.contains("blocks.0.token_selection.mlp_head.0.weight"));
}

TEST(AddRouters, OutputStaysThatOfTheStaticModel) {
  at::NoGradGuard no_grad;
  const Checkpoint checkpoint = ordinary_static();
  const Checkpoint dynamic = add_routers(checkpoint, {}, 1);
  DiT model = make_model(dynamic);
  const test::Inputs inputs = test::random_inputs(dynamic.config, 4);
  const at::Tensor t_emb = model->embed_timestep(at::tensor({3, 300, 600, 999}));
  GateNoise noise = draw_gate_noise(dynamic.config, 1, 0, 0, 4);
  for (auto* list : {&noise.heads, &noise.groups, &noise.tokens}) {
    for (at::Tensor& values : *list) values.zero_();
  }
  const TrainingGates gates(model, t_emb, noise, GateKind::Hard);
  const at::Tensor output = model->forward(inputs.x, t_emb, inputs.labels(), gates.gates());
  EXPECT_TRUE(at::equal(gates.inference_ratio(), at::ones({4})));
  EXPECT_LT(test::relative_difference(output, static_output(checkpoint)), 1e-5);
}

TEST(AddRouters, ADynamicModelIsRefused) {
  test::expect_error([] { add_routers(test::random_checkpoint(test::tiny_config()), {}, 1); },
                     "already has routers");
}

TEST(DropRouters, LeavesTheStaticModel) {
  const Checkpoint before = ordinary_static();
  Checkpoint dynamic = keep_shares(before, {.heads = 0.5});
  dynamic.lambda = 0.5;
  const Checkpoint after = drop_routers(dynamic);
  EXPECT_EQ(after.config, before.config);
  EXPECT_FALSE(after.lambda);
  EXPECT_EQ(after.gate_rule(), GateRule::Threshold);
  ASSERT_EQ(after.weights.size(), before.weights.size());
  for (const auto& [name, weight] : before.weights) EXPECT_TRUE(at::equal(weight, after.weights.at(name)));
}

TEST(DropRouters, AStaticModelIsRefused) {
  test::expect_error([] { drop_routers(ordinary_static()); }, "has no routers to drop");
}

TEST(KeepShares, AreCountsOfEveryBlockAndQuarter) {
  const Checkpoint kept = keep_shares(ordinary_static(), {.heads = 0.5, .groups = 0, .tokens = 0.25});
  EXPECT_EQ(kept.gate_rule(), GateRule::Capacity);
  using Blocks = std::vector<KeepCounts::PerRegion>;
  EXPECT_EQ(kept.keep_counts->heads, Blocks(2, {2, 2, 2, 2}));
  EXPECT_EQ(kept.keep_counts->groups, Blocks(2, {1, 1, 1, 1}));  // the first is always on
  EXPECT_EQ(kept.keep_counts->tokens, Blocks(2, {4, 4, 4, 4}));
}

TEST(KeepShares, OfKindsWithoutRoutersAreLeftOut) {
  const Checkpoint kept = keep_shares(add_routers(ordinary_static(), {.tokens = false}, 1), {.tokens = 0.5});
  EXPECT_EQ(kept.keep_counts->heads.size(), 2u);
  EXPECT_TRUE(kept.keep_counts->tokens.empty());
}

TEST(InDtype, LeavesThePositionsInFloat32) {
  for (const auto& [name, weight] : in_dtype(ordinary_static(), at::kBFloat16).weights)
    EXPECT_EQ(weight.scalar_type(), name == "pos_embed" ? at::kFloat : at::kBFloat16) << name;
}

TEST(RandomModel, IsOfTheSizeWithRoutersWhereItsNameSaysSo) {
  const Checkpoint complete = random_model("DiT-S/8", 16), dynamic = random_model("DyDiT-S/8", 16);
  EXPECT_EQ(model_name(complete.config), "DiT-S/8");
  EXPECT_EQ(model_name(dynamic.config), "DyDiT-S/8");
  EXPECT_EQ(dynamic.config.input_size, 16);
  EXPECT_EQ(dynamic.gate_rule(), GateRule::Threshold);
}

// Sum of |weights| of rows [first, first + count) of a matrix, or of its columns.
double sum_rows(const at::Tensor& weight, int64_t first, int64_t count) {
  return weight.slice(0, first, first + count).to(at::kDouble).abs().sum().item<double>();
}
double sum_columns(const at::Tensor& weight, int64_t first, int64_t count) {
  return weight.slice(1, first, first + count).to(at::kDouble).abs().sum().item<double>();
}

std::vector<double> head_importance(const Checkpoint& checkpoint, const std::string& block) {
  const int64_t C = checkpoint.config.hidden_size, D = checkpoint.config.head_size();
  const at::Tensor &qkv = checkpoint.weights.at(block + "attn.qkv.weight"),
                   &proj = checkpoint.weights.at(block + "attn.proj.weight");
  std::vector<double> importance;
  for (int h = 0; h < checkpoint.config.num_heads; ++h) {
    importance.push_back(sum_rows(qkv, h * D, D) + sum_rows(qkv, C + h * D, D) +
                         sum_rows(qkv, 2 * C + h * D, D) + sum_columns(proj, h * D, D));
  }
  return importance;
}

std::vector<double> channel_importance(const Checkpoint& checkpoint, const std::string& block) {
  std::vector<double> importance;
  for (int c = 0; c < checkpoint.config.mlp_hidden; ++c) {
    importance.push_back(sum_rows(checkpoint.weights.at(block + "mlp.fc1.weight"), c, 1) +
                         sum_columns(checkpoint.weights.at(block + "mlp.fc2.weight"), c, 1));
  }
  return importance;
}

// Neither descending nor nearly equal before: heads and channels of very different sizes.
Checkpoint uneven_static() {
  Checkpoint checkpoint = test::random_checkpoint(static_config());
  for (int l = 0; l < 2; ++l) {
    at::Tensor& qkv = checkpoint.weights.at(fmt::format("blocks.{}.attn.qkv.weight", l));
    const at::Tensor scale =
        at::tensor(l == 0 ? std::vector<float>{0.5, 1, 0.7, 1.5} : std::vector<float>{1, 0.6, 1.4, 0.8});
    qkv = (qkv.view({3, 4, 16, 64}) * scale.view({1, 4, 1, 1})).view({192, 64}).contiguous();
  }
  return checkpoint;
}

TEST(ReorderByImportance, ImportanceDescendsAfterwards) {
  const Checkpoint before = uneven_static(), after = reorder_by_importance(before);
  for (const std::string block : {"blocks.0.", "blocks.1."}) {
    for (const auto importance : {head_importance, channel_importance}) {
      std::vector<double> wanted = importance(before, block), got = importance(after, block);
      EXPECT_FALSE(std::is_sorted(wanted.rbegin(), wanted.rend()));
      std::sort(wanted.rbegin(), wanted.rend());
      ASSERT_EQ(got.size(), wanted.size());
      for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], wanted[i], 1e-6) << block << i;
    }
  }
}

TEST(ReorderByImportance, StaticOutputStays) {
  const Checkpoint before = uneven_static();
  EXPECT_LT(test::relative_difference(static_output(reorder_by_importance(before)), static_output(before)),
            1e-5);
}

TEST(ReorderByImportance, TheSourceIsNotWrittenTo) {
  const Checkpoint before = uneven_static();
  Weights copies;
  for (const auto& [name, weight] : before.weights) copies[name] = weight.clone();
  reorder_by_importance(before);
  for (const auto& [name, weight] : before.weights) EXPECT_TRUE(at::equal(weight, copies.at(name))) << name;
}

TEST(InitCheckpoint, RefusesAModelThatCannotFit) {
  DiTConfig wide = static_config(), fine = static_config();
  wide.hidden_size = 1 << 16;
  wide.depth = 1024;
  fine.input_size = 1 << 16;  // 2^30 tokens
  fine.patch_size = 2;
  for (const DiTConfig& config : {wide, fine}) {
    const std::string message = test::error_of([&] { init_checkpoint(config, 1); });
    EXPECT_TRUE(message.starts_with(model_name(config) + ": needs at least ")) << message;
    EXPECT_TRUE(message.ends_with("; take a smaller model")) << message;
  }
}

}  // namespace
}  // namespace dydit
