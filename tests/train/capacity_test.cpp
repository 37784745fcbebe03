// The capacity rule in training: as many parts stay on as the counts say, and the counts meet the target.
#include "dydit/train/capacity.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include <gtest/gtest.h>
#include <torch/torch.h>

#include "dydit/engine/engine.h"
#include "dydit/model/edit.h"
#include "dydit/model/macs.h"
#include "dydit/plan/run_plan.h"
#include "dydit/train/gates.h"
#include "dydit/train/trainer.h"
#include "tests/support/engines.h"
#include "tests/support/files.h"
#include "tests/support/noise_images.h"
#include "tests/support/random_model.h"

namespace dydit {
namespace {

using test::odd_config;
using test::one_head_config;
using test::random_tensor;
using test::tiny_config;

DiTConfig without_tokens(DiTConfig config) {
  config.token_routers = false;
  return config;
}

DiTConfig without_widths(DiTConfig config) {
  config.width_routers = false;
  return config;
}

// The shape of the models that are trained: 8 blocks of 8 heads on 64 tokens.
DiTConfig cifar_config() {
  DiTConfig config = tiny_config();
  config.input_size = 32;
  config.patch_size = 4;
  config.hidden_size = 256;
  config.mlp_hidden = 1024;
  config.depth = config.num_heads = 8;
  return config;
}

// Shares of a model that learned, (3, L, 4): `spread` apart.
at::Tensor learned_share(const DiTConfig& config, double spread, uint64_t seed) {
  return at::exp(random_tensor({3, config.depth, kQuarters}, seed, 0, spread)).mul(0.5).clamp(0.05, 1);
}

// Work ratio of method section 2 at inference, mean over the quarters of t.
double keep_ratio(const DiTConfig& config, const KeepCounts& counts) {
  const int H = config.num_heads, N = config.num_tokens(), L = config.depth;
  const auto count = [](const std::vector<KeepCounts::PerRegion>& kept, int l, int q, int all) {
    return kept.empty() ? all : kept[l][q];
  };
  int64_t work = 0;
  for (int l = 0; l < L; ++l) {
    for (int q = 0; q < kQuarters; ++q) {
      work += attention_macs(config, count(counts.heads, l, q, H)) +
              mlp_macs(config, count(counts.groups, l, q, H), count(counts.tokens, l, q, N));
    }
  }
  const int64_t all = (attention_macs(config, H) + mlp_macs(config, H, N)) * L * kQuarters;
  return static_cast<double>(work) / static_cast<double>(all);
}

double ratio_of(const DiTConfig& config, at::Tensor share, double target) {
  scale_shares(config, share, target);
  return keep_ratio(config, keep_counts(config, choose_counts(config, share, target)));
}

// Largest relative distance of the work ratio from its target over shares equal, near and far apart.
double worst_miss(const DiTConfig& config, double target) {
  double worst = 0;
  for (const double spread : {0.0, 0.01, 0.3, 1.0}) {
    for (uint64_t seed = 1; seed <= 5; ++seed) {
      const double ratio = ratio_of(config, learned_share(config, spread, seed), target);
      worst = std::max(worst, std::abs(ratio - target) / target);
    }
  }
  return worst;
}

TEST(ChooseCounts, MeetTheTargetWithinHalfAPercent) {
  for (const double target : {0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99}) {
    for (const DiTConfig& config :
         {tiny_config(), odd_config(), one_head_config(), cifar_config(), without_tokens(tiny_config()),
          without_tokens(cifar_config()), without_widths(tiny_config()), without_widths(cifar_config())}) {
      EXPECT_LT(worst_miss(config, target), 0.005) << target << " of " << model_name(config);
    }
  }
}

TEST(ChooseCounts, OfALowTargetMeetItToo) {
  for (const DiTConfig& config :
       {tiny_config(), odd_config(), cifar_config(), without_tokens(cifar_config())})
    EXPECT_LT(worst_miss(config, 0.3), 0.005) << model_name(config);
}

// 3 blocks of 3 heads and no token router: the work goes in steps of 0.0062.
TEST(ChooseCounts, OfFewPartsComeAsNearAsTheirNumberAllows) {
  EXPECT_LT(worst_miss(without_tokens(odd_config()), 0.6), 0.0062 / 2 / 0.6);
}

TEST(ChooseCounts, OfATargetThatCannotBeReachedAreTheLeast) {
  const DiTConfig config = without_widths(tiny_config());  // attention alone is 0.36
  at::Tensor share = at::ones({3, config.depth, kQuarters});
  scale_shares(config, share, 0.1);
  const KeepCounts counts = keep_counts(config, choose_counts(config, share, 0.1));
  for (const auto& quarters : counts.tokens) EXPECT_EQ(quarters, (KeepCounts::PerRegion{1, 1, 1, 1}));
  EXPECT_TRUE(counts.heads.empty());
}

// Half of the quarters are each level's.
TEST(ChooseCounts, MeetTheTargetAtEveryLevelOverTheQuartersThatItIsTrainedIn) {
  DiTConfig config = cifar_config();
  config.level_from = {500};
  DiTConfig both = config;
  both.depth *= 2;  // shares of two levels
  for (const double target : {0.3, 0.5, 0.8}) {
    at::Tensor share = learned_share(both, 0.3, 7);
    scale_shares(config, share, target);
    const at::Tensor counts = choose_counts(config, share, target);
    for (const int level : {0, 1}) {
      const DiTConfig alone = at_level(config, level);
      const auto attn = static_cast<double>(attention_macs(alone, 8)),
                 mlp = static_cast<double>(mlp_macs(alone, 8, alone.num_tokens()));
      double work = 0;
      for (int l = 0; l < 8; ++l) {
        for (int q = 2 * level; q < 2 * level + 2; ++q) {
          const auto count = [&](int kind) { return counts[kind][8 * level + l][q].item<double>(); };
          work += attn * count(0) / 8 + mlp * count(1) / 8 * count(2) / alone.num_tokens();
        }
      }
      EXPECT_NEAR(work / (16 * (attn + mlp)), target, 0.005 * target) << "level " << level;
    }
  }
}

TEST(ChooseCounts, OfAllAreAll) {
  const DiTConfig config = tiny_config();
  at::Tensor share = learned_share(config, 1, 3);
  scale_shares(config, share, 1);
  const KeepCounts counts = keep_counts(config, choose_counts(config, share, 1));
  for (int l = 0; l < config.depth; ++l) {
    EXPECT_EQ(counts.heads[l], (KeepCounts::PerRegion{4, 4, 4, 4}));
    EXPECT_EQ(counts.groups[l], (KeepCounts::PerRegion{4, 4, 4, 4}));
    EXPECT_EQ(counts.tokens[l], (KeepCounts::PerRegion{16, 16, 16, 16}));
  }
}

// Off by one where the budget asks for it, never far from what was learned.
TEST(ChooseCounts, StayNearTheShares) {
  const DiTConfig config = cifar_config();
  at::Tensor share = learned_share(config, 0.5, 2);
  scale_shares(config, share, 0.5);
  const at::Tensor counts = choose_counts(config, share, 0.5);
  const at::Tensor parts = at::tensor({8.0f, 8.0f, 64.0f}).view({3, 1, 1});
  EXPECT_LT((counts - share * parts).abs().max().item<double>(), 1.5);
  EXPECT_GT(counts.min().item<int64_t>(), 0);
}

TEST(ScaleShares, KeepTheirProportions) {
  const DiTConfig config = cifar_config();
  at::Tensor share = at::full({3, config.depth, kQuarters}, 0.4);
  share[2][5][1] = 0.8;
  scale_shares(config, share, 0.3);
  EXPECT_NEAR((share[2][5][1] / share[0][0][0]).item<double>(), 2, 1e-4);
}

TEST(ProjectShareGradient, LeavesNoChangeOfTheWork) {
  const DiTConfig config = tiny_config();
  const at::Tensor share = learned_share(config, 0.3, 4);
  at::Tensor gradient = random_tensor(share.sizes(), 6, 0);
  project_share_gradient(config, share, gradient);
  const auto work = [&](const at::Tensor& r) {
    const auto attn = static_cast<double>(attention_macs(config, 4)),
               mlp = static_cast<double>(mlp_macs(config, 4, 16));
    return ((attn * r[0] + mlp * r[1] * r[2]).sum() / (attn + mlp)).item<double>();
  };
  const double h = 1e-2, along = (work(share + h * gradient) - work(share - h * gradient)) / (2 * h);
  EXPECT_NEAR(along, 0, 1e-4);
  EXPECT_GT(gradient.norm().item<double>(), 1);
}

at::Tensor gate_of(const at::Tensor& logits, const at::Tensor& noise, std::vector<int64_t> counts,
                   bool first_on) {
  return capacity_gate(logits, noise, at::full({logits.size(0)}, 0.5), at::tensor(counts), first_on);
}

TEST(CapacityGate, CountsTheAlwaysOnPart) {
  const at::Tensor logits = at::tensor({3.f, 1.f, 2.f}).repeat({4, 1}), none = at::zeros({4, 3});
  const at::Tensor wanted = at::tensor({0.f, 0.f, 0.f, 1.f, 0.f, 0.f, 1.f, 0.f, 1.f, 1.f, 1.f, 1.f});
  EXPECT_TRUE(at::equal(gate_of(logits, none, {1, 2, 3, 4}, /*first_on=*/true), wanted.view({4, 3})));
}

TEST(CapacityGate, OfTokensKeepsEachSamplesLargest) {
  const at::Tensor logits = at::tensor({-9.f, -1.f, -5.f, 7.f, 9.f, 8.f}).view({2, 3});
  const at::Tensor wanted = at::tensor({0.f, 1.f, 0.f, 0.f, 1.f, 1.f}).view({2, 3});
  EXPECT_TRUE(at::equal(gate_of(logits, at::zeros({2, 3}), {1, 2}, /*first_on=*/false), wanted));
}

TEST(CapacityGate, RanksLogitPlusNoise) {
  const at::Tensor logits = at::tensor({3.f, 1.f, 2.f}).view({1, 3}),
                   noise = at::tensor({0.f, 5.f, 0.f}).view({1, 3});
  EXPECT_TRUE(at::equal(gate_of(logits, noise, {1}, false), at::tensor({0.f, 1.f, 0.f}).view({1, 3})));
}

TEST(CapacityGate, OfEqualLogitsKeepsTheFirstAsThePlanDoes) {
  const at::Tensor logits = at::zeros({1, 9});
  const std::vector<uint8_t> planned = select_tokens({logits.data_ptr<float>(), 9}, 4);
  const at::Tensor gates = gate_of(logits, at::zeros({1, 9}), {4}, /*first_on=*/false);
  for (int i = 0; i < 9; ++i) EXPECT_EQ(gates[0][i].item<float>(), planned[i]);
}

TEST(CapacityGate, GivesLogitsASigmoidsGradientAroundTheBoundary) {
  const at::Tensor logits = at::tensor({3.f, -1.f, 2.f}).view({1, 3}).requires_grad_(true);
  const at::Tensor weights = at::tensor({1.f, 10.f, 100.f});
  (gate_of(logits, at::zeros({1, 3}), {2}, /*first_on=*/false) * weights).sum().backward();
  const at::Tensor s = at::sigmoid((logits.detach() - 2) / kGumbelTau);  // the second largest is the boundary
  const at::Tensor slope = weights * s * (1 - s) / kGumbelTau;
  EXPECT_TRUE(at::allclose(logits.grad(), slope - slope.mean()));
}

// Only their order decides, so nothing may push all logits one way: they would grow without bound.
TEST(CapacityGate, GivesLogitsNoCommonGradient) {
  const at::Tensor logits = random_tensor({5, 9}, 3, 0).requires_grad_(true),
                   noise = random_tensor({5, 9}, 3, 1);
  (gate_of(logits, noise, {1, 3, 5, 8, 9}, /*first_on=*/false) * random_tensor({5, 9}, 3, 2).abs())
      .sum()
      .backward();
  EXPECT_LT(logits.grad().sum(1).abs().max().item<double>(), 1e-6);
  EXPECT_GT(logits.grad().abs().max().item<double>(), 1e-3);
}

// Nor may anything push them apart once they are far apart.
TEST(CapacityGate, HoldsTheSpreadOfLogits) {
  const at::Tensor values = random_tensor({5, 9}, 3, 0, 100), noise = random_tensor({5, 9}, 3, 1);
  const at::Tensor logits = values.clone().requires_grad_(true);
  (gate_of(logits, noise, {1, 3, 5, 8, 9}, /*first_on=*/false) * random_tensor({5, 9}, 3, 2))
      .sum()
      .backward();
  const at::Tensor along = (logits.grad() * (values - values.mean(1, true))).sum(1);
  EXPECT_LT(along.abs().max().item<double>(), 1e-5);
  EXPECT_GT(logits.grad().abs().max().item<double>(), 1e-5);
}

// At a gate that is open the loss of a trained model is flat; one that is closed tells what it is worth.
TEST(CapacityGate, GivesTheShareTheFirstClosedGatesGradient) {
  const at::Tensor logits = at::tensor({3.f, -1.f, 2.f}).view({1, 3}),
                   weights = at::tensor({1.f, 10.f, 100.f});
  const auto gradient = [&](int64_t count, bool first_on) {
    const at::Tensor share = at::full({1}, 0.5).requires_grad_(true), none = at::zeros({1, 3});
    (capacity_gate(logits, none, share, at::tensor({count}), first_on) * weights).sum().backward();
    return share.grad().item<float>();
  };
  EXPECT_EQ(gradient(1, false), 100.0f * 3);  // times the parts there are
  EXPECT_EQ(gradient(2, false), 10.0f * 3);
  EXPECT_EQ(gradient(3, false), 0.0f);  // nothing is closed
  EXPECT_EQ(gradient(1, true), 1.0f * 4);
  EXPECT_EQ(gradient(2, true), 100.0f * 4);
}

// 20 parts: a tenth is two of them, one on either side of the count.
TEST(CapacityGate, OfAnIntervalGivesTheShareTheMeanOfItsPartsGradients) {
  const at::Tensor logits = -at::arange(20, at::kFloat).view({1, 20}), weights = at::arange(20, at::kFloat);
  const auto gradient = [&](float wanted, int64_t count) {
    const at::Tensor share = at::full({1}, wanted).requires_grad_(true), none = at::zeros({1, 20});
    (capacity_gate(logits, none, share, at::tensor({count}), false, ShareGradient::Interval) * weights)
        .sum()
        .backward();
    return share.grad().item<float>();
  };
  EXPECT_NEAR(gradient(0.5f, 10), 20 * 9.5, 1e-3);  // parts 9 and 10, times the parts there are
  EXPECT_NEAR(gradient(0.25f, 5), 20 * 4.5, 1e-3);
  EXPECT_NEAR(gradient(1, 20), 20 * 19, 1e-3);  // where nothing is closed, the last that is open
}

TEST(CapacityGate, OfAnIntervalOfFewPartsLooksAtOne) {
  const at::Tensor logits = at::tensor({3.f, -1.f, 2.f}).view({1, 3}),
                   weights = at::tensor({1.f, 10.f, 100.f}), share = at::full({1}, 0.5).requires_grad_(true),
                   none = at::zeros({1, 3});
  (capacity_gate(logits, none, share, at::tensor({int64_t{2}}), true, ShareGradient::Interval) * weights)
      .sum()
      .backward();
  EXPECT_EQ(share.grad().item<float>(), 100.0f * 4);  // 2 of 4 with the always-on one: the second of three
}

TEST(ChooseCounts, OfAnyNumberOfRegionsMeetTheTarget) {
  const DiTConfig config = cifar_config();
  for (const int regions : {1, 10}) {
    at::Tensor share = at::exp(random_tensor({3, 8, regions}, 3, 0, 0.3)).mul(0.5).clamp(0.05, 1);
    scale_shares(config, share, 0.5);
    const KeepCounts counts = keep_counts(config, choose_counts(config, share, 0.5));
    EXPECT_EQ(counts.regions(), regions);
    double work = 0;
    for (int l = 0; l < 8; ++l) {
      for (int r = 0; r < regions; ++r)
        work += static_cast<double>(attention_macs(config, counts.heads[l][r]) +
                                    mlp_macs(config, counts.groups[l][r], counts.tokens[l][r]));
    }
    const auto whole = static_cast<double>(attention_macs(config, 8) + mlp_macs(config, 8, 64));
    EXPECT_NEAR(work / (whole * 8 * regions), 0.5, 0.0025) << regions << " regions";
  }
}

// Attention is quadratic in the tokens that are left.
TEST(ChooseCounts, OfTokensThatSkipBlocksMeetTheTarget) {
  DiTConfig config = cifar_config();
  config.token_scope = TokenScope::Block;
  for (const double target : {0.3, 0.5, 0.7, 0.9}) {
    at::Tensor share = learned_share(config, 0.3, 5);
    scale_shares(config, share, target);
    const KeepCounts counts = keep_counts(config, choose_counts(config, share, target));
    double work = 0;
    for (int l = 0; l < 8; ++l) {
      for (int q = 0; q < kQuarters; ++q)
        work += static_cast<double>(attention_macs_among(config, counts.heads[l][q], counts.tokens[l][q]) +
                                    mlp_macs(config, counts.groups[l][q], counts.tokens[l][q]));
    }
    const auto whole = static_cast<double>(attention_macs(config, 8) + mlp_macs(config, 8, 64));
    EXPECT_NEAR(work / (whole * 8 * kQuarters), target, 0.005 * target);
  }
}

TEST(ProjectShareGradient, OfTokensThatSkipBlocksLeavesNoChangeOfTheWork) {
  DiTConfig config = tiny_config();
  config.token_scope = TokenScope::Block;
  const at::Tensor share = learned_share(config, 0.3, 4);
  at::Tensor gradient = random_tensor(share.sizes(), 6, 0);
  project_share_gradient(config, share, gradient);
  const AttentionWork attn = attention_work(config);
  const auto mlp = static_cast<double>(mlp_macs(config, 4, 16));
  const auto work = [&](const at::Tensor& r) {
    return (((attn.linear * r[2] + attn.quadratic * r[2].square()) * r[0] + mlp * r[1] * r[2]).sum() /
            (attn.of(1) + mlp))
        .item<double>();
  };
  const double h = 1e-2, along = (work(share + h * gradient) - work(share - h * gradient)) / (2 * h);
  EXPECT_NEAR(along, 0, 1e-3);
  EXPECT_GT(gradient.norm().item<double>(), 1);
}

// Eight steps with the capacity rule, lambda reached after four.
class TrainedByCapacity : public testing::Test {
 protected:
  static constexpr double kLambda = 0.5;
  static constexpr int kTrainSteps = 8;

  void SetUp() override {
    DiTConfig config = test::static_config();
    config.in_channels = 3;
    TrainOptions options;
    options.dynamic = true;
    options.router = {
        .lambda = kLambda, .anneal_start = 0, .anneal_steps = 4, .gate_rule = GateRule::Capacity};
    options.total_steps = kTrainSteps;
    options.global_batch = 8;
    options.lr = 0.02;
    options.ema_decay = 0.5;
    const Checkpoint start =
        add_routers(test::random_checkpoint(config), {.width_bias = 0, .token_bias = 0}, 5);
    RunOptions run;
    run.run = folder_ / "run";
    run.log_every = 1;
    std::filesystem::create_directories(run.run);
    Communicator alone;
    TrainCallbacks callbacks;
    callbacks.on_row = [&](const LogRow& row) { rows_.push_back(row); };
    train(start, test::NoiseImages(), options, run, alone, callbacks);
    trained_ = load_checkpoint(run.run / "checkpoints/0000008.safetensors");
  }

  test::TemporaryFolder folder_;
  std::vector<LogRow> rows_;
  Checkpoint trained_;
};

TEST_F(TrainedByCapacity, EveryStepsRatiosAreItsTarget) {
  ASSERT_EQ(rows_.size(), size_t{kTrainSteps});
  EXPECT_EQ(rows_[0].target, 1);
  EXPECT_EQ(rows_[4].target, kLambda);
  for (const LogRow& row : rows_) {
    EXPECT_NEAR(row.terms.inference_ratio, row.target, 0.005 * row.target) << row.step;
    EXPECT_NEAR(row.terms.ratio, row.terms.inference_ratio, 1e-6) << row.step;
  }
}

TEST_F(TrainedByCapacity, SharesAreLearned) {
  std::set<int> heads, groups;
  for (const auto& quarters : trained_.keep_counts->heads) heads.insert(quarters.begin(), quarters.end());
  for (const auto& quarters : trained_.keep_counts->groups) groups.insert(quarters.begin(), quarters.end());
  EXPECT_GT(heads.size() + groups.size(), 2u);
}

TEST_F(TrainedByCapacity, ThePlanOverAllTimestepsMeetsLambda) {
  const DiTConfig& config = trained_.config;
  std::vector<int> all(1000);
  std::iota(all.begin(), all.end(), 0);
  const RunPlan plan = make_width_plan(trained_, all, Mode::Dynamic);
  const auto whole = static_cast<double>(attention_macs(config, 4) + mlp_macs(config, 4, 16));
  double ratio = 0;
  for (const StepPlan& step : plan.steps) {
    for (const BlockWidth& width : step.blocks) {
      ratio += static_cast<double>(attention_macs(config, width.active_heads()) +
                                   mlp_macs(config, width.active_groups(), width.keep_tokens)) /
               (whole * 1000 * config.depth);
    }
  }
  EXPECT_NEAR(ratio, kLambda, 0.005 * kLambda);
  EXPECT_NEAR(ratio, keep_ratio(config, *trained_.keep_counts), 1e-9);
}

TEST_F(TrainedByCapacity, TrainingsGatesWithoutNoiseAreTheEngines) {
  const DiTConfig& config = trained_.config;
  const std::vector<double> timesteps = {3, 251, 600, 999};
  const test::EngineOf engine(EngineKind::Reference, trained_, {}, Mode::Dynamic, timesteps);
  DiT model = make_model(trained_);
  at::NoGradGuard no_grad;
  at::Tensor counts = at::empty({3, config.depth, kQuarters}, at::kLong);
  for (int l = 0; l < config.depth; ++l) {
    for (int q = 0; q < kQuarters; ++q) {
      counts[0][l][q] = trained_.keep_counts->heads[l][q];
      counts[1][l][q] = trained_.keep_counts->groups[l][q];
      counts[2][l][q] = trained_.keep_counts->tokens[l][q];
    }
  }
  const test::Inputs inputs = test::random_inputs(config, 4);
  for (int step = 0; step < 4; ++step) {
    const at::Tensor t_emb = model->embed_timestep(at::full({4}, timesteps[step], at::kLong));
    GateNoise none = draw_gate_noise(config, 1, 0, 0, 4);
    for (auto* kind : {&none.heads, &none.groups, &none.tokens})
      for (at::Tensor& noise : *kind) noise.zero_();
    const TrainingGates gates(
        model, t_emb, none, GateKind::Hard,
        {at::ones({3, config.depth, kQuarters}), counts, at::full({4}, step, at::kLong)});
    const at::Tensor trained = model->forward(inputs.x, t_emb, inputs.labels(), gates.gates());
    const at::Tensor made = engine.forward(inputs, step).out;
    EXPECT_LT(test::relative_difference(made, trained), 1e-5) << timesteps[step];
  }
}

}  // namespace
}  // namespace dydit
