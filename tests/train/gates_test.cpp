// The target's schedule, the noise, the straight-through gates and the work ratio that they make.
#include "dydit/train/gates.h"

#include <cmath>
#include <numbers>

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "dydit/train/options.h"
#include "tests/support/random_model.h"

namespace dydit {
namespace {

using test::tiny_config;

constexpr float kOpen = 100, kClosed = -100;  // logits beyond any noise

TEST(TargetRatio, IsOneBeforeTheAnnealStarts) {
  const DynamicOptions options{.lambda = 0.5, .anneal_start = 100, .anneal_steps = 1000};
  EXPECT_EQ(target_ratio(options, 0), 1.0);
  EXPECT_EQ(target_ratio(options, 99), 1.0);
}

TEST(TargetRatio, DropsToItsLineAtTheStartOfTheAnneal) {
  const DynamicOptions options{.lambda = 0.5, .anneal_start = 100, .anneal_steps = 1000};
  EXPECT_DOUBLE_EQ(target_ratio(options, 100), 0.95);
  EXPECT_DOUBLE_EQ(target_ratio(options, 500), 0.75);
  const DynamicOptions slow{.lambda = 0.7, .anneal_start = 100, .anneal_steps = 5000};
  EXPECT_DOUBLE_EQ(target_ratio(slow, 1000), 0.94);
}

TEST(TargetRatio, IsLambdaFromStepWOn) {
  const DynamicOptions options{.lambda = 0.5, .anneal_start = 100, .anneal_steps = 1000};
  EXPECT_GT(target_ratio(options, 999), 0.5);
  EXPECT_DOUBLE_EQ(target_ratio(options, 1000), 0.5);
  EXPECT_DOUBLE_EQ(target_ratio(options, 1'000'000), 0.5);
}

TEST(LearningRate, WarmsUpLinearlyAndStays) {
  TrainOptions options;
  options.lr = 8e-4;
  options.warmup_steps = 4;
  for (int step = 0; step < 4; ++step) EXPECT_DOUBLE_EQ(learning_rate(options, step), 2e-4 * (step + 1));
  EXPECT_DOUBLE_EQ(learning_rate(options, 4), 8e-4);
  EXPECT_DOUBLE_EQ(learning_rate(options, 1000), 8e-4);
  options.warmup_steps = 0;
  EXPECT_DOUBLE_EQ(learning_rate(options, 0), 8e-4);
}

TEST(GumbelGate, ForwardIsExactlyZeroOrOne) {
  const at::Tensor logits = test::random_tensor({4096}, /*seed=*/1, 0, 3).requires_grad_();
  const at::Tensor noise = test::random_tensor({4096}, /*seed=*/1, 1, 3);
  const at::Tensor gate = gumbel_gate(logits, noise, GateKind::Hard);
  EXPECT_TRUE(at::equal(gate, (logits + noise > 0).to(at::kFloat)));
  EXPECT_GT(gate.sum().item<float>(), 1500);
  EXPECT_LT(gate.sum().item<float>(), 2600);
}

TEST(GumbelGate, SoftIsTheSigmoidAtTauFive) {
  const at::Tensor gate = gumbel_gate(at::tensor({2.0f, -7.0f}), at::tensor({3.0f, -3.0f}), GateKind::Soft);
  EXPECT_NEAR(gate[0].item<double>(), 1 / (1 + std::exp(-1.0)), 1e-6);
  EXPECT_NEAR(gate[1].item<double>(), 1 / (1 + std::exp(2.0)), 1e-6);
}

TEST(GumbelGate, GradientOfTheHardGateIsThatOfTheSoftOne) {
  const at::Tensor noise = test::random_tensor({64}, /*seed=*/2, 1, 2).to(at::kDouble);
  at::Tensor logits = test::random_tensor({64}, /*seed=*/2, 0, 4).to(at::kDouble).requires_grad_();
  gumbel_gate(logits, noise, GateKind::Hard).sum().backward();
  const double h = 1e-4;
  for (int i = 0; i < 64; ++i) {
    const double u = logits[i].item<double>() + noise[i].item<double>();
    const auto soft = [](double x) { return 1 / (1 + std::exp(-x / 5)); };
    const double wanted = (soft(u + h) - soft(u - h)) / (2 * h);
    EXPECT_NEAR(logits.grad()[i].item<double>(), wanted, 1e-8) << i;
  }
}

TEST(GateNoise, IsAFunctionOfSeedStepAndSample) {
  const DiTConfig config = tiny_config();
  const auto first_head = [&](uint64_t seed, uint64_t step, int sample) {
    return draw_gate_noise(config, seed, step, sample, 1).heads[0];
  };
  EXPECT_TRUE(at::equal(first_head(1, 2, 3), first_head(1, 2, 3)));
  EXPECT_FALSE(at::equal(first_head(1, 2, 3), first_head(9, 2, 3)));
  EXPECT_FALSE(at::equal(first_head(1, 2, 3), first_head(1, 9, 3)));
  EXPECT_FALSE(at::equal(first_head(1, 2, 3), first_head(1, 2, 9)));
}

TEST(GateNoise, DoesNotDependOnHowTheBatchIsCut) {
  const DiTConfig config = tiny_config();
  const GateNoise all = draw_gate_noise(config, /*seed=*/3, /*step=*/7, 0, 8);
  for (const auto& [first, count] : {std::pair{0, 3}, std::pair{3, 5}}) {
    const GateNoise part = draw_gate_noise(config, /*seed=*/3, /*step=*/7, first, count);
    for (int l = 0; l < config.depth; ++l) {
      EXPECT_TRUE(at::equal(part.heads[l], all.heads[l].slice(0, first, first + count)));
      EXPECT_TRUE(at::equal(part.groups[l], all.groups[l].slice(0, first, first + count)));
      EXPECT_TRUE(at::equal(part.tokens[l], all.tokens[l].slice(0, first, first + count)));
    }
  }
}

TEST(GateNoise, NoTwoGatesShareADraw) {
  const DiTConfig config = tiny_config();
  const GateNoise noise = draw_gate_noise(config, /*seed=*/3, /*step=*/7, 0, 4);
  std::vector<at::Tensor> all;
  for (const auto* list : {&noise.heads, &noise.groups, &noise.tokens}) {
    ASSERT_EQ(list->size(), 2u);
    for (const at::Tensor& part : *list) all.push_back(part.flatten());
  }
  const at::Tensor values = at::cat(all);
  EXPECT_EQ(values.numel(), 4 * (2 * 2 * 3 + 2 * 16));
  EXPECT_EQ(std::get<0>(at::_unique(values)).numel(), values.numel());
}

// G1 - G2 of two Gumbel variables is logistic: mean 0, variance pi^2 / 3, P(x > 2) = 1 / (1 + e^2).
TEST(GateNoise, IsLogistic) {
  const GateNoise noise = draw_gate_noise(tiny_config(), /*seed=*/5, /*step=*/0, 0, 1000);
  const at::Tensor values = at::cat(noise.tokens).flatten().to(at::kDouble);  // 32,000
  EXPECT_NEAR(values.mean().item<double>(), 0, 0.06);
  EXPECT_NEAR(values.var().item<double>(), std::numbers::pi * std::numbers::pi / 3, 0.2);
  EXPECT_NEAR((values > 2).to(at::kDouble).mean().item<double>(), 1 / (1 + std::exp(2.0)), 0.01);
}

// A model whose width routers say exactly `heads` and `groups` (L x (H-1) logits), whatever t.
DiT model_with_logits(const DiTConfig& config, const std::vector<std::vector<float>>& heads,
                      const std::vector<std::vector<float>>& groups) {
  Checkpoint checkpoint = test::random_checkpoint(config);
  for (int l = 0; l < config.depth; ++l) {
    for (const auto& [router, logits] :
         {std::pair{"attn_rate", heads[l]}, std::pair{"mlp_rate", groups[l]}}) {
      const std::string name = fmt::format("blocks.{}.{}.router.", l, router);
      checkpoint.weights.at(name + "weight").zero_();
      checkpoint.weights.at(name + "bias").copy_(at::tensor(logits));
    }
  }
  return make_model(checkpoint);
}

GateNoise constant_noise(const DiTConfig& config, int B, float value) {
  GateNoise noise;
  for (int l = 0; l < config.depth; ++l) {
    noise.heads.push_back(at::full({B, config.num_heads - 1}, value));
    noise.groups.push_back(at::full({B, config.num_heads - 1}, value));
    noise.tokens.push_back(at::full({B, config.num_tokens()}, value));
  }
  return noise;
}

// (B, N) logits of which the first `open` tokens are on.
at::Tensor token_logits(int B, int N, int open) {
  at::Tensor logits = at::full({B, N}, kClosed);
  logits.slice(1, 0, open).fill_(kOpen);
  return logits;
}

// attn_macs and mlp_macs of method.md section 2.
double attn_of(const DiTConfig& config) {
  const double N = config.num_tokens(), C = config.hidden_size;
  return 4 * N * C * C + 2 * N * N * C;
}
double mlp_of(const DiTConfig& config) {
  const double N = config.num_tokens(), C = config.hidden_size;
  return 8 * N * C * C;
}

TEST(TrainingGates, FirstHeadAndFirstGroupAreAlwaysOn) {
  const DiTConfig config = tiny_config();
  const std::vector<std::vector<float>> closed(2, {kClosed, kClosed, kClosed});
  DiT model = model_with_logits(config, closed, closed);
  for (const GateKind kind : {GateKind::Hard, GateKind::Soft}) {
    const TrainingGates gates(model, at::zeros({3, 64}), constant_noise(config, 3, -5), kind);
    for (const auto* list : {&gates.gates().heads, &gates.gates().groups}) {
      for (const at::Tensor& gate : *list) {
        ASSERT_EQ(gate.sizes().vec(), (std::vector<int64_t>{3, 4}));
        EXPECT_TRUE((gate.select(1, 0) == 1).all().item<bool>());
        EXPECT_LT(gate.slice(1, 1).max().item<float>(), 1e-6);
      }
    }
  }
}

TEST(TrainingGates, RatioIsTheShareOfWorkThatIsOn) {
  const DiTConfig config = tiny_config();  // 4 heads, 16 tokens, 2 blocks
  DiT model = model_with_logits(config, {{kOpen, kClosed, kClosed}, {kOpen, kOpen, kOpen}},
                                {{kOpen, kOpen, kClosed}, {kClosed, kClosed, kClosed}});
  const TrainingGates gates(model, at::zeros({2, 64}), constant_noise(config, 2, 0), GateKind::Hard);
  gates.gates().tokens(0, at::cat({token_logits(1, 16, 4), token_logits(1, 16, 12)}));
  gates.gates().tokens(1, at::cat({token_logits(1, 16, 16), token_logits(1, 16, 0)}));
  const double A = attn_of(config), M = mlp_of(config);
  const at::Tensor ratio = gates.ratio();
  // heads 2/4 and 4/4, groups 3/4 and 1/4; tokens differ by sample
  EXPECT_NEAR(ratio[0].item<double>(), (A * 1.5 + M * (0.75 * 0.25 + 0.25 * 1)) / (2 * (A + M)), 1e-6);
  EXPECT_NEAR(ratio[1].item<double>(), (A * 1.5 + M * (0.75 * 0.75 + 0.25 * 0)) / (2 * (A + M)), 1e-6);
  EXPECT_TRUE(at::allclose(gates.inference_ratio(), ratio));
  const TrainingGates::Kept kept = gates.kept();
  EXPECT_NEAR(kept.heads[0].item<double>(), 0.75, 1e-6);
  EXPECT_NEAR(kept.groups[0].item<double>(), 0.5, 1e-6);
  EXPECT_NEAR(kept.tokens[0].item<double>(), 0.625, 1e-6);
  EXPECT_NEAR(kept.tokens[1].item<double>(), 0.375, 1e-6);
}

TEST(TrainingGates, InferenceRatioKnowsNoNoise) {
  const DiTConfig config = tiny_config();
  const std::vector<std::vector<float>> barely(2, {0.1f, 0.1f, 0.1f});
  DiT model = model_with_logits(config, barely, barely);
  const TrainingGates gates(model, at::zeros({2, 64}), constant_noise(config, 2, -50), GateKind::Hard);
  for (int l = 0; l < 2; ++l) gates.gates().tokens(l, at::full({2, 16}, 0.1f));
  const double A = attn_of(config), M = mlp_of(config);
  EXPECT_NEAR(gates.ratio()[0].item<double>(), A * 0.25 / (A + M), 1e-6);
  EXPECT_TRUE(at::equal(gates.inference_ratio(), at::ones({2})));
}

TEST(TrainingGates, RatioSendsTheStraightThroughGradientToTheRouters) {
  const DiTConfig config = tiny_config();
  const std::vector<std::vector<float>> logits(2, {1, -2, 3});
  DiT model = model_with_logits(config, logits, logits);
  const TrainingGates gates(model, at::zeros({1, 64}), constant_noise(config, 1, 0.5f), GateKind::Hard);
  for (int l = 0; l < 2; ++l) gates.gates().tokens(l, token_logits(1, 16, 8));
  gates.ratio().sum().backward();
  const double A = attn_of(config), M = mlp_of(config);
  for (int j = 0; j < 3; ++j) {
    const double s = 1 / (1 + std::exp(-(logits[0][j] + 0.5) / 5)),
                 slope = s * (1 - s) / 5 / 4 / (2 * (A + M));
    EXPECT_NEAR(model->blocks[0]->attn_router->bias.grad()[j].item<double>(), A * slope, 1e-6) << j;
    EXPECT_NEAR(model->blocks[0]->mlp_router->bias.grad()[j].item<double>(), M * slope * 0.5, 1e-6) << j;
  }
}

TEST(TrainingGates, AMissingRouterCountsAsAllOn) {
  DiTConfig config = tiny_config();
  config.token_routers = false;
  const std::vector<std::vector<float>> closed(2, {kClosed, kClosed, kClosed});
  DiT model = model_with_logits(config, closed, closed);
  const TrainingGates gates(model, at::zeros({2, 64}), constant_noise(config, 2, 0), GateKind::Hard);
  EXPECT_FALSE(gates.gates().tokens);
  EXPECT_NEAR(gates.ratio()[0].item<double>(), 0.25, 1e-6);  // one head and one group of four
  EXPECT_NEAR(gates.kept().tokens[0].item<double>(), 1, 0);
}

TEST(FlopsLoss, IsTwiceTheSquareOfTheGap) {
  at::Tensor ratio = at::tensor({0.8}, at::kDouble).requires_grad_();
  const at::Tensor loss = flops_loss(ratio, 0.5);
  loss.sum().backward();
  EXPECT_NEAR(loss.item<double>(), 2 * 0.3 * 0.3, 1e-12);
  EXPECT_NEAR(ratio.grad().item<double>(), 4 * 0.3, 1e-12);
}

}  // namespace
}  // namespace dydit
