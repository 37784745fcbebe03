// Engines obey plans of steps: what is kept, forecast and skipped. The CPU engine agrees with the reference,
// and a row is what it is alone.
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "dydit/base/error.h"
#include "dydit/model/macs.h"
#include "tests/support/engines.h"
#include "tests/support/files.h"
#include "tests/support/random_model.h"
#include "tests/support/random_plan.h"

namespace dydit {
namespace {

using test::EngineOf;
using test::expect_same_bits;
using test::Forward;
using test::levels_config;
using test::odd_config;
using test::odd_hidden_config;
using test::one_head_config;
using test::plan_of_spec;
using test::random_checkpoint;
using test::random_inputs;
using test::random_spec;
using test::RandomPlan;
using test::relative_difference;
using test::spread_timesteps;
using test::step_together;
using test::tiny_config;
using test::Walk;
using test::Walker;
using test::with_token_bias;
using test::xl_heads_config;

constexpr double kFloatTolerance = 1e-4;  // of the largest value, as of forwards without a plan
constexpr double kKeptTolerance =
    2e-4;  // forecasts that reach far and differences enlarge rounding: to 1.1e-4

std::vector<DiTConfig> configs() {
  return {tiny_config(),       odd_config(),    one_head_config(),         xl_heads_config(12),
          odd_hidden_config(), levels_config(), test::block_scope_config()};
}

Checkpoint with_counts() {
  Checkpoint checkpoint = random_checkpoint(tiny_config());
  checkpoint.keep_counts = KeepCounts{.heads = {{1, 2, 3, 4}, {4, 1, 1, 2}},
                                      .groups = {{3, 1, 4, 2}, {2, 2, 2, 1}},
                                      .tokens = {{16, 1, 5, 8}, {2, 9, 16, 1}}};
  return checkpoint;
}

// Slots that a step has written.
std::vector<int> stores(const StepPlan& step) {
  std::vector<int> slots;
  for (const BranchPlan& branch : step.branches) slots.push_back(branch.store);
  for (const RangePlan& range : step.ranges) slots.push_back(range.store);
  std::erase_if(slots, [](int slot) { return slot < 0; });
  return slots;
}

// All steps: outputs, token decisions, required work and what is kept are the reference's.
void expect_reference(EngineKind kind, const Checkpoint& checkpoint, const PlanSpec& spec, Mode mode) {
  SCOPED_TRACE(kEngineNames[kind]);
  const RunPlan plan = plan_of_spec(checkpoint, spec, mode, /*guided=*/false);
  Walk reference(EngineKind::Reference, checkpoint, plan), walk(kind, checkpoint, plan, {.threads = 2});
  while (walk.step() >= 0) {
    SCOPED_TRACE(fmt::format("step {}", walk.step()));
    const StepPlan& step = walk.plan.steps[walk.step()];
    const Forward want = reference.forward(), got = walk.forward();
    EXPECT_LT(relative_difference(got.out, want.out), kFloatTolerance);
    ASSERT_EQ(got.trace.masks.defined(), want.trace.masks.defined());
    if (want.trace.masks.defined()) {
      EXPECT_TRUE(at::equal(got.trace.masks, want.trace.masks));
    }
    for (int b = 0; b < 3; ++b) {
      EXPECT_EQ(got.work[b].required, want.work[b].required) << "row " << b;
      EXPECT_EQ(walk.walkers[b].history.kept_at, reference.walkers[b].history.kept_at);
      for (const int slot : stores(step)) {
        const int rows = checkpoint.config.sequence(step.level);  // of the level; behind them lies nothing
        const at::Tensor kept = walk.walkers[b].history.features[slot].slice(0, 0, rows),
                         wanted = reference.walkers[b].history.features[slot].slice(0, 0, rows);
        const auto largest = [](const at::Tensor& values) { return values.abs().max().item<double>(); };
        EXPECT_LE(largest(kept - wanted), kKeptTolerance * largest(wanted))  // both 0 where no token enters
            << "row " << b << ", slot " << slot;
      }
    }
  }
}

void expect_reference(const Checkpoint& checkpoint, const PlanSpec& spec, Mode mode) {
  for (const EngineKind kind : {EngineKind::Cpu, EngineKind::Torch})
    expect_reference(kind, checkpoint, spec, mode);
}

void expect_reference(const Checkpoint& checkpoint, Mode mode, uint32_t seed, RandomPlan kind = {}) {
  SCOPED_TRACE(fmt::format("{}, seed {}", model_name(checkpoint.config), seed));
  kind.widths = mode == Mode::Dynamic && seed % 2 == 1;
  expect_reference(checkpoint, random_spec(checkpoint.config, spread_timesteps(9), seed, kind), mode);
}

TEST(Engines, ObeyRandomPlansAsTheReferenceDoes) {
  for (const DiTConfig& config : configs()) {
    const Checkpoint checkpoint = random_checkpoint(config);
    for (uint32_t seed = 0; seed < 6; ++seed) expect_reference(checkpoint, Mode::Dynamic, seed);
  }
}

TEST(Engines, ObeyRandomPlansInStaticMode) {
  for (const DiTConfig& config : configs()) {
    for (uint32_t seed = 10; seed < 14; ++seed)
      expect_reference(random_checkpoint(config), Mode::Static, seed);
  }
}

TEST(Engines, ObeyRandomPlansByTheCapacityRule) {
  for (uint32_t seed = 20; seed < 26; ++seed) expect_reference(with_counts(), Mode::Dynamic, seed);
}

TEST(Engines, ObeyRandomPlansWithOneKindOfRouterOrNone) {
  DiTConfig widths = tiny_config(), tokens = tiny_config();
  widths.token_routers = false;
  tokens.width_routers = false;
  for (uint32_t seed = 30; seed < 33; ++seed) {
    expect_reference(random_checkpoint(widths), Mode::Dynamic, seed);
    expect_reference(random_checkpoint(tokens), Mode::Dynamic, seed);
    expect_reference(random_checkpoint(test::static_config()), Mode::Static, seed);
  }
}

TEST(Engines, ObeyRandomPlansWithNoTokenOnOrAll) {
  for (const float bias : {-1e6f, 1e6f}) {
    for (uint32_t seed = 40; seed < 43; ++seed) {
      expect_reference(with_token_bias(tiny_config(), bias), Mode::Dynamic, 2 * seed);
      expect_reference(with_token_bias(odd_hidden_config(), bias), Mode::Dynamic, 2 * seed);
    }
  }
}

TEST(Engines, ForecastOfEveryKindAndOrderAsTheReferenceDoes) {
  const Checkpoint checkpoint = random_checkpoint(odd_config());
  for (const ForecastKind kind :
       {ForecastKind::Taylor, ForecastKind::Lagrange, ForecastKind::Chebyshev, ForecastKind::Hermite}) {
    for (int order = 0; order <= kMaxOrder; ++order) {
      SCOPED_TRACE(fmt::format("{}, order {}", kForecastNames[kind], order));
      PlanSpec spec = full_spec(checkpoint.config, spread_timesteps(11));
      spec.forecast = {.kind = kind};
      for (int s = 0; s < 11; ++s) {  // full: 10 8 6 4 2; a range in the last
        if (s % 2 == 1) std::fill(spec.steps[s].attn.begin(), spec.steps[s].attn.end(), order);
        if (s % 2 == 1) std::fill(spec.steps[s].mlp.begin(), spec.steps[s].mlp.end(), order);
      }
      spec.steps[0].ranges = {{0, 2, order}};
      for (auto* actions : {&spec.steps[0].attn, &spec.steps[0].mlp})
        *actions = {kSkipped, kSkipped, kCompute};
      check_spec(spec, checkpoint.config, false, "by hand");
      expect_reference(checkpoint, spec, Mode::Static);
    }
  }
}

// Root mean square over rows and steps of what two walks' outputs differ by.
double distance(const std::vector<Forward>& a, const std::vector<Forward>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += (a[i].out - b[i].out).square().mean().item<double>();
  return std::sqrt(sum / static_cast<double>(a.size()));
}

std::vector<Forward> all_steps(Walk&& walk) {
  std::vector<Forward> made;
  while (walk.step() >= 0) made.push_back(walk.forward());
  return made;
}

// No token router: one token that flips would move all that follows.
TEST(CpuEngine, ObeysPlansInBFloat16AsExactlyAsTheReferenceInBFloat16) {
  for (DiTConfig config : configs()) {
    SCOPED_TRACE(model_name(config));
    config.token_routers = false;
    const Checkpoint checkpoint = random_checkpoint(config);
    double error = 0, reference_error = 0;
    for (uint32_t seed = 50; seed < 56; ++seed) {
      const Mode mode = seed % 2 == 0 ? Mode::Static : Mode::Dynamic;
      const RunPlan plan = plan_of_spec(
          checkpoint, random_spec(config, spread_timesteps(8), seed, {.max_order = 1}), mode, false);
      const EngineOptions bf16 = {.dtype = at::kBFloat16};
      const auto exact = all_steps(Walk(EngineKind::Reference, checkpoint, plan));
      error += std::pow(distance(all_steps(Walk(EngineKind::Cpu, checkpoint, plan, bf16)), exact), 2);
      reference_error +=
          std::pow(distance(all_steps(Walk(EngineKind::Reference, checkpoint, plan, bf16)), exact), 2);
    }
    EXPECT_LT(std::sqrt(error), 1.5 * std::sqrt(reference_error));
    EXPECT_GT(std::sqrt(error), 0.2 * std::sqrt(reference_error)) << "was that bfloat16?";
  }
}

// Masks are the reference's in bfloat16, too, where the rule decides alone how many tokens there are.
TEST(CpuEngine, CountsTheSameWorkInBFloat16) {
  const Checkpoint checkpoint = with_counts();
  const RunPlan plan =
      plan_of_spec(checkpoint, random_spec(checkpoint.config, spread_timesteps(8), 3, {.widths = true}),
                   Mode::Dynamic, false);
  Walk walk(EngineKind::Cpu, checkpoint, plan, {.dtype = at::kBFloat16});
  while (walk.step() >= 0) {
    const StepPlan& step = walk.plan.steps[walk.step()];
    for (const Work& work : walk.forward().work) {
      EXPECT_EQ(work.required, required_macs(checkpoint.config, step));
      EXPECT_GE(work.executed, work.required);
    }
  }
}

class PlansOf : public testing::TestWithParam<EngineKind> {};
INSTANTIATE_TEST_SUITE_P(Engines, PlansOf,
                         testing::Values(EngineKind::Cpu, EngineKind::Torch, EngineKind::Reference),
                         [](const auto& info) { return std::string(kEngineNames[info.param]); });

struct Case {
  EngineKind kind;
  at::ScalarType dtype;
};
class PlansIn : public testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(
    Cases, PlansIn,
    testing::Values(Case{EngineKind::Cpu, at::kFloat}, Case{EngineKind::Cpu, at::kBFloat16},
                    Case{EngineKind::Reference, at::kFloat}, Case{EngineKind::Reference, at::kBFloat16}),
    [](const auto& info) {
      return std::string(kEngineNames[info.param.kind]) + c10::toString(info.param.dtype);
    });

TEST_P(PlansIn, APlanThatComputesAllChangesNoBit) {
  for (const DiTConfig& config : {tiny_config(), odd_hidden_config()}) {
    const Checkpoint checkpoint = random_checkpoint(config);
    const EngineOptions options = {.dtype = GetParam().dtype, .threads = 2};
    const std::vector<double> timesteps = spread_timesteps(4);
    const EngineOf plain(GetParam().kind, checkpoint, options, Mode::Dynamic, timesteps);
    Walk walk(GetParam().kind, checkpoint,
              plan_of_spec(checkpoint, full_spec(config, timesteps), Mode::Dynamic, true), options);
    while (walk.step() >= 0) {
      std::vector<at::Tensor> x;
      std::vector<int64_t> y;
      for (const Walker& walker : walk.walkers) {
        x.push_back(walker.x());
        y.push_back(walker.label);
      }
      const Forward want = plain.forward(at::stack(x), walk.step(), y);
      expect_same_bits(walk.forward(), want);
    }
  }
}

// All branches and the range of all blocks are kept in the first of two steps, and used in the second.
PlanSpec keeping(const DiTConfig& config, bool branches, bool range) {
  PlanSpec spec =
      full_spec(config, std::vector<double>{500, 500, 500});  // of one timestep: no plan of a file
  if (branches) std::fill(spec.steps[0].attn.begin(), spec.steps[0].attn.end(), 0);
  if (branches) std::fill(spec.steps[0].mlp.begin(), spec.steps[0].mlp.end(), 0);
  if (!range) return spec;
  spec.steps[1].ranges = {{0, config.depth, 0}};
  std::fill(spec.steps[1].attn.begin(), spec.steps[1].attn.end(), kSkipped);
  std::fill(spec.steps[1].mlp.begin(), spec.steps[1].mlp.end(), kSkipped);
  return spec;
}

TEST_P(PlansIn, KeepingChangesNoBit) {
  for (const DiTConfig& config : configs()) {
    const Checkpoint checkpoint = random_checkpoint(config);
    const EngineOptions options = {.dtype = GetParam().dtype};
    Walk plain(
        GetParam().kind, checkpoint,
        plan_of_spec(checkpoint, full_spec(config, std::vector<double>{500, 500, 500}), Mode::Dynamic, false),
        options),
        walk(GetParam().kind, checkpoint,
             plan_of_spec(checkpoint, keeping(config, true, true), Mode::Dynamic, false), options);
    EXPECT_EQ(walk.plan.slots, 2 * config.depth + 1);
    expect_same_bits(walk.forward(), plain.forward());
  }
}

// The same x at the same timestep: what is reused is what would be computed.
TEST_P(PlansIn, ReuseOfWhatWouldBeComputedIsThatStep) {
  const bool exact = GetParam().dtype == at::kFloat;
  for (const DiTConfig& config : configs()) {
    const Checkpoint checkpoint = random_checkpoint(config);
    Walk walk(GetParam().kind, checkpoint,
              plan_of_spec(checkpoint, keeping(config, true, true), Mode::Dynamic, false),
              {.dtype = GetParam().dtype});
    for (Walker& walker : walk.walkers) walker.change.zero_();
    const Forward computed = walk.forward(), range = walk.forward(), branches = walk.forward();
    EXPECT_LT(relative_difference(range.out, computed.out), exact ? kFloatTolerance : 2e-2);
    EXPECT_LT(relative_difference(branches.out, computed.out), exact ? kFloatTolerance : 2e-2);
    if (GetParam().kind == EngineKind::Cpu && exact) {
      EXPECT_TRUE(at::equal(branches.out, computed.out));
    }
  }
}

// Kept in an earlier step of another timestep: un-gated, so today's gate is what multiplies it.
TEST_P(PlansOf, TheGatesAreTheCurrentSteps) {
  DiTConfig config = test::static_config();
  config.depth = 1;
  Checkpoint checkpoint = random_checkpoint(config);
  const RunPlan plan = plan_of_spec(
      checkpoint,
      [&] {
        PlanSpec spec = full_spec(config, std::vector<double>{20, 900});
        spec.steps[0].mlp = {0};
        return spec;
      }(),
      Mode::Static, false);
  Walk walk(GetParam(), checkpoint, plan);
  for (Walker& walker : walk.walkers) walker.change.zero_();
  walk.forward();
  const at::Tensor kept = walk.walkers[0].history.features[0].clone();
  const at::Tensor with = walk.forward().out[0];
  // The same step with twice the feature and half the gate of the timestep that it has now.
  checkpoint.weights.at("blocks.0.adaLN_modulation.1.weight").slice(0, 5 * 64, 6 * 64).mul_(0.5);
  checkpoint.weights.at("blocks.0.adaLN_modulation.1.bias").slice(0, 5 * 64, 6 * 64).mul_(0.5);
  Walk halved(GetParam(), checkpoint, plan);
  for (Walker& walker : halved.walkers) walker.change.zero_();
  halved.forward();
  EXPECT_LT(relative_difference(halved.walkers[0].history.features[0], kept), kFloatTolerance);  // un-gated
  halved.walkers[0].history.features.mul_(2);
  EXPECT_LT(relative_difference(halved.forward().out[0], with), kFloatTolerance);
}

// Rows of any plans, at any steps, on any number of threads, are what they are alone.
TEST_P(PlansIn, ARowDependsNeitherOnItsNeighboursNorOnThreads) {
  for (const DiTConfig& config : {tiny_config(), odd_hidden_config()}) {
    const Checkpoint checkpoint = random_checkpoint(config);
    const auto engine = make_engine(GetParam().kind, checkpoint, {.dtype = GetParam().dtype});
    std::vector<RunPlan> plans;
    for (uint32_t seed = 0; seed < 5; ++seed) {
      const Mode mode = seed == 2 ? Mode::Static : Mode::Dynamic;
      const PlanSpec spec =
          seed == 3 ? full_spec(config, spread_timesteps(7))
                    : random_spec(config, spread_timesteps(5 + seed), 60 + seed, {.widths = seed == 4});
      plans.push_back(plan_of_spec(checkpoint, spec, mode, false));
    }
    constexpr int kRows = 12;  // some of them share their plans
    const auto walkers_of = [&] {
      std::vector<Walker> walkers;
      for (int b = 0; b < kRows; ++b)
        walkers.emplace_back(*engine, plans[b % 5], (3 * b + 2) % (config.num_classes + 1), 70 + b);
      return walkers;
    };
    std::vector<Walker> single = walkers_of();
    std::vector<std::vector<Forward>> wanted(kRows);  // by row and step, the last taken first
    const auto one = engine->make_workspace({});
    for (int b = 0; b < kRows; ++b) {
      while (single[b].step >= 0) wanted[b].push_back(step_together(*engine, *one, {&single[b]}));
    }
    for (const int threads : {1, 2, 3}) {
      SCOPED_TRACE(fmt::format("{}, {} threads", model_name(config), threads));
      const auto workspace = engine->make_workspace({.threads = threads});
      std::vector<Walker> walkers = walkers_of();
      std::mt19937 draw(static_cast<unsigned>(threads));
      std::vector<size_t> done(kRows, 0);
      for (int left = kRows; left > 0;) {
        std::vector<Walker*> together;
        std::vector<int> rows;
        for (int b = 0; b < kRows; ++b) {
          if (walkers[b].step < 0 || draw() % 4 == 0) continue;
          together.push_back(&walkers[b]);
          rows.push_back(b);
        }
        if (together.empty()) continue;
        const Forward got = step_together(*engine, *workspace, together);
        for (size_t i = 0; i < rows.size(); ++i) {
          const int b = rows[i];
          const Forward& want = wanted[b][done[b]++];
          EXPECT_TRUE(at::equal(got.out[i], want.out[0])) << "row " << b << ", " << done[b] << " steps";
          EXPECT_EQ(got.work[i].required, want.work[0].required);
          EXPECT_EQ(got.work[i].executed, want.work[0].executed);
          if (want.trace.masks.defined()) {
            EXPECT_TRUE(at::equal(got.trace.masks[i], want.trace.masks[0]));
            EXPECT_TRUE(at::equal(got.trace.logits[i], want.trace.logits[0]));
          }
          left -= walkers[b].step < 0;
        }
      }
    }
  }
}

// (N): whether all of a token's values are 0.
at::Tensor zero_rows(const at::Tensor& feature) { return feature.eq(0).all(1); }

TEST_P(PlansIn, TokensThatAreOffAreZeroInWhatIsKept) {
  for (const DiTConfig& config : configs()) {
    const Checkpoint checkpoint = random_checkpoint(config);
    Walk walk(GetParam().kind, checkpoint,
              plan_of_spec(checkpoint, keeping(config, true, false), Mode::Dynamic, false),
              {.dtype = GetParam().dtype, .threads = 2});
    walk.forward();
    const StepPlan step = walk.plan.steps[walk.step()];
    const Forward made = walk.forward();
    for (int b = 0; b < 3; ++b) {
      for (int l = 0; l < config.depth; ++l) {
        const at::Tensor feature = walk.walkers[b].history.features[step.branch(l, Branch::Mlp).store];
        EXPECT_TRUE(at::equal(zero_rows(feature), made.trace.masks[b][l].eq(0)))
            << "row " << b << ", block " << l;
      }
    }
  }
}

TEST_P(PlansIn, WhereNoTokenEntersWhatIsKeptIsZero) {
  const DiTConfig config = tiny_config();
  const Checkpoint checkpoint = with_token_bias(config, -1e6f);
  Walk walk(GetParam().kind, checkpoint,
            plan_of_spec(checkpoint, keeping(config, true, false), Mode::Dynamic, false),
            {.dtype = GetParam().dtype, .threads = 2});
  walk.forward();  // keeps nothing
  const StepPlan step = walk.plan.steps[walk.step()];
  walk.forward();
  for (const Walker& walker : walk.walkers) {
    for (int l = 0; l < config.depth; ++l) {
      EXPECT_TRUE(zero_rows(walker.history.features[step.branch(l, Branch::Mlp).store]).all().item<bool>());
    }
  }
}

TEST_P(PlansIn, KeepsInTheTypeOfItsActivations) {
  const at::ScalarType kept = kept_type(GetParam().kind, {.dtype = GetParam().dtype});
  const auto engine =
      make_engine(GetParam().kind, random_checkpoint(odd_config()), {.dtype = GetParam().dtype});
  const History history = engine->make_history(3);
  EXPECT_EQ(history.features.scalar_type(), kept);
  EXPECT_EQ(history.features.sizes(), (at::IntArrayRef{3, 9, 36}));
  EXPECT_EQ(history.kept_at, std::vector<int>(3, -1));
  EXPECT_EQ(history_bytes(odd_config(), kept, 3), static_cast<int64_t>(history.features.nbytes()));
  EXPECT_EQ(history_bytes(odd_config(), kept, 1 << 28),
            (int64_t{1} << 28) * 9 * 36 * (kept == at::kFloat ? 4 : 2));
}

TEST_P(PlansOf, IntoAnMlpThatIsNotComputedNoTokenEnters) {
  const DiTConfig config = tiny_config();
  const Checkpoint checkpoint = random_checkpoint(config);
  PlanSpec spec = full_spec(config, std::vector<double>{20, 500});
  spec.steps[0].mlp[1] = 0;
  Walk walk(GetParam(), checkpoint, plan_of_spec(checkpoint, spec, Mode::Dynamic, false));
  walk.forward();
  const Forward made = walk.forward();
  EXPECT_TRUE(made.trace.masks.select(1, 1).eq(0).all().item<bool>());
  EXPECT_TRUE(made.trace.logits.select(1, 1).eq(0).all().item<bool>());
  EXPECT_TRUE(made.trace.masks.select(1, 0).any().item<bool>());
}

// Nothing of a branch that is not computed is multiplied, of a skipped block not even adaLN.
TEST(ReferenceEngine, ExecutesTheCompleteBranchWhereItIsComputed) {
  const DiTConfig config = tiny_config();
  const int64_t C = config.hidden_size, N = config.num_tokens(), width = C * 3;
  PlanSpec spec = full_spec(config, std::vector<double>{20, 300, 500, 700});
  spec.steps[2].attn[0] = spec.steps[1].mlp[1] = 0;
  spec.steps[0].ranges = {{0, 1, 0}};
  spec.steps[0].attn[0] = spec.steps[0].mlp[0] = kSkipped;
  const Checkpoint checkpoint = random_checkpoint(config);
  Walk walk(EngineKind::Reference, checkpoint, plan_of_spec(checkpoint, spec, Mode::Dynamic, false));
  const auto executed = [&] { return walk.forward().work[0].executed; };
  const int64_t all = executed(), attn = attention_macs(config, 4) + width,
                mlp = mlp_macs(config, 4, N) + width + token_router_macs(config);
  EXPECT_EQ(all, fixed_macs(config) + 2 * attn + 2 * mlp);
  EXPECT_EQ(executed(), all - attn);
  EXPECT_EQ(executed(), all - mlp);
  EXPECT_EQ(executed(), all - attn - mlp - 6 * C * C);
}

TEST(CpuEngine, ExecutesNothingOfABranchThatIsNotComputed) {
  const DiTConfig config = tiny_config();
  const Checkpoint checkpoint = random_checkpoint(config);
  Walk walk(EngineKind::Cpu, checkpoint,
            plan_of_spec(checkpoint, keeping(config, true, true), Mode::Static, false));
  const Work computed = walk.forward().work[0], skipped = walk.forward().work[0],
             forecast = walk.forward().work[0];
  const auto share = [&](int64_t a, int64_t b) { return static_cast<double>(a) / static_cast<double>(b); };
  EXPECT_LT(share(skipped.required, computed.required), 0.1);
  EXPECT_LT(share(forecast.executed, computed.executed), 0.2);  // adaLN of whole blocks, a tenth here
  EXPECT_GE(forecast.executed, forecast.required);
  EXPECT_GE(skipped.executed, skipped.required);
}

TEST(CpuEngine, TellsTheTimeOfForecasts) {
  const DiTConfig config = tiny_config();
  const Checkpoint checkpoint = random_checkpoint(config);
  const RunPlan plan = plan_of_spec(checkpoint, keeping(config, true, true), Mode::Static, false);
  const auto engine = make_engine(EngineKind::Cpu, checkpoint, {});
  Profile profile(config.depth + 1);
  const auto workspace = engine->make_workspace({.profile = &profile});
  Walker walker(*engine, plan, 1, 1);
  const auto reuse = [&] {
    double seconds = 0;
    for (const auto& row : profile) seconds += row[static_cast<int>(Operator::Reuse)];
    return seconds;
  };
  for (const bool forecasts : {true, true, true}) {  // the first keeps a range: a pass over x, too
    profile.assign(config.depth + 1, {});
    step_together(*engine, *workspace, {&walker});
    EXPECT_EQ(reuse() > 0, forecasts);
  }
}

}  // namespace
}  // namespace dydit
