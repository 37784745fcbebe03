// Engines on SiT, U-ViT and Skip-DiT: both decide and compute what was recorded, a row is what it is alone,
// and plans of steps go around long skips and the tokens in front of the patches.
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "dydit/model/macs.h"
#include "dydit/plan/policies.h"
#include "tests/support/engines.h"
#include "tests/support/families.h"
#include "tests/support/files.h"
#include "tests/support/random_model.h"
#include "tests/support/random_plan.h"

namespace dydit {
namespace {

using test::expect_same_bits;
using test::Family;
using test::Forward;
using test::kSiT;
using test::kSkipDiT;
using test::kUViT;
using test::kUViTWithLabels;
using test::odd_config;
using test::odd_hidden_config;
using test::plan_of_spec;
using test::random_checkpoint;
using test::random_inputs;
using test::relative_difference;
using test::tiny_config;
using test::Walk;

constexpr double kRecordedTolerance = 2e-5;  // of the largest value, of models that were trained
constexpr double kRandomTolerance = 1e-4;    // of random ones, as in cpu_engine_test.cpp
constexpr double kBf16Tolerance = 2e-2;      // of the norm: 8 bits a value, some tens of roundings

// A model and rows that are all at times of their own.
struct Case {
  Checkpoint checkpoint;
  at::Tensor x;
  std::vector<double> times = {};
  std::vector<int64_t> y = {};

  int size() const { return static_cast<int>(times.size()); }
};

Case recorded(const Family& family) {
  Case rows{.checkpoint = family.checkpoint(), .x = family.recorded("x")};
  // In float32 as the network was given them.
  const at::Tensor t = family.times(rows.checkpoint.config).to(at::kDouble);
  rows.times.assign(t.data_ptr<double>(), t.data_ptr<double>() + t.numel());
  rows.y.assign(rows.times.size(), 0);
  const at::Tensor y = family.labels ? family.recorded("y") : at::Tensor();
  if (family.labels) rows.y.assign(y.data_ptr<int64_t>(), y.data_ptr<int64_t>() + y.numel());
  return rows;
}

Case random_rows(const Checkpoint& checkpoint) {
  const std::vector<double> shares = {0.02, 0.48, 0.5, 0.77, 0.999};
  const test::Inputs inputs = random_inputs(checkpoint.config, static_cast<int>(shares.size()));
  Case rows{.checkpoint = checkpoint, .x = inputs.x, .y = inputs.y};
  for (const double share : shares) rows.times.push_back(time_at(checkpoint.config.objective, share));
  return rows;
}

// An engine and a run's workspace, and a step for each row.
struct EngineOfRows {
  EngineOfRows(EngineKind kind, const Case& rows, Mode mode, const EngineOptions& options = {},
               Profile* profile = nullptr)
      : rows(rows),
        plan(make_width_plan(rows.checkpoint, rows.times, mode)),
        engine(make_engine(kind, rows.checkpoint, options)),
        workspace(engine->make_workspace({.threads = options.threads, .profile = profile})) {}

  // Rows [first, first + count) together.
  Forward forward(int first, int count) const {
    std::vector<Row> described;
    for (int b = first; b < first + count; ++b) described.push_back({&plan.steps[b], rows.y[b]});
    Forward result;
    result.work.resize(described.size());
    ForwardOutputs outputs{{}, result.work, &result.trace};
    engine->forward(rows.x.slice(0, first, first + count), described, *workspace, outputs);
    result.out = outputs.out;
    return result;
  }
  Forward forward() const { return forward(0, rows.size()); }

  const Case& rows;
  const RunPlan plan;
  std::unique_ptr<Engine> engine;
  std::unique_ptr<Workspace> workspace;
};

Forward forward(EngineKind kind, const Case& rows, Mode mode, const EngineOptions& options = {}) {
  return EngineOfRows(kind, rows, mode, options).forward();
}

// Outputs, token decisions and required work of all rows are the reference's.
void expect_reference(EngineKind kind, const Case& rows, Mode mode, double tolerance) {
  SCOPED_TRACE(
      fmt::format("{}, {}, {}", kEngineNames[kind], model_name(rows.checkpoint.config), kModeNames[mode]));
  const Forward want = forward(EngineKind::Reference, rows, mode),
                got = forward(kind, rows, mode, {.threads = 2});
  EXPECT_LT(relative_difference(got.out, want.out), tolerance);
  ASSERT_EQ(got.trace.masks.defined(), want.trace.masks.defined());
  if (want.trace.masks.defined()) {
    EXPECT_TRUE(at::equal(got.trace.masks, want.trace.masks));
    EXPECT_LT(relative_difference(got.trace.logits, want.trace.logits), tolerance);
  }
  for (int b = 0; b < rows.size(); ++b) {
    EXPECT_EQ(got.work[b].required, want.work[b].required) << "row " << b;
    EXPECT_GE(got.work[b].executed, got.work[b].required) << "row " << b;
    EXPECT_GE(want.work[b].executed, want.work[b].required) << "row " << b;
  }
}

void expect_reference(const Case& rows, Mode mode, double tolerance) {
  for (const EngineKind kind : {EngineKind::Cpu, EngineKind::Torch})
    expect_reference(kind, rows, mode, tolerance);
}

class FamilyEngines : public testing::TestWithParam<Family> {
 protected:
  const Case rows_ = recorded(GetParam());
};
INSTANTIATE_TEST_SUITE_P(Recorded, FamilyEngines, testing::Values(kSiT, kUViT, kUViTWithLabels, kSkipDiT),
                         [](const auto& info) { return std::string(info.param.name); });
class RoutedFamilyEngines : public FamilyEngines {};
INSTANTIATE_TEST_SUITE_P(Recorded, RoutedFamilyEngines, testing::Values(kSiT, kUViT, kUViTWithLabels),
                         [](const auto& info) { return std::string(info.param.name); });

TEST_P(FamilyEngines, Agree) {
  expect_reference(rows_, Mode::Static, kRecordedTolerance);
  expect_reference(rows_, Mode::Dynamic, kRecordedTolerance);
}

TEST_P(FamilyEngines, ReproduceTheRecordedStaticForward) {
  const at::Tensor wanted = GetParam().recorded(GetParam().routers ? "out_static" : "out");
  for (const EngineKind kind : {EngineKind::Reference, EngineKind::Cpu, EngineKind::Torch}) {
    const at::Tensor out = forward(kind, rows_, Mode::Static).out.slice(1, 0, wanted.size(1));
    EXPECT_LT(relative_difference(out, wanted), kRecordedTolerance) << kEngineNames[kind];
  }
}

TEST_P(RoutedFamilyEngines, ReproduceTheRecordedForwardAndItsTokenMasks) {
  const at::Tensor wanted = GetParam().recorded("out"), tokens = GetParam().recorded("token_mask");
  const int extras = rows_.checkpoint.config.extras();  // recorded, too, and always on
  for (const EngineKind kind : {EngineKind::Reference, EngineKind::Cpu, EngineKind::Torch}) {
    const Forward got = forward(kind, rows_, Mode::Dynamic);
    EXPECT_LT(relative_difference(got.out.slice(1, 0, wanted.size(1)), wanted), kRecordedTolerance)
        << kEngineNames[kind];
    EXPECT_TRUE(at::equal(got.trace.masks, tokens.slice(2, extras))) << kEngineNames[kind];
  }
}

TEST_P(RoutedFamilyEngines, PlansHaveTheRecordedWidths) {
  const RunPlan plan = make_width_plan(rows_.checkpoint, rows_.times, Mode::Dynamic);
  const at::Tensor heads = GetParam().recorded("attn_mask"), groups = GetParam().recorded("mlp_mask");
  for (int b = 0; b < rows_.size(); ++b) {
    for (int l = 0; l < plan.config.depth; ++l) {
      const BlockWidth& width = plan.steps[b].blocks[l];
      for (int h = 0; h < plan.config.num_heads; ++h) {
        EXPECT_EQ(width.heads[h], heads[b][l][h].item<float>()) << "row " << b << ", block " << l;
        EXPECT_EQ(width.groups[h], groups[b][l][h].item<float>()) << "row " << b << ", block " << l;
      }
    }
  }
}

TEST_P(RoutedFamilyEngines, RequireThePlansWorkWithTheTokensOfTheTrace) {
  const EngineOfRows engine(EngineKind::Cpu, rows_, Mode::Dynamic);
  const Forward got = engine.forward();
  for (int b = 0; b < rows_.size(); ++b) {
    std::vector<int> tokens;
    for (int l = 0; l < engine.plan.config.depth; ++l)
      tokens.push_back(got.trace.masks[b][l].sum().item<int>());
    EXPECT_EQ(got.work[b].required, required_macs(engine.plan.config, engine.plan.steps[b], tokens));
  }
}

TEST_P(FamilyEngines, InStaticModeRequireTheCompleteModel) {
  for (const EngineKind kind : {EngineKind::Reference, EngineKind::Cpu, EngineKind::Torch}) {
    for (const Work& work : forward(kind, rows_, Mode::Static).work)
      EXPECT_EQ(work.required, static_macs(rows_.checkpoint.config)) << kEngineNames[kind];
  }
}

TEST_P(FamilyEngines, DependNeitherOnThreadsNorOnTheBatch) {
  for (const EngineKind kind : {EngineKind::Cpu, EngineKind::Reference}) {
    const EngineOfRows one(kind, rows_, Mode::Dynamic), two(kind, rows_, Mode::Dynamic, {.threads = 2});
    const Forward together = one.forward();
    expect_same_bits(two.forward(), together);
    for (int b = 0; b < rows_.size(); ++b) {
      const Forward alone = two.forward(b, 1);
      EXPECT_TRUE(at::equal(alone.out[0], together.out[b])) << kEngineNames[kind] << ", row " << b;
      EXPECT_EQ(alone.work[0].required, together.work[b].required);
      EXPECT_EQ(alone.work[0].executed, together.work[b].executed);
      if (together.trace.masks.defined()) {
        EXPECT_TRUE(at::equal(alone.trace.masks[0], together.trace.masks[b]));
        EXPECT_TRUE(at::equal(alone.trace.logits[0], together.trace.logits[b]));
      }
    }
  }
}

TEST_P(FamilyEngines, TakeAHintOfTimesWithoutChangingABit) {
  const EngineOfRows plain(EngineKind::Cpu, rows_, Mode::Dynamic),
      told(EngineKind::Cpu, rows_, Mode::Dynamic);
  told.workspace->prepare({rows_.times.begin(), rows_.times.end()});
  for (int b = 0; b < rows_.size(); ++b) expect_same_bits(told.forward(b, 1), plain.forward(b, 1));
}

TEST_P(FamilyEngines, InBFloat16AreNearFloat32) {
  const at::Tensor exact = forward(EngineKind::Reference, rows_, Mode::Static).out;
  for (const EngineKind kind : {EngineKind::Reference, EngineKind::Cpu, EngineKind::Torch}) {
    const at::Tensor got = forward(kind, rows_, Mode::Static, {.dtype = at::kBFloat16, .threads = 2}).out;
    const double error = ((got - exact).norm() / exact.norm()).item<double>();
    EXPECT_LT(error, kBf16Tolerance) << kEngineNames[kind];
    EXPECT_GT(error, 1e-5) << kEngineNames[kind] << ": was that bfloat16?";
  }
}

// Random models, of sizes that are no multiples of a vector.

DiTConfig uvit(DiTConfig config, int num_classes) {
  config.learn_sigma = false;
  config.num_classes = num_classes;
  return with_uvit(config);
}

// As published: no MLP of the time, no bias of qkv, a convolution.
DiTConfig published_uvit(DiTConfig config, int num_classes) {
  config.time_mlp = config.qkv_bias = false;
  config.output_conv = true;
  return uvit(config, num_classes);
}

DiTConfig joined(DiTConfig config, Join join) {
  config.depth = 4;
  config.join = join;
  return config;
}

std::vector<DiTConfig> configs() {
  return {with_objective(odd_config(), {Path::Linear, Prediction::Velocity, ModelClock::Data}),
          uvit(tiny_config(), 5),
          uvit(odd_config(), 7),
          published_uvit(odd_config(), 0),
          published_uvit(odd_config(), 7),
          joined(odd_config(), Join::Normed),
          joined(odd_hidden_config(), Join::Normed),
          joined(odd_hidden_config(), Join::Plain),
          joined(odd_hidden_config(), Join::Residual)};
}

TEST(EnginesOfFamilies, AgreeOnOddSizes) {
  for (const DiTConfig& config : configs()) {
    const Case rows = random_rows(random_checkpoint(config));
    expect_reference(rows, Mode::Static, kRandomTolerance);
    expect_reference(rows, Mode::Dynamic, kRandomTolerance);
  }
}

TEST(EnginesOfFamilies, OfOddSizesDependNeitherOnThreadsNorOnTheBatch) {
  for (const DiTConfig& config : configs()) {
    SCOPED_TRACE(model_name(config));
    const Case rows = random_rows(random_checkpoint(config));
    const EngineOfRows one(EngineKind::Cpu, rows, Mode::Dynamic),
        three(EngineKind::Cpu, rows, Mode::Dynamic, {.threads = 3});
    const Forward together = one.forward();
    expect_same_bits(three.forward(), together);
    for (int b = 0; b < rows.size(); ++b)
      EXPECT_TRUE(at::equal(three.forward(b, 1).out[0], together.out[b])) << "row " << b;
  }
}

// The tokens in front enter every MLP, whatever the routers say.
TEST(EnginesOfFamilies, AgreeWithNoPatchAndWithAllPatchesOn) {
  for (const float bias : {-1e6f, 1e6f}) {
    for (const DiTConfig& config : {uvit(tiny_config(), 5), published_uvit(odd_config(), 0)}) {
      const Case rows = random_rows(test::with_token_bias(config, bias));
      expect_reference(rows, Mode::Dynamic, kRandomTolerance);
      const std::vector<int> tokens(config.depth, bias > 0 ? config.num_tokens() : 0);
      const EngineOfRows engine(EngineKind::Cpu, rows, Mode::Dynamic);
      EXPECT_EQ(engine.forward().work[0].required, required_macs(config, engine.plan.steps[0], tokens));
    }
  }
}

TEST(EnginesOfFamilies, AgreeByTheCapacityRule) {
  Checkpoint checkpoint = random_checkpoint(uvit(tiny_config(), 5));
  checkpoint.keep_counts = KeepCounts{.heads = {{1, 2, 3, 4}, {4, 1, 1, 2}},
                                      .groups = {{3, 1, 4, 2}, {2, 2, 2, 1}},
                                      .tokens = {{16, 1, 5, 8}, {2, 9, 16, 1}}};
  const Case rows = random_rows(checkpoint);
  expect_reference(rows, Mode::Dynamic, kRandomTolerance);
  const Forward got = forward(EngineKind::Cpu, rows, Mode::Dynamic);
  EXPECT_EQ(got.trace.masks[0][0].sum().item<int>(), 16);  // a noise share of .02
  EXPECT_EQ(got.trace.masks[4][0].sum().item<int>(), 8);   // of .999
}

TEST(EnginesOfFamilies, RefuseLabelsThatTheModelLacks) {
  const auto refused = [](const DiTConfig& config, int64_t label, const std::string& message) {
    Case rows = random_rows(random_checkpoint(config));
    std::fill(rows.y.begin(), rows.y.end(), label);
    for (const EngineKind kind : {EngineKind::Cpu, EngineKind::Reference})
      test::expect_error([&] { forward(kind, rows, Mode::Static); }, message);
  };
  refused(published_uvit(odd_config(), 0), 1, "label 1: expected 0 to 0");
  DiTConfig without_null = uvit(tiny_config(), 5);
  without_null.has_null_class = false;
  refused(without_null, 5, "label 5: expected 0 to 4");
}

TEST(EnginesOfFamilies, RefuseTimesOfAnotherClock) {
  Case rows = random_rows(random_checkpoint(configs()[0]));
  EngineOfRows engine(EngineKind::Cpu, rows, Mode::Static);
  StepPlan step = engine.plan.steps[0];
  step.timestep = 1.5;
  std::vector<Work> work(1);
  ForwardOutputs outputs{.work = work};
  const std::vector<Row> row = {{&step, 0}};
  test::expect_error([&] { engine.engine->forward(rows.x.slice(0, 0, 1), row, *engine.workspace, outputs); },
                     "timestep 1.5: expected 0 to 1");
}

// Where the block in the middle has no join.
TEST(EnginesOfFamilies, TellTheTimeOfJoins) {
  const Case rows = recorded(kUViT);
  const int L = rows.checkpoint.config.depth;
  Profile profile(L + 1);
  const EngineOfRows engine(EngineKind::Cpu, rows, Mode::Static, {}, &profile);
  engine.forward();
  for (int l = 0; l < L; ++l)
    EXPECT_EQ(profile[l][static_cast<int>(Operator::Join)] > 0, l != L / 2) << "block " << l;
}

// Plans of steps.

// All steps of a plan, taken by an engine and the reference with three rows: outputs, decisions and what is
// kept.
void expect_reference(EngineKind kind, const Checkpoint& checkpoint, const PlanSpec& spec, Mode mode,
                      double tolerance) {
  SCOPED_TRACE(fmt::format("{}, {}", kEngineNames[kind], spec.name));
  check_spec(spec, checkpoint.config, /*guided=*/false, spec.name);
  const RunPlan plan = plan_of_spec(checkpoint, spec, mode, /*guided=*/false);
  EXPECT_GT(plan.slots, 0);
  Walk reference(EngineKind::Reference, checkpoint, plan), walk(kind, checkpoint, plan, {.threads = 2});
  while (walk.step() >= 0) {
    SCOPED_TRACE(fmt::format("step {}", walk.step()));
    const Forward want = reference.forward(), got = walk.forward();
    EXPECT_LT(relative_difference(got.out, want.out), tolerance);
    ASSERT_EQ(got.trace.masks.defined(), want.trace.masks.defined());
    if (want.trace.masks.defined()) {
      EXPECT_TRUE(at::equal(got.trace.masks, want.trace.masks));
    }
    for (int b = 0; b < 3; ++b) {
      EXPECT_EQ(got.work[b].required, want.work[b].required) << "row " << b;
      EXPECT_GE(got.work[b].executed, got.work[b].required) << "row " << b;
      const History &kept = walk.walkers[b].history, &wanted = reference.walkers[b].history;
      ASSERT_EQ(kept.kept_at, wanted.kept_at);
      for (size_t slot = 0; slot < kept.kept_at.size(); ++slot) {
        if (kept.kept_at[slot] < 0) continue;
        const at::Tensor want_kept = wanted.features[static_cast<int64_t>(slot)];
        const auto largest = [](const at::Tensor& values) { return values.abs().max().item<double>(); };
        EXPECT_LE(largest(kept.features[static_cast<int64_t>(slot)] - want_kept),
                  tolerance * largest(want_kept))
            << "row " << b << ", slot " << slot;  // both 0 where no token enters
      }
    }
  }
}

void expect_reference(const Checkpoint& checkpoint, const PlanSpec& spec, Mode mode, double tolerance) {
  for (const EngineKind kind : {EngineKind::Cpu, EngineKind::Torch})
    expect_reference(kind, checkpoint, spec, mode, tolerance);
}

const std::vector<double> kTableTimes = {100, 300, 500, 700, 900};

TEST(SkipDiT, CachedStepsAreTheReferences) {
  const Checkpoint checkpoint = recorded(kSkipDiT).checkpoint;
  for (const char* policy : {"skip:2,2", "skip:3,4", "skip:2,1", "skip:5,5"})
    expect_reference(checkpoint, policy_plan(policy, checkpoint.config, kTableTimes), Mode::Static,
                     kRecordedTolerance);
}

TEST(SkipDiT, CachedStepsOfRoutedModelsAreTheReferences) {
  for (const DiTConfig& config :
       {joined(odd_config(), Join::Normed), joined(odd_hidden_config(), Join::Plain)}) {
    const Checkpoint checkpoint = random_checkpoint(config);
    expect_reference(checkpoint, policy_plan("skip:2,1", config, kTableTimes), Mode::Dynamic,
                     kRandomTolerance);
  }
}

// Blocks at both ends, the joins of the last ones, and nothing of those between, their modulation included.
TEST(SkipDiT, ACachedStepCostsTheBlocksAtBothEnds) {
  const Checkpoint checkpoint = recorded(kSkipDiT).checkpoint;
  const DiTConfig& config = checkpoint.config;
  constexpr int kEach = 2;  // blocks at each end
  const int64_t block = attention_macs(config, config.num_heads) +
                        mlp_macs(config, config.num_heads, config.num_tokens()) + 2 * adaLN_macs(config);
  const int64_t ends = fixed_macs(config) - config.depth * 2 * adaLN_macs(config);
  const int64_t cached = ends + 2 * kEach * block + kEach * join_macs(config, config.depth - 1);
  for (const EngineKind kind : {EngineKind::Cpu, EngineKind::Reference}) {
    Walk walk(kind, checkpoint,
              plan_of_spec(checkpoint, policy_plan("skip:2,2", config, kTableTimes), Mode::Static, false));
    while (walk.step() >= 0) {
      const bool full = walk.step() % 2 == 0;  // 4, 2, 0 of five
      const Work work = walk.forward().work[0];
      EXPECT_EQ(work.required, full ? static_macs(config) : cached) << kEngineNames[kind];
      EXPECT_GE(work.executed, work.required) << kEngineNames[kind];
    }
  }
}

// The same x at the same timestep: what is held is what would be computed, to the bit.
TEST(SkipDiT, ACachedStepOfWhatWouldBeComputedIsThatStep) {
  const Checkpoint checkpoint = recorded(kSkipDiT).checkpoint;
  const std::vector<double> twice = {500, 500};  // no plan of a file
  for (const EngineKind kind : {EngineKind::Cpu, EngineKind::Reference}) {
    Walk walk(
        kind, checkpoint,
        plan_of_spec(checkpoint, policy_plan("skip:2,4", checkpoint.config, twice), Mode::Static, false));
    for (test::Walker& walker : walk.walkers) walker.change.zero_();
    const at::Tensor computed = walk.forward().out;
    EXPECT_TRUE(at::equal(walk.forward().out, computed)) << kEngineNames[kind];
  }
}

// Of another step: the input that is held is not this step's.
TEST(SkipDiT, ACachedStepIsNotTheCompleteOne) {
  const Checkpoint checkpoint = recorded(kSkipDiT).checkpoint;
  const auto last = [&](const char* policy) {
    const std::vector<double> times = {300, 700};
    Walk walk(EngineKind::Cpu, checkpoint,
              plan_of_spec(checkpoint, policy_plan(policy, checkpoint.config, times), Mode::Static, false));
    walk.forward();
    return walk.forward().out;
  };
  EXPECT_GT(relative_difference(last("skip:2,4"), last("none")), 1e-4);
}

TEST(UViT, ForecastsAreTheReferencesInContinuousTime) {
  const Checkpoint checkpoint = recorded(kUViTWithLabels).checkpoint;
  const std::vector<double> times = {40, 100.25, 333, 600.5, 850, 999};
  for (const char* policy : {"fora:2", "taylor:2,1", "stack:3,1"}) {
    const PlanSpec spec = policy_plan(policy, checkpoint.config, times);
    expect_reference(checkpoint, spec, Mode::Static, kRandomTolerance);
    expect_reference(checkpoint, spec, Mode::Dynamic, kRandomTolerance);
  }
}

TEST(SiT, ForecastsAreTheReferencesInContinuousTime) {
  const Checkpoint checkpoint = recorded(kSiT).checkpoint;
  const std::vector<double> times = {0.96, 0.75, 0.5, 0.25, 0.1, 0};  // the noisiest last
  for (const char* policy : {"taylor:2,1", "delta:2"})
    expect_reference(checkpoint, policy_plan(policy, checkpoint.config, times), Mode::Dynamic,
                     kRandomTolerance);
}

TEST(UViT, KeepsTheTokensInFrontOfThePatches) {
  const Checkpoint checkpoint = recorded(kUViTWithLabels).checkpoint;
  const auto engine = make_engine(EngineKind::Cpu, checkpoint, {});
  EXPECT_EQ(engine->make_history(2).features.sizes(), (at::IntArrayRef{2, 18, 32}));
  EXPECT_EQ(history_bytes(checkpoint.config, at::kFloat, 2), 2 * 18 * 32 * 4);
}

}  // namespace
}  // namespace dydit
