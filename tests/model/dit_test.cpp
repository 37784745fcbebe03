// The forward's invariances and what a closed gate means.
#include "dydit/model/dit.h"

#include <cmath>
#include <vector>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "dydit/model/embeddings.h"
#include "tests/support/golden.h"
#include "tests/support/random_model.h"

namespace dydit {
namespace {

using test::golden;
using test::Inputs;
using test::odd_config;
using test::random_checkpoint;
using test::random_inputs;
using test::random_model;
using test::random_tensor;
using test::relative_difference;
using test::static_config;
using test::tiny_config;

constexpr int kBatch = 3;

at::Tensor forward(DiT model, const Gates& gates = {}) {
  at::NoGradGuard no_grad;
  const Inputs inputs = random_inputs(model->config, kBatch);
  const at::Tensor t = at::tensor({0L, 421L, 999L});
  return model->forward(inputs.x, model->embed_timestep(t), inputs.labels(), gates);
}

// (kBatch, H) for every block: `off` times `value`, the others 1.
std::vector<at::Tensor> gate_of(const DiTConfig& config, int off, double value) {
  std::vector<at::Tensor> gates;
  for (int b = 0; b < config.depth; ++b) {
    gates.push_back(at::ones({kBatch, config.num_heads}));
    gates.back().select(1, off).fill_(value);
  }
  return gates;
}

Gates head_gates(const DiTConfig& config, int off, double value) {
  Gates gates;
  gates.heads = gate_of(config, off, value);
  return gates;
}

Gates group_gates(const DiTConfig& config, int off, double value) {
  Gates gates;
  gates.groups = gate_of(config, off, value);
  return gates;
}

// The weights with group `group` of every block's fc1 rows, bias included, times `factor`.
Checkpoint with_scaled_fc1(const DiTConfig& config, int group, double factor) {
  Checkpoint checkpoint = random_checkpoint(config);
  for (int b = 0; b < config.depth; ++b) {
    for (const char* part : {"weight", "bias"}) {
      checkpoint.weights.at(fmt::format("blocks.{}.mlp.fc1.{}", b, part))
          .slice(0, group * config.group_size(), (group + 1) * config.group_size())
          .mul_(factor);
    }
  }
  return checkpoint;
}

TEST(PositionTable, IsTheOriginals) {
  const at::Tensor wanted = golden("forward", "pos_embed_formula");
  EXPECT_LT((sincos_pos_embed(96, 8) - wanted).abs().max().item<float>(), 1e-6f);
}

TEST(TimestepFrequencies, PutCosBeforeSin) {
  const at::Tensor at_zero = timestep_frequencies(at::tensor({0L}), 256, 128);
  EXPECT_TRUE(at::equal(at_zero.slice(1, 0, 128), at::ones({1, 128})));
  EXPECT_TRUE(at::equal(at_zero.slice(1, 128), at::zeros({1, 128})));
}

// Of t = 37, frequencies 10000^(-i / divisor).
void expect_frequencies(Semantics semantics, int divisor) {
  EXPECT_EQ(with_semantics({}, semantics).frequency_divisor, divisor);
  const at::Tensor got = timestep_frequencies(at::tensor({37L}), 256, divisor);
  for (int i : {0, 1, 64, 127}) {
    const double angle = 37 * std::pow(10000.0, -i / static_cast<double>(divisor));
    EXPECT_NEAR(got[0][i].item<double>(), std::cos(angle), 5e-6);
    EXPECT_NEAR(got[0][128 + i].item<double>(), std::sin(angle), 5e-6);
  }
}

TEST(TimestepFrequencies, FallAsPowersOfIOver128) { expect_frequencies(Semantics::Original, 128); }
TEST(TimestepFrequencies, OfDiffusersFallAsPowersOfIOver127) {
  expect_frequencies(Semantics::Diffusers, 127);
}

TEST(DiT, ReproducesThePublishedCompleteForward) {
  at::NoGradGuard no_grad;
  DiT model = make_model(load_checkpoint(test::golden_path("model.safetensors")));
  const at::Tensor out = model->forward(golden("forward", "x"), model->embed_timestep(golden("forward", "t")),
                                        golden("forward", "y"));
  EXPECT_LT(relative_difference(out, golden("forward", "out_static")), 1e-5);
}

TEST(DiT, PermutingHeadsLeavesTheOutputUnchanged) {
  const DiTConfig config = static_config();
  const int64_t C = config.hidden_size, H = config.num_heads, D = config.head_size();
  const at::Tensor order = at::tensor({2L, 0L, 3L, 1L});
  Checkpoint permuted = random_checkpoint(config);
  for (int b = 0; b < config.depth; ++b) {
    const std::string attn = fmt::format("blocks.{}.attn.", b);
    at::Tensor& weight = permuted.weights.at(attn + "qkv.weight");
    weight = weight.view({3, H, D, C}).index_select(1, order).reshape({3 * C, C});
    at::Tensor& bias = permuted.weights.at(attn + "qkv.bias");
    bias = bias.view({3, H, D}).index_select(1, order).reshape({3 * C});
    at::Tensor& proj = permuted.weights.at(attn + "proj.weight");
    proj = proj.view({C, H, D}).index_select(1, order).reshape({C, C});
  }
  EXPECT_LT(relative_difference(forward(make_model(permuted)), forward(random_model(config))), 1e-5);
}

TEST(DiT, PermutingMlpChannelsLeavesTheOutputUnchanged) {
  const DiTConfig config = static_config();
  const at::Tensor order = random_tensor({config.mlp_hidden}, 1, 0).argsort();
  Checkpoint permuted = random_checkpoint(config);
  for (int b = 0; b < config.depth; ++b) {
    const std::string mlp = fmt::format("blocks.{}.mlp.", b);
    for (const char* name : {"fc1.weight", "fc1.bias"}) {
      at::Tensor& rows = permuted.weights.at(mlp + name);
      rows = rows.index_select(0, order);
    }
    at::Tensor& columns = permuted.weights.at(mlp + "fc2.weight");
    columns = columns.index_select(1, order);
  }
  EXPECT_LT(relative_difference(forward(make_model(permuted)), forward(random_model(config))), 1e-5);
}

TEST(DiT, ClosedGroupEqualsFc1RowsOfZero) {
  for (const DiTConfig& config : {tiny_config(), odd_config()}) {
    const at::Tensor zeroed = forward(make_model(with_scaled_fc1(config, 2, 0)));
    EXPECT_LT(relative_difference(forward(random_model(config), group_gates(config, 2, 0)), zeroed), 1e-6);
    EXPECT_GT(relative_difference(forward(random_model(config)), zeroed), 1e-3);
  }
}

TEST(DiT, GroupGateMultipliesBeforeGelu) {
  // A half-open gate tells the two places apart: GELU(x / 2) is not GELU(x) / 2.
  const at::Tensor halved = forward(make_model(with_scaled_fc1(tiny_config(), 2, 0.5)));
  const at::Tensor gated = forward(random_model(tiny_config()), group_gates(tiny_config(), 2, 0.5));
  EXPECT_LT(relative_difference(gated, halved), 1e-6);
}

TEST(DiT, ClosedHeadEqualsProjColumnsOfZero) {
  for (const DiTConfig& config : {tiny_config(), odd_config()}) {
    Checkpoint checkpoint = random_checkpoint(config);
    for (int b = 0; b < config.depth; ++b) {
      checkpoint.weights.at(fmt::format("blocks.{}.attn.proj.weight", b))
          .slice(1, 2 * config.head_size(), 3 * config.head_size())
          .zero_();
    }
    const at::Tensor zeroed = forward(make_model(checkpoint));
    EXPECT_LT(relative_difference(forward(random_model(config), head_gates(config, 2, 0)), zeroed), 1e-6);
    EXPECT_GT(relative_difference(forward(random_model(config)), zeroed), 1e-3);
  }
}

// One block on random inputs; `tokens` (1, N) multiplies the MLP's update, undefined: no token gate.
at::Tensor block_output(const Checkpoint& checkpoint, const at::Tensor& tokens) {
  at::NoGradGuard no_grad;
  DiT model = make_model(checkpoint);
  Gates gates;
  if (tokens.defined()) gates.tokens = [&](int, const at::Tensor&) { return tokens; };
  return model->blocks[0]->forward(random_tensor({1, 16, 64}, 3, 0), random_tensor({1, 64}, 3, 1), gates,
                                   at::kFloat);
}

TEST(DiTBlock, ClosedTokenKeepsTheResidualExactly) {
  Checkpoint without_mlp = random_checkpoint(tiny_config());  // gate_mlp = 0: what attention left
  for (const char* part : {"weight", "bias"}) {
    without_mlp.weights.at(fmt::format("blocks.0.adaLN_modulation.1.{}", part))
        .slice(0, 5 * 64, 6 * 64)
        .zero_();
  }
  const at::Tensor residual = block_output(without_mlp, {});
  const at::Tensor every_other = at::arange(16).remainder(2).to(at::kFloat).unsqueeze(0);
  const at::Tensor gated = block_output(random_checkpoint(tiny_config()), every_other);
  EXPECT_TRUE(at::equal(gated.slice(1, 0, 16, 2), residual.slice(1, 0, 16, 2)));
}

TEST(DiTBlock, OpenTokenGetsTheWholeUpdate) {
  const at::Tensor complete = block_output(random_checkpoint(tiny_config()), {});
  const at::Tensor every_other = at::arange(16).remainder(2).to(at::kFloat).unsqueeze(0);
  const at::Tensor gated = block_output(random_checkpoint(tiny_config()), every_other);
  EXPECT_TRUE(at::equal(gated.slice(1, 1, 16, 2), complete.slice(1, 1, 16, 2)));
}

TEST(DiTBlock, TokenRouterSeesWhatAttentionLeft) {
  at::NoGradGuard no_grad;
  const Checkpoint checkpoint = random_checkpoint(tiny_config());
  DiT model = make_model(checkpoint);
  at::Tensor logits;
  Gates gates;
  gates.tokens = [&](int, const at::Tensor& seen) {
    logits = seen;
    return at::zeros_like(seen);  // the block then returns what attention left
  };
  const at::Tensor h = model->blocks[0]->forward(random_tensor({1, 16, 64}, 3, 0),
                                                 random_tensor({1, 64}, 3, 1), gates, at::kFloat);
  EXPECT_TRUE(at::equal(logits, model->blocks[0]->token_logits(h)));
}

TEST(DiT, Bfloat16IsNearFloat32) {
  const at::Tensor wanted = forward(random_model(static_config()));
  const double difference =
      relative_difference(forward(random_model(static_config(), at::kBFloat16)), wanted);
  EXPECT_LT(difference, 0.03);
  EXPECT_GT(difference, 1e-6);  // it was not float32 all along
}

TEST(DiT, RoutersStayFloat32InBfloat16) {
  DiT model = random_model(tiny_config(), at::kBFloat16);
  EXPECT_EQ(model->blocks[0]->attn_router->weight.scalar_type(), at::kFloat);
  EXPECT_EQ(model->blocks[0]->adaLN->weight.scalar_type(), at::kFloat);
  EXPECT_EQ(model->blocks[0]->qkv->weight.scalar_type(), at::kBFloat16);
}

}  // namespace
}  // namespace dydit
