// The CPU engine decides and computes what the masked reference does, and multiplies only what is on.
#include <cmath>
#include <limits>
#include <numeric>
#include <regex>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "dydit/base/error.h"
#include "dydit/base/isa.h"
#include "dydit/engine/cpu/workspace.h"
#include "dydit/model/macs.h"
#include "dydit/model/quantization.h"
#include "tests/support/engines.h"
#include "tests/support/files.h"
#include "tests/support/isa.h"
#include "tests/support/random_model.h"

namespace dydit {
namespace {

using test::EngineOf;
using test::Forward;
using test::Inputs;
using test::kTimesteps;
using test::odd_config;
using test::odd_hidden_config;
using test::one_head_config;
using test::random_checkpoint;
using test::random_inputs;
using test::relative_difference;
using test::rows_of;
using test::tiny_config;
using test::with_token_bias;
using test::xl_heads_config;

constexpr double kFloatTolerance = 1e-4;  // of the largest value

std::vector<DiTConfig> configs() {
  return {tiny_config(),       odd_config(),        one_head_config(),
          xl_heads_config(20), odd_hidden_config(), test::block_scope_config()};
}

// Weights of `dtype` as load_checkpoint gives them.
Checkpoint stored_in(at::ScalarType dtype, const Checkpoint& checkpoint) {
  const test::TemporaryFolder folder;
  save_checkpoint(folder / "m.safetensors", checkpoint, dtype);
  return load_checkpoint(folder / "m.safetensors");
}

// 16 tokens, 4 heads; every quarter of the timesteps has its own counts.
Checkpoint with_counts() {
  Checkpoint checkpoint = random_checkpoint(tiny_config());
  checkpoint.keep_counts = KeepCounts{.heads = {{1, 2, 3, 4}, {4, 1, 1, 2}},
                                      .groups = {{3, 1, 4, 2}, {2, 2, 2, 1}},
                                      .tokens = {{16, 1, 5, 8}, {2, 9, 16, 1}}};
  return checkpoint;
}

// All steps of the plan: outputs, token decisions and required work are the reference's.
void expect_reference(const Checkpoint& checkpoint, Mode mode = Mode::Dynamic) {
  SCOPED_TRACE(model_name(checkpoint.config));
  const Inputs inputs = random_inputs(checkpoint.config, 6);
  const EngineOf reference(EngineKind::Reference, checkpoint, {}, mode);
  const EngineOf engine(EngineKind::Cpu, checkpoint, {.threads = 2}, mode);
  for (int step = 0; step < 3; ++step) {
    const Forward want = reference.forward(inputs, step), got = engine.forward(inputs, step);
    EXPECT_LT(relative_difference(got.out, want.out), kFloatTolerance) << "step " << step;
    ASSERT_EQ(got.trace.masks.defined(), want.trace.masks.defined());
    if (want.trace.masks.defined()) {
      EXPECT_TRUE(at::equal(got.trace.masks, want.trace.masks)) << "step " << step;
      EXPECT_LT(relative_difference(got.trace.logits, want.trace.logits), kFloatTolerance);
    }
    for (int b = 0; b < 6; ++b) EXPECT_EQ(got.work[b].required, want.work[b].required) << "row " << b;
  }
}

TEST(CpuEngine, EqualsTheReferenceInFloat32) {
  for (const DiTConfig& config : configs()) expect_reference(random_checkpoint(config));
}

TEST(CpuEngine, EqualsTheReferenceInStaticMode) {
  for (const DiTConfig& config : configs()) expect_reference(random_checkpoint(config), Mode::Static);
}

TEST(CpuEngine, EqualsTheReferenceWithoutAnyRouter) {
  expect_reference(random_checkpoint(test::static_config()));
}

TEST(CpuEngine, EqualsTheReferenceWithOneKindOfRouter) {
  DiTConfig widths = tiny_config(), tokens = tiny_config();
  widths.token_routers = false;
  tokens.width_routers = false;
  expect_reference(random_checkpoint(widths));
  expect_reference(random_checkpoint(tokens));
}

TEST(CpuEngine, EqualsTheReferenceByTheCapacityRule) { expect_reference(with_counts()); }

TEST(CpuEngine, EqualsTheReferenceWithNoTokenOn) {
  for (const DiTConfig& config : configs()) expect_reference(with_token_bias(config, -1e6f));
}

TEST(CpuEngine, EqualsTheReferenceWithAllTokensOn) {
  for (const DiTConfig& config : configs()) expect_reference(with_token_bias(config, 1e6f));
}

TEST(CpuEngine, EqualsTheReferenceOnWeightsStoredInFloat32OrBFloat16) {
  for (const DiTConfig& config : {tiny_config(), odd_hidden_config()}) {
    expect_reference(stored_in(at::kFloat, random_checkpoint(config)));
    expect_reference(stored_in(at::kBFloat16, random_checkpoint(config)));
  }
}

// Nothing says that all tensors of a file have one type.
TEST(CpuEngine, EqualsTheReferenceOnWeightsOfMixedTypes) {
  for (const int remainder : {0, 1}) {
    Checkpoint checkpoint = random_checkpoint(odd_config());
    int index = 0;
    for (auto& [name, weight] : checkpoint.weights) {
      if (index++ % 2 == remainder) weight = weight.to(name.ends_with("bias") ? at::kHalf : at::kBFloat16);
    }
    expect_reference(checkpoint);
  }
  for (const char* name : {"blocks.1.adaLN_modulation.1.weight", "final_layer.adaLN_modulation.1.weight"}) {
    Checkpoint checkpoint = random_checkpoint(odd_config());
    checkpoint.weights.at(name) = checkpoint.weights.at(name).to(at::kBFloat16);
    SCOPED_TRACE(name);
    expect_reference(checkpoint);
  }
}

// The levels below the processor's own, as DYDIT_ISA would choose them.
class CpuEngineAt : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (apply_isa_cap(GetParam()) < level()) GTEST_SKIP() << "this processor has no " << GetParam();
  }
  void TearDown() override { test::apply_isa_of_environment(); }
  static Isa level() {
    for (const Isa isa : {Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16, Isa::Amx}) {
      if (isa_name(isa) == GetParam()) return isa;
    }
    return Isa::Sse;
  }
};
INSTANTIATE_TEST_SUITE_P(Levels, CpuEngineAt, testing::Values("avx2", "avx512", "avx512_bf16", "amx"),
                         [](const auto& info) { return std::string(info.param); });

TEST_P(CpuEngineAt, EqualsTheReference) {
  for (const DiTConfig& config : configs()) expect_reference(random_checkpoint(config));
}

TEST(CpuEngine, TakesStepsInAnyOrder) {
  const EngineOf engine(EngineKind::Cpu, random_checkpoint(tiny_config()));
  const Inputs inputs = random_inputs(tiny_config(), 2);
  const Forward first = engine.forward(inputs, 1);
  engine.forward(inputs, 2);
  engine.forward(inputs, 0);
  EXPECT_TRUE(at::equal(engine.forward(inputs, 1).out, first.out));
}

// (B): the samples of which all three decide every token alike. One token that flips moves its whole sample.
at::Tensor agreement(const Forward& a, const Forward& b, const Forward& c) {
  if (!a.trace.masks.defined()) return at::ones({a.out.size(0)}, at::kBool);
  return (a.trace.masks == b.trace.masks).logical_and(a.trace.masks == c.trace.masks).flatten(1).all(1);
}

// Mean square over the samples that agree and all steps.
void expect_bf16_no_worse(const Checkpoint& checkpoint, Mode mode, const Level& level) {
  SCOPED_TRACE(testing::Message() << model_name(checkpoint.config) << " at " << level.name);
  const Inputs inputs = random_inputs(checkpoint.config, 48);
  const EngineOf exact(EngineKind::Reference, checkpoint, {.threads = 2}, mode);
  const EngineOf reference(EngineKind::Reference, checkpoint, {.dtype = at::kBFloat16, .threads = 2}, mode);
  const EngineOf engine(EngineKind::Cpu, checkpoint, {.dtype = at::kBFloat16, .threads = 2, .level = level},
                        mode);
  double error = 0, reference_error = 0, alike = 0;
  for (int step = 0; step < 3; ++step) {
    const Forward want = exact.forward(inputs, step), rounded = reference.forward(inputs, step),
                  got = engine.forward(inputs, step);
    const at::Tensor agree = agreement(want, rounded, got);
    const auto square = [&](const Forward& forward) {
      return (forward.out - want.out).index({agree}).square().sum().item<double>();
    };
    error += square(got);
    reference_error += square(rounded);
    alike += agree.to(at::kFloat).mean().item<double>() / 3;
  }
  EXPECT_GT(alike, 0.1);
  EXPECT_LT(std::sqrt(error), 1.5 * std::sqrt(reference_error));
  EXPECT_GT(std::sqrt(error), 0.2 * std::sqrt(reference_error)) << "was that bfloat16?";
}

TEST(CpuEngine, InBFloat16IsAsExactAsTheReferenceInBFloat16) {
  for (const Level& level : levels_at(detect_isa(), false)) {
    if (level.weights != at::kBFloat16) continue;
    for (const DiTConfig& config : configs()) {
      expect_bf16_no_worse(random_checkpoint(config), Mode::Dynamic, level);
      expect_bf16_no_worse(random_checkpoint(config), Mode::Static, level);
    }
    expect_bf16_no_worse(with_counts(), Mode::Dynamic, level);
    if (level == kLevelBf16Dot)  // the other one is exact then
      expect_bf16_no_worse(stored_in(at::kBFloat16, random_checkpoint(tiny_config())), Mode::Dynamic, level);
  }
}

// Expanded weights are the ones of float32, and are multiplied in the same order.
TEST(CpuEngine, Bfloat16WeightsInFloat32ArithmeticAreTheRoundedModelsFloat32) {
  Checkpoint rounded = random_checkpoint(tiny_config());
  for (auto& [name, weight] : rounded.weights) {
    for (const char* layer :
         {".attn.qkv.weight", ".attn.proj.weight", ".mlp.fc1.weight", ".mlp.fc2.weight"}) {
      if (name.ends_with(layer)) weight = weight.to(at::kBFloat16).to(at::kFloat);
    }
  }
  const Inputs inputs = random_inputs(tiny_config(), 5);
  const EngineOf exact(EngineKind::Cpu, rounded, {.threads = 2}),
      expanded(EngineKind::Cpu, rounded, {.dtype = at::kBFloat16, .threads = 2, .level = kLevelBf16Fma});
  EXPECT_TRUE(at::equal(exact.forward(inputs, 1).out, expanded.forward(inputs, 1).out));
}

// Where embeddings do not see the image and adaLN does nothing, qkv of the first block takes layer_norm(bias
// + position).
TEST(CpuEngine, TellsTheLargestInputsOfLayers) {
  const DiTConfig config = tiny_config();
  Checkpoint checkpoint = random_checkpoint(config);
  for (const char* name :
       {"x_embedder.proj.weight", "blocks.0.adaLN_modulation.1.weight", "blocks.0.adaLN_modulation.1.bias"})
    checkpoint.weights.at(name) = at::zeros_like(checkpoint.weights.at(name));
  const auto engine = make_engine(EngineKind::Cpu, checkpoint, {.threads = 2});
  const RunPlan plan = make_width_plan(checkpoint, std::vector<int>{500}, Mode::Static);
  const Inputs inputs = random_inputs(config, 5);
  const at::Tensor largest = at::zeros({config.depth, 2, config.hidden_size});
  const auto workspace = engine->make_workspace(
      {.threads = 2, .largest_inputs = {largest.data_ptr<float>(), static_cast<size_t>(largest.numel())}});
  std::vector<Row> rows;
  for (const int64_t label : inputs.y) rows.push_back({&plan.steps[0], label});
  std::vector<Work> work(rows.size());
  ForwardOutputs outputs{.work = work};
  engine->forward(inputs.x, rows, *workspace, outputs);
  const at::Tensor stream = checkpoint.weights.at("pos_embed").view({-1, config.hidden_size}) +
                            checkpoint.weights.at("x_embedder.proj.bias");
  const at::Tensor wanted = std::get<0>(
      at::layer_norm(stream, {config.hidden_size}, {}, {}, config.block(0).attn_norm_eps).abs().max(0));
  EXPECT_TRUE(at::allclose(largest[0][0], wanted, 1e-5, 1e-6));
  EXPECT_GT(largest.min().item<double>(), 0);  // all blocks, both branches
}

// 8 bits cost what the weights' rounding costs, and as much again for the activations'.
TEST(CpuEngine, InInt8IsNearTheModelOfItsWeights) {
  if (!has_vnni(active_isa())) GTEST_SKIP() << "this processor has no VNNI";
  for (const DiTConfig& config : configs()) {
    SCOPED_TRACE(model_name(config));
    const Checkpoint checkpoint = random_checkpoint(config);
    Checkpoint rounded = checkpoint;
    for (auto& [name, weight] : rounded.weights) {
      for (const std::string_view layer : kBlockLayers) {
        if (name.ends_with(fmt::format(".{}.weight", layer)))
          weight = dequantize(quantize(weight, input_segments(config, layer)));
      }
    }
    const Inputs inputs = random_inputs(config, 8);
    const auto out = [&](EngineKind kind, const Checkpoint& of, const EngineOptions& options) {
      return EngineOf(kind, of, options, Mode::Static).forward(inputs, 1).out;
    };
    const at::Tensor exact = out(EngineKind::Reference, checkpoint, {}),
                     weights = out(EngineKind::Reference, rounded, {});
    for (const Level& level : levels_at(active_isa(), true)) {
      if (level.weights != at::kChar) continue;
      const at::Tensor got =
          out(EngineKind::Cpu, checkpoint, {.dtype = at::kChar, .threads = 2, .level = level});
      const double error = (got - weights).norm().item<double>(),
                   of_weights = (weights - exact).norm().item<double>();
      EXPECT_LT(error, 2 * of_weights) << level.name;
      EXPECT_GT(error, 0.1 * of_weights) << level.name << ": was that int8?";
    }
  }
}

TEST(CpuEngine, RefusesToTellTheInputsOf8BitLayers) {
  if (!has_vnni(active_isa())) GTEST_SKIP() << "this processor has no VNNI";
  const auto engine = make_engine(EngineKind::Cpu, random_checkpoint(tiny_config()),
                                  {.dtype = at::kChar, .level = kLevelInt8F32});
  std::vector<float> largest(size_t{2} * tiny_config().depth * tiny_config().hidden_size);
  test::expect_error([&] { engine->make_workspace({.largest_inputs = largest}); },
                     "largest inputs: 8-bit rows do not tell them; take float32");
}

TEST(CpuEngine, RefusesALevelOfOtherWeights) {
  test::expect_error(
      [] { make_engine(EngineKind::Cpu, random_checkpoint(tiny_config()), {.level = kLevelBf16Fma}); },
      "level bf16-fma: its weights are not Float");
}

// Levels that pay on other processors only are held to the same.
class CpuEngineLevels : public testing::TestWithParam<Level> {
 protected:
  static EngineOptions options(int threads) {
    return {.dtype = GetParam().weights, .threads = threads, .level = GetParam()};
  }
};
INSTANTIATE_TEST_SUITE_P(Levels, CpuEngineLevels,
                         testing::ValuesIn(levels_at(detect_isa(), has_vnni(detect_isa()))),
                         [](const auto& info) {
                           return std::regex_replace(std::string(info.param.name), std::regex("-"), "_");
                         });

void expect_same_row(const Forward& got, int row, const Forward& alone) {
  EXPECT_TRUE(at::equal(got.out[row], alone.out[0])) << "row " << row;
  EXPECT_TRUE(at::equal(got.trace.logits[row], alone.trace.logits[0])) << "row " << row;
  EXPECT_TRUE(at::equal(got.trace.masks[row], alone.trace.masks[0])) << "row " << row;
  EXPECT_EQ(got.work[row].required, alone.work[0].required) << "row " << row;
  EXPECT_EQ(got.work[row].executed, alone.work[0].executed) << "row " << row;
}

TEST_P(CpuEngineLevels, RowDependsNeitherOnBatchNorThreads) {
  constexpr int kRows = 33;
  for (const DiTConfig& config : configs()) {
    SCOPED_TRACE(model_name(config));
    const Checkpoint checkpoint = random_checkpoint(config);
    const Inputs inputs = random_inputs(config, kRows);
    const EngineOf one(EngineKind::Cpu, checkpoint, options(1));
    std::vector<Forward> alone;
    for (int b = 0; b < kRows; ++b) alone.push_back(one.forward(rows_of(inputs, b, 1), 1));
    for (int threads = 1; threads <= 4; ++threads) {
      const EngineOf engine(EngineKind::Cpu, checkpoint, options(threads));
      for (const int B : {1, 2, 5, kRows}) {
        SCOPED_TRACE(fmt::format("batch {}, {} threads", B, threads));
        const Forward batch = engine.forward(rows_of(inputs, kRows - B, B), 1);
        for (int b = 0; b < B; ++b) expect_same_row(batch, b, alone[kRows - B + b]);
      }
    }
  }
}

// A row of NaN before, beside, and in the memory that a batch leaves behind.
TEST_P(CpuEngineLevels, RowDoesNotDependOnABrokenRow) {
  for (const DiTConfig& config : configs()) {
    SCOPED_TRACE(model_name(config));
    const Checkpoint checkpoint = random_checkpoint(config);
    const Inputs inputs = random_inputs(config, 3);
    const EngineOf engine(EngineKind::Cpu, checkpoint, options(2));
    const Forward whole = engine.forward(inputs, 1);
    Inputs broken = {inputs.x.clone(), inputs.y};
    broken.x[1].fill_(std::numeric_limits<float>::quiet_NaN());
    EXPECT_TRUE(at::equal(engine.forward(broken, 1).out[2], whole.out[2]));
    broken.x.fill_(std::numeric_limits<float>::quiet_NaN());
    engine.forward(broken, 1);
    EXPECT_TRUE(at::equal(engine.forward(inputs, 1).out, whole.out));
  }
}

TEST(CpuEngine, ExecutedWorkIsWithinAQuarterOfTheRequiredOnTinyShapes) {
  for (const DiTConfig& config : {tiny_config(), xl_heads_config(20)}) {
    SCOPED_TRACE(model_name(config));
    const EngineOf engine(EngineKind::Cpu, random_checkpoint(config));
    const Inputs inputs = random_inputs(config, 4);
    for (int step = 0; step < 3; ++step) {
      for (const Work& work : engine.forward(inputs, step).work) {
        EXPECT_GE(work.executed, work.required);
        EXPECT_LE(static_cast<double>(work.executed), 1.25 * static_cast<double>(work.required));
      }
    }
  }
}

// A block of DiT-XL with half of its heads, groups and tokens on; weights do not matter to the counters.
Checkpoint xl_block() {
  DiTConfig config = named_config("DiT-XL/2");
  config.depth = 1;
  config.num_classes = 1;
  config.width_routers = config.token_routers = true;
  Checkpoint checkpoint;
  checkpoint.config = config;
  for (const auto& parameter : DiT(config)->named_parameters()) {
    checkpoint.weights[parameter.key()] = at::zeros(parameter.value().sizes());
  }
  using Counts = std::vector<KeepCounts::PerRegion>;
  const Counts half_of_16 = {{8, 8, 8, 8}}, half_of_256 = {{128, 128, 128, 128}};
  checkpoint.keep_counts = KeepCounts{half_of_16, half_of_16, half_of_256};
  return checkpoint;
}

void expect_little_padding(const Checkpoint& checkpoint, Mode mode) {
  const EngineOf engine(EngineKind::Cpu, checkpoint, {.dtype = at::kBFloat16, .threads = 2}, mode, {500});
  const Work work = engine.forward(random_inputs(checkpoint.config, 1), 0).work[0];
  EXPECT_GE(work.executed, work.required);
  EXPECT_LE(static_cast<double>(work.executed), 1.03 * static_cast<double>(work.required));
}

TEST(CpuEngine, ExecutedWorkIsTheRequiredWithin3PercentOnABlockOfDiTXL) {
  expect_little_padding(xl_block(), Mode::Dynamic);
  expect_little_padding(xl_block(), Mode::Static);
}

TEST(CpuEngine, AddsToTheWorkItIsGiven) {
  const EngineOf engine(EngineKind::Cpu, random_checkpoint(tiny_config()));
  const Inputs inputs = random_inputs(tiny_config(), 1);
  std::vector<Work> work(1);
  ForwardOutputs outputs{.work = work};
  engine.forward(inputs.x, 0, inputs.y, outputs);
  const Work once = work[0];
  engine.forward(inputs.x, 0, inputs.y, outputs);
  EXPECT_EQ(work[0].required, 2 * once.required);
  EXPECT_EQ(work[0].executed, 2 * once.executed);
}

TEST(CpuEngine, ProfileHoldsTheTimeOfEveryOperator) {
  const DiTConfig config = tiny_config();
  Profile profile(config.depth + 1);
  const EngineOf engine(EngineKind::Cpu, random_checkpoint(config), {}, Mode::Dynamic, kTimesteps, &profile);
  engine.forward(random_inputs(config, 2), 1);
  const auto seconds = [&](int row, Operator op) { return profile[row][static_cast<int>(op)]; };
  for (int l = 0; l < config.depth; ++l) {
    for (const Operator op : {Operator::Norm, Operator::Qkv, Operator::Attention, Operator::Proj,
                              Operator::Router, Operator::Fc1, Operator::Fc2}) {
      EXPECT_GT(seconds(l, op), 0) << "block " << l << ", " << kOperatorNames[static_cast<int>(op)];
    }
    EXPECT_EQ(seconds(l, Operator::Embed) + seconds(l, Operator::AdaLN) + seconds(l, Operator::Final), 0);
  }
  for (const Operator op : {Operator::Embed, Operator::AdaLN, Operator::Final}) {
    EXPECT_GT(seconds(config.depth, op), 0) << kOperatorNames[static_cast<int>(op)];
  }
}

// Seconds of adaLN over a pass through `steps`; the least of some passes, for others use this processor, too.
double modulation_seconds(const std::vector<int>& steps) {
  DiTConfig config = test::static_config();
  config.hidden_size = 256;
  config.mlp_hidden = 256;
  Profile profile(config.depth + 1);
  std::vector<double> timesteps(steps.size());
  std::iota(timesteps.begin(), timesteps.end(), 0);
  const EngineOf engine(EngineKind::Cpu, random_checkpoint(config), {}, Mode::Static, timesteps, &profile);
  Inputs inputs = random_inputs(config, 1);
  double least = std::numeric_limits<double>::infinity();
  for (int pass = 0; pass < 5; ++pass) {
    inputs.y[0] = pass;  // so that no pass finds the last one's
    profile.assign(config.depth + 1, {});
    for (const int step : steps) engine.forward(inputs, step);
    least = std::min(least, profile[config.depth][static_cast<int>(Operator::AdaLN)]);
  }
  return least;
}

// In the other order every step would find nothing that it can use: 32 times the work here.
TEST(CpuEngine, ModulationIsComputedOnceForStepsInTheOrderOfSampling) {
  std::vector<int> steps(64);
  std::iota(steps.rbegin(), steps.rend(), 0);
  const double sampling = modulation_seconds(steps);
  const double ascending = modulation_seconds({steps.rbegin(), steps.rend()});
  EXPECT_LT(sampling, ascending / 4);
}

// Samples times tasks are beyond 32 bits here.
TEST(CpuEngine, DividesTheLargestBatch) {
  constexpr int kBatch = 65536;
  const StepPlan step;
  const std::vector<Row> rows(kBatch, Row{&step, 0});
  cpu::RowGroups groups;
  groups.assign(rows);
  const std::vector<cpu::Piece> pieces = groups.pieces_alone(cpu::divide(kBatch, /*N=*/1024, /*threads=*/2));
  EXPECT_EQ(pieces.size(), kBatch);
  int next = 0;
  for (const cpu::Piece& piece : pieces) {
    EXPECT_EQ(piece.first, next);
    next += piece.count;
  }
  EXPECT_EQ(next, kBatch);
}

}  // namespace
}  // namespace dydit
