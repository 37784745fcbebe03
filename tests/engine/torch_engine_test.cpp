// The torch engine beyond what it shares with the others (step_plan_test.cpp, families_engine_test.cpp): few
// tokens looked for and looked for again, slots, pieces that are replayed, devices that are not there.
#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "dydit/base/error.h"
#include "dydit/engine/torch/device.h"
#include "dydit/engine/torch/ops.h"
#include "dydit/engine/torch/slots.h"
#include "tests/support/engines.h"
#include "tests/support/files.h"
#include "tests/support/random_model.h"
#include "tests/support/random_plan.h"

namespace dydit {
namespace {

using test::EngineOf;
using test::expect_error;
using test::Forward;
using test::Inputs;
using test::odd_config;
using test::one_head_config;
using test::random_checkpoint;
using test::random_inputs;
using test::random_tensor;
using test::relative_difference;
using test::tiny_config;
using test::xl_heads_config;

constexpr double kFloatTolerance = 1e-4;  // of the largest value, of random models, as in cpu_engine_test.cpp

EngineStatistics statistics(const EngineOf& of) { return *of.engine->statistics(*of.workspace); }

void expect_same_decisions(const Forward& got, const Forward& want) {
  EXPECT_LT(relative_difference(got.out, want.out), kFloatTolerance);
  ASSERT_EQ(got.trace.masks.defined(), want.trace.masks.defined());
  if (want.trace.masks.defined()) {
    EXPECT_TRUE(at::equal(got.trace.masks, want.trace.masks));
  }
  for (size_t b = 0; b < want.work.size(); ++b) EXPECT_EQ(got.work[b].required, want.work[b].required);
}

// A forward whose decisions nobody asks for: its pieces may be replayed.
at::Tensor untraced(const EngineOf& of, const Inputs& inputs, int step, std::vector<Work>* work = nullptr) {
  std::vector<Work> own(inputs.y.size());
  ForwardOutputs outputs{.work = own};
  of.forward(inputs.x, step, inputs.y, outputs);
  if (work != nullptr) *work = own;
  return outputs.out;
}

TEST(TorchEngine, ComputesRandomModelsAsTheReferenceDoes) {
  std::mt19937 draw(3);
  const auto below = [&](int limit) { return static_cast<int>(draw() % static_cast<uint32_t>(limit)); };
  for (int i = 0; i < 40; ++i) {
    DiTConfig config = tiny_config();
    config.num_heads = 1 + below(5);
    config.hidden_size = 4 * config.num_heads * (1 + below(4));
    config.mlp_hidden = config.num_heads * (3 + below(20));
    config.depth = 1 + below(3);
    config.width_routers = below(4) > 0;
    config.token_routers = below(4) > 0;
    config.learn_sigma = below(2) > 0;
    SCOPED_TRACE(fmt::format("{}: {}", i, model_name(config)));
    const Checkpoint checkpoint = random_checkpoint(config, 100 + i);
    const Mode mode = config.is_dynamic() ? Mode::Dynamic : Mode::Static;
    const EngineOf torch(EngineKind::Torch, checkpoint, {}, mode),
        reference(EngineKind::Reference, checkpoint, {}, mode);
    for (int step = 0; step < 3; ++step) {
      const Inputs inputs = random_inputs(config, 1 + below(3));
      expect_same_decisions(torch.forward(inputs, step), reference.forward(inputs, step));
    }
  }
}

// Rows of a token that is off are never written: the block's x is theirs, bit for bit.
TEST(TorchEngine, ChosenRowsAreReadAndWrittenAlone) {
  const at::Tensor logits = at::tensor({3.0f, -1.0f, 0.5f, -0.0f, 0.0f, 2.0f, -3.0f, -2.0f}).view({2, 4});
  const at::Tensor starts = at::tensor({int64_t{0}, int64_t{5}});  // one token in front
  const aten::Chosen chosen = aten::choose(logits, /*keep=*/2, 4, /*extras=*/1, starts);
  EXPECT_TRUE(at::equal(
      chosen.rows, at::tensor({int64_t{0}, int64_t{1}, int64_t{3}, int64_t{5}, int64_t{7}, int64_t{6}})));
  EXPECT_TRUE(at::equal(chosen.mask.to(at::kFloat),
                        at::tensor({1.0f, 0.0f, 1.0f, 0.0f, 1.0f, 1.0f, 0.0f, 0.0f}).view({2, 4})));
  at::Tensor x = random_tensor({2, 5, 3}, 1, 0);
  const at::Tensor before = x.clone();
  aten::put(x, chosen, aten::taken(x, chosen) + 1);
  const at::Tensor changed = (x != before).any(2);
  EXPECT_EQ(changed.sum().item<int>(), 6);
  EXPECT_TRUE(at::equal(x.view({10, 3}).index_select(0, chosen.rows),
                        before.view({10, 3}).index_select(0, chosen.rows) + 1));
}

TEST(TorchEngine, ChoosesAsSelectTokensDoes) {
  std::mt19937 draw(5);
  for (int i = 0; i < 200; ++i) {
    const int N = 1 + static_cast<int>(draw() % 40);
    at::Tensor logits = random_tensor({1, N}, 9, i);
    logits = (logits * 2).round() / 2;  // equal ones, and zeros of both signs
    const int keep = static_cast<int>(draw() % (N + 2)) - 1;
    const std::vector<uint8_t> want = select_tokens({logits.data_ptr<float>(), static_cast<size_t>(N)}, keep);
    const aten::Chosen got = aten::choose(logits, keep, N, 0, at::zeros({1}, at::kLong));
    for (int n = 0; n < N; ++n)
      EXPECT_EQ(got.mask[0][n].item<bool>(), want[n] != 0)
          << "keep " << keep << " of " << N << ", token " << n;
  }
}

// Two forwards: after one of few tokens the next one looks for few; where more enter it goes again.
TEST(TorchEngine, LooksForMoreTokensWhereMoreEnter) {
  DiTConfig config = tiny_config();
  config.input_size = 16;  // 64 tokens
  const Checkpoint checkpoint = random_checkpoint(config);
  const EngineOf torch(EngineKind::Torch, checkpoint), reference(EngineKind::Reference, checkpoint);
  const Inputs inputs = random_inputs(config, 3);
  std::vector<Work> open, again;
  for (int round = 0; round < 4; ++round) {
    for (int step = 0; step < 3; ++step) {
      const int64_t redone = statistics(torch).redone_forwards;
      std::vector<Work> work;
      const at::Tensor out = untraced(torch, inputs, step, &work);
      const Forward want = reference.forward(inputs, step);
      EXPECT_LT(relative_difference(out, want.out), kFloatTolerance);
      for (size_t b = 0; b < work.size(); ++b) {
        EXPECT_EQ(work[b].required, want.work[b].required);
        EXPECT_GE(work[b].executed, work[b].required);
      }
      if (statistics(torch).redone_forwards > redone) again = work;
      if (round == 0 && step == 0) open = work;
    }
  }
  EXPECT_GT(statistics(torch).redone_forwards, 0);
  ASSERT_FALSE(again.empty());
  EXPECT_GT(again[0].executed, open[0].executed);  // both times are counted
}

TEST(TorchEngine, WithFewTokensExecutesLessThanWithAll) {
  DiTConfig config = tiny_config();
  config.input_size = 16;
  const Checkpoint none = test::with_token_bias(config, -1e6f);
  const EngineOf torch(EngineKind::Torch, none);
  const Inputs inputs = random_inputs(config, 2);
  std::vector<Work> first, second;
  untraced(torch, inputs, 1, &first);
  untraced(torch, inputs, 1, &second);
  EXPECT_GT(first[0].executed, second[0].executed);
  EXPECT_LT(static_cast<double>(second[0].executed), 1.2 * static_cast<double>(second[0].required));
}

TEST(TorchEngine, ReplaysPiecesOnOtherContentsAsAFreshForward) {
  for (const DiTConfig& config : {tiny_config(), odd_config(), xl_heads_config(12), test::static_config()}) {
    const Checkpoint checkpoint = random_checkpoint(config);
    const Mode mode = config.is_dynamic() ? Mode::Dynamic : Mode::Static;
    const EngineOf run(EngineKind::Torch, checkpoint, {}, mode);
    for (int round = 0; round < 6; ++round) {
      Inputs inputs = random_inputs(config, 1 + round % 2);
      inputs.x.add_(0.1 * round);
      const EngineOf fresh(EngineKind::Torch, checkpoint, {}, mode);
      const at::Tensor got = untraced(run, inputs, round % 3), want = untraced(fresh, inputs, round % 3);
      EXPECT_LT(relative_difference(got, want), 2e-6) << model_name(config) << ", round " << round;
    }
  }
}

// A row that keeps nothing and one that does may do the same work: the second's features must be there.
TEST(TorchEngine, KeepsWhatSomeRowsOfAGroupKeep) {
  const Checkpoint checkpoint = random_checkpoint(tiny_config());
  const std::vector<double> timesteps = {100, 500, 900};
  PlanSpec spec = full_spec(checkpoint.config, timesteps);
  std::fill(spec.steps[1].attn.begin(), spec.steps[1].attn.end(), 0);
  std::fill(spec.steps[1].mlp.begin(), spec.steps[1].mlp.end(), 0);
  const RunPlan cached = test::plan_of_spec(checkpoint, spec, Mode::Static, /*guided=*/false),
                plain = make_width_plan(checkpoint, timesteps, Mode::Static);
  const auto outputs = [&](EngineKind kind) {
    const auto engine = make_engine(kind, checkpoint, {});
    const auto workspace = engine->make_workspace({});
    test::Walker first(*engine, plain, 1, 3), second(*engine, cached, 2, 4);
    std::vector<at::Tensor> made;
    while (first.step >= 0) {
      std::vector<Row> rows = {{&plain.steps[first.step], 1}, second.row()};
      std::vector<Work> work(2);
      ForwardOutputs out{.work = work};  // no trace: what could be replayed is
      engine->forward(at::stack({first.x(), second.x()}), rows, *workspace, out);
      made.push_back(out.out);
      --first.step;
      --second.step;
    }
    return at::stack(made);
  };
  EXPECT_LT(relative_difference(outputs(EngineKind::Torch), outputs(EngineKind::Reference)), kFloatTolerance);
}

TEST(TorchEngine, SlotsAfterManyChangesAreAFreshPack) {
  const int H = 6;
  const auto layer = [&](uint64_t index, at::IntArrayRef sizes) { return random_tensor(sizes, 3, index); };
  const aten::BlockWeights all{.qkv = layer(0, {H, 6, 5}),
                               .qkv_bias = layer(1, {H, 6}),
                               .proj = layer(2, {H, 2, 5}),
                               .proj_bias = layer(3, {5}),
                               .fc1 = layer(4, {H, 3, 5}),
                               .fc1_bias = layer(5, {H, 3}),
                               .fc2 = layer(6, {H, 3, 5}),
                               .fc2_bias = layer(7, {5})};
  const aten::PartOrder order{{2, 0, 5, 1, 4, 3}, {5, 4, 3, 2, 1, 0}};
  aten::BlockSlots held(all, order);
  std::mt19937 draw(1);
  for (int change = 0; change < 200; ++change) {
    std::vector<uint8_t> heads(H, 0), groups(H, 0);
    for (auto* parts : {&heads, &groups}) {
      for (uint8_t& part : *parts) part = draw() % 2;
      (*parts)[0] = 1;
    }
    const auto n = static_cast<int>(std::count(heads.begin(), heads.end(), 1)),
               g = static_cast<int>(std::count(groups.begin(), groups.end(), 1));
    aten::BlockSlots fresh(all, order);
    for (aten::BlockSlots* slots : {&held, &fresh}) {
      slots->hold_heads(heads);
      slots->hold_groups(groups);
    }
    EXPECT_TRUE(at::equal(held.qkv(n), fresh.qkv(n)));
    EXPECT_TRUE(at::equal(held.qkv_bias(n), fresh.qkv_bias(n)));
    EXPECT_TRUE(at::equal(held.proj(n), fresh.proj(n)));
    EXPECT_TRUE(at::equal(held.fc1(g), fresh.fc1(g)));
    EXPECT_TRUE(at::equal(held.fc1_bias(g), fresh.fc1_bias(g)));
    EXPECT_TRUE(at::equal(held.fc2(g), fresh.fc2(g)));
  }
}

TEST(TorchEngine, NestedSetsCopyNothing) {
  const int H = 4;
  aten::PartSlots slots({random_tensor({H, 3}, 1, 0)}, {0, 2, 1, 3});
  const std::vector<std::vector<uint8_t>> nested = {
      {1, 0, 1, 0}, {1, 0, 0, 0}, {1, 1, 1, 0}, {1, 0, 1, 0}, {1, 1, 1, 1}};
  for (const std::vector<uint8_t>& on : nested) EXPECT_EQ(slots.hold(on), 0);
  EXPECT_EQ(slots.hold(std::vector<uint8_t>{1, 1, 0, 0}), 3 * 4);  // in the place of part 2
}

TEST(TorchEngine, OrdersPartsByHowOftenTheyAreOn) {
  const Checkpoint checkpoint = random_checkpoint(tiny_config());
  const std::vector<aten::PartOrder> orders = aten::part_orders(checkpoint);
  std::vector<double> timesteps;
  for (int t = 0; t < 1000; ++t) timesteps.push_back(t);
  const RunPlan plan = make_width_plan(checkpoint, timesteps, Mode::Dynamic);
  for (int l = 0; l < checkpoint.config.depth; ++l) {
    std::vector<int> counts(checkpoint.config.num_heads, 0);
    for (const StepPlan& step : plan.steps) {
      for (size_t h = 0; h < counts.size(); ++h) counts[h] += step.blocks[l].heads[h];
    }
    EXPECT_EQ(orders[l].heads[0], 0);  // always on
    for (size_t i = 1; i < counts.size(); ++i)
      EXPECT_GE(counts[orders[l].heads[i - 1]] + 5, counts[orders[l].heads[i]]);  // of a sample of the clock
  }
}

// On the device "meta" whatever would ask a device for its values is refused.
TEST(TorchEngine, AsksTheDeviceForNothingInsideABlock) {
  const at::Tensor logits = at::empty({2, 16}, at::TensorOptions().device(at::kMeta).dtype(at::kFloat)),
                   starts = at::empty({2}, logits.options().dtype(at::kLong));
  at::Tensor x = at::empty({2, 17, 8}, logits.options());
  for (const auto& [keep, cap] : {std::pair{5, 16}, {16, 16}, {-1, 16}, {-1, 4}}) {
    const aten::Chosen chosen = aten::choose(logits, keep, cap, 1, starts);
    // index_select, LayerNorm and attention have no such form.
    at::Tensor rows = chosen.rows.defined() ? at::empty({2, chosen.rows.size(0) / 2, 8}, x.options()) : x;
    const at::Tensor one = at::empty({2, 1, 8}, logits.options());
    const at::Tensor normed = at::empty(rows.sizes(), x.options().dtype(at::kBFloat16));
    const auto bf16 = normed.options();
    at::Tensor y = aten::linear(normed, at::empty({8, 8}, bf16), at::empty({8}, bf16));
    if (chosen.on.defined()) y.mul_(chosen.on.unsqueeze(2));
    aten::add_gated(rows, one, y);
    if (chosen.rows.defined()) aten::put(x, chosen, rows);
    EXPECT_EQ(y.size(1), chosen.rows.defined() ? chosen.rows.size(0) / 2 : 17);
  }
}

TEST(TorchEngine, SeesRowsThatDependOnTheirNumber) {
  const at::TensorOptions options = at::kFloat;
  EXPECT_TRUE(
      aten::rows_are_independent([](const at::Tensor& x) { return x * 2 + x.sum(2, true); }, 6, options));
  EXPECT_FALSE(aten::rows_are_independent([](const at::Tensor& x) { return x * (1.0 + 1e-6 * x.size(1)); }, 6,
                                          options));
}

TEST(TorchEngine, RoundsAModulatedNormOnce) {
  const at::Tensor x = random_tensor({2, 3, 40}, 1, 0), shift = random_tensor({2, 1, 40}, 1, 1),
                   scale1 = 1 + random_tensor({2, 1, 40}, 1, 2);
  const at::Tensor exact = aten::norm_modulate(x, shift, scale1, at::kFloat, 1e-6);
  EXPECT_TRUE(at::equal(aten::norm_modulate(x, shift, scale1, at::kBFloat16, 1e-6), exact.to(at::kBFloat16)));
}

TEST(TorchEngine, HasTheFormOfGeluThatTheModelHas) {
  const at::Tensor x = random_tensor({1, 3, 8}, 1, 0), weight = random_tensor({8, 4}, 1, 1),
                   bias = random_tensor({4}, 1, 2);
  const at::Tensor linear = at::matmul(x, weight) + bias;
  EXPECT_LT(relative_difference(aten::linear_gelu(x, weight, bias, GeluForm::Tanh), at::gelu(linear, "tanh")),
            1e-6);
  EXPECT_LT(relative_difference(aten::linear_gelu(x, weight, bias, GeluForm::Erf), at::gelu(linear)), 1e-6);
}

// Devices.

aten::DeviceFacts card() {
  return {.built = true,
          .driver = 13010,
          .runtime = 13000,
          .count = 2,
          .name = "Some Card",
          .capability = 90,
          .free_bytes = int64_t{4} << 30,
          .total_bytes = int64_t{8} << 30};
}

void expect_refused(const aten::DeviceFacts& facts, const std::string& message,
                    at::ScalarType dtype = at::kBFloat16) {
  expect_error([&] { aten::check_device(facts, at::Device(at::kCUDA, 1), dtype); }, message);
}

TEST(Devices, AreTakenWhereTheyCanCompute) {
  EXPECT_NO_THROW(aten::check_device(card(), at::Device(at::kCUDA, 1), at::kBFloat16));
  aten::DeviceFacts old = card();
  old.capability = 75;
  EXPECT_NO_THROW(aten::check_device(old, at::Device(at::kCUDA, 1), at::kFloat));
}

TEST(Devices, AreRefusedInOneLineEach) {
  aten::DeviceFacts facts = card();
  facts.built = false;
  expect_refused(facts, "built without CUDA");
  facts = card();
  facts.driver = 0;
  expect_refused(facts, "no driver");
  facts.driver = 12040;
  expect_refused(facts, "the driver knows CUDA up to 12.4, this program needs 13.0");
  facts = card();
  facts.count = 0;
  expect_refused(facts, "no GPU");
  facts.count = 1;
  expect_refused(facts, "cuda:1: there are 1 GPUs");
  facts = card();
  facts.capability = 70;
  expect_refused(facts, "compute capability 7.0, the least is 7.5");
  facts.capability = 75;
  expect_refused(facts, "no arithmetic of bfloat16; take --dtype f32");
}

TEST(Devices, AreAskedForTheirMemoryFirst) {
  const Checkpoint checkpoint = random_checkpoint(tiny_config());
  const int64_t one = aten::device_bytes(checkpoint, {}, 1), many = aten::device_bytes(checkpoint, {}, 1000);
  EXPECT_GT(many, one);
  EXPECT_NO_THROW(aten::check_device_memory(card(), one, 1));
  expect_error([&] { aten::check_device_memory(card(), int64_t{5} << 30, 64); }, "take a smaller --batch");
}

TEST(Devices, AreTheTorchEnginesAlone) {
  const Checkpoint checkpoint = random_checkpoint(tiny_config());
  const EngineOptions gpu{.where = {.device = at::Device(at::kCUDA, 0)}};
  for (const EngineKind kind : {EngineKind::Cpu, EngineKind::Reference})
    expect_error([&] { make_engine(kind, checkpoint, gpu); }, "take the torch engine");
  const EngineOptions graphs{.where = {.graphs = GraphMode::On}},
      varying{.where = {.batch_invariant = false}};
  expect_error([&] { make_engine(EngineKind::Torch, checkpoint, graphs); }, "the CPU has none");
  expect_error([&] { make_engine(EngineKind::Torch, checkpoint, varying); }, "of GPUs alone");
}

}  // namespace
}  // namespace dydit
