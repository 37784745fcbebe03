// The door of all engines: what they take, what they refuse, and what they need.
#include "dydit/engine/engine.h"

#include <algorithm>
#include <array>
#include <fstream>
#include <functional>
#include <malloc.h>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "dydit/base/error.h"
#include "tests/support/engines.h"
#include "tests/support/files.h"
#include "tests/support/random_model.h"
#include "tests/support/random_plan.h"

namespace dydit {
namespace {

using test::EngineOf;
using test::Inputs;
using test::random_checkpoint;
using test::random_inputs;
using test::tiny_config;

class EveryEngine : public testing::TestWithParam<EngineKind> {
 protected:
  // A forward of these arguments is refused; the next one is as if nothing had been.
  void expect_refused(const at::Tensor& x, const std::vector<Row>& rows, size_t work_rows,
                      const std::string& message) {
    std::vector<Work> work(work_rows);
    ForwardOutputs outputs{.work = work};
    expect_refused([&] { engine_.engine->forward(x, rows, *engine_.workspace, outputs); }, message);
  }
  void expect_refused(const std::function<void()>& forward, const std::string& message) {
    EXPECT_THROW(forward(), UsageError) << message;
    test::expect_error(forward, message);
    EXPECT_TRUE(at::equal(engine_.forward(inputs_, 1).out, whole_));
  }
  std::vector<Row> rows(const std::vector<int64_t>& y) const { return engine_.rows(1, y); }

  const Checkpoint checkpoint_ = random_checkpoint(tiny_config());
  const EngineOf engine_{GetParam(), checkpoint_, {.threads = 2}};
  const Inputs inputs_ = random_inputs(tiny_config(), 3);
  const at::Tensor whole_ = engine_.forward(inputs_, 1).out;
};
INSTANTIATE_TEST_SUITE_P(Kinds, EveryEngine, testing::Values(EngineKind::Cpu, EngineKind::Reference),
                         [](const auto& info) { return std::string(kEngineNames[info.param]); });

TEST_P(EveryEngine, RefusesAnInputOfAnotherShapeTypeOrDevice) {
  const std::string wanted = "x: expected (rows, 4, 8, 8) in float32 on the CPU, got ";
  const auto refuse = [&](const at::Tensor& x, const std::string& got) {
    expect_refused(x, rows(inputs_.y), 3, wanted + got);
  };
  refuse({}, "no tensor");
  refuse(inputs_.x[0], "(4, 8, 8) in Float on cpu");
  refuse(inputs_.x.slice(1, 0, 3), "(3, 3, 8, 8) in Float on cpu");
  refuse(inputs_.x.slice(2, 0, 7), "(3, 4, 7, 8) in Float on cpu");
  refuse(inputs_.x.slice(3, 0, 4), "(3, 4, 8, 4) in Float on cpu");
  refuse(inputs_.x.to(at::kDouble), "(3, 4, 8, 8) in Double on cpu");
  refuse(inputs_.x.to(at::kBFloat16), "(3, 4, 8, 8) in BFloat16 on cpu");
  refuse(inputs_.x.to(at::kMeta), "(3, 4, 8, 8) in Float on meta");
}

TEST_P(EveryEngine, RefusesOtherThanARowAndAWorkARow) {
  expect_refused(inputs_.x, rows({1, 2}), 3, "2 rows are described, x has 3");
  expect_refused(inputs_.x, rows({1, 2, 3, 4}), 3, "4 rows are described, x has 3");
  expect_refused(inputs_.x, rows(inputs_.y), 2, "work for 2 rows, x has 3");
  expect_refused(inputs_.x, rows(inputs_.y), 4, "work for 4 rows, x has 3");
}

TEST_P(EveryEngine, RefusesALabelThatTheModelLacks) {
  expect_refused(inputs_.x, rows({0, 6, 1}), 3, "label 6: expected 0 to 5");
  expect_refused(inputs_.x, rows({0, 1, -1}), 3, "label -1: expected 0 to 5");
}

TEST_P(EveryEngine, RefusesAStepThatDoesNotFitTheModel) {
  const auto refuse = [&](const StepPlan* step, const std::string& message) {
    std::vector<Row> some = rows(inputs_.y);
    some[2].step = step;
    expect_refused(inputs_.x, some, 3, message);
  };
  refuse(nullptr, "a row without a step");
  const auto broken = [&](const std::function<void(StepPlan&)>& change, const std::string& message) {
    StepPlan step = engine_.plan.steps[1];
    change(step);
    refuse(&step, message);
  };
  broken([](StepPlan& step) { step.timestep = 1000; }, "timestep 1000: expected 0 to 999");
  broken([](StepPlan& step) { step.timestep = -1; }, "timestep -1: expected 0 to 999");
  const std::string unfit = "the plan of timestep 480 does not fit DyDiT";
  broken([](StepPlan& step) { step.blocks.pop_back(); }, unfit);
  broken([](StepPlan& step) { step.blocks[0].heads.push_back(1); }, unfit);
  broken([](StepPlan& step) { step.blocks[0].heads.assign(4, 0); }, unfit);
  broken([](StepPlan& step) { step.blocks[0].heads = {0, 1, 1, 1}; }, unfit);
  broken([](StepPlan& step) { step.blocks[0].heads = {1, 2, 0, 0}; }, unfit);
  broken([](StepPlan& step) { step.blocks[1].groups.pop_back(); }, unfit);
  broken([](StepPlan& step) { step.blocks[1].groups.assign(4, 0); }, unfit);
  broken([](StepPlan& step) { step.blocks[1].keep_tokens = 17; }, unfit);
}

TEST_P(EveryEngine, RefusesADynamicStepOfAModelWithoutRouters) {
  const EngineOf plain(GetParam(), random_checkpoint(test::static_config()));
  StepPlan step = plain.plan.steps[1];
  step.mode = Mode::Dynamic;
  const Inputs inputs = random_inputs(test::static_config(), 1);
  std::vector<Work> work(1);
  ForwardOutputs outputs{.work = work};
  test::expect_error(
      [&] {
        plain.engine->forward(inputs.x, std::vector<Row>{{&step, 0}}, *plain.workspace, outputs);
      },
      "the plan of timestep 480 does not fit DiT");
}

TEST_P(EveryEngine, RefusesAnOutputOfAnotherShapeOrType) {
  std::vector<Work> work(3);
  const auto refuse = [&](const at::Tensor& out, const std::string& got) {
    ForwardOutputs outputs{out, work};
    expect_refused([&] { engine_.engine->forward(inputs_.x, rows(inputs_.y), *engine_.workspace, outputs); },
                   "out: expected (3, 8, 8, 8), contiguous in float32 on the CPU, got " + got);
  };
  refuse(at::empty({2, 8, 8, 8}), "(2, 8, 8, 8) in Float on cpu");
  refuse(at::empty({3, 8, 8, 8}, at::kDouble), "(3, 8, 8, 8) in Double on cpu");
  refuse(at::empty({3, 8, 8, 16}).slice(3, 0, 8), "(3, 8, 8, 8) in Float on cpu");
}

TEST_P(EveryEngine, FillsTheOutputThatItIsGiven) {
  std::vector<Work> work(3);
  const at::Tensor given = at::full({3, 8, 8, 8}, -1.0f);
  ForwardOutputs outputs{given, work};
  engine_.forward(inputs_.x, 1, inputs_.y, outputs);
  EXPECT_TRUE(at::equal(given, whole_));
}

TEST_P(EveryEngine, RefusesAWorkspaceOfAnotherEngine) {
  const EngineOf other(GetParam(), checkpoint_),
      other_kind(GetParam() == EngineKind::Cpu ? EngineKind::Reference : EngineKind::Cpu, checkpoint_);
  for (const EngineOf* foreign : {&other, &other_kind}) {
    std::vector<Work> work(3);
    ForwardOutputs outputs{.work = work};
    expect_refused([&] { engine_.engine->forward(inputs_.x, rows(inputs_.y), *foreign->workspace, outputs); },
                   "the workspace is of another engine");
  }
}

// Rows at other steps, in other modes and of other plans share a forward, and each is as if it were alone.
TEST_P(EveryEngine, RowsOfOtherPlansDoNotMeet) {
  const EngineOf complete(GetParam(), checkpoint_, {}, Mode::Static);
  const Inputs inputs = random_inputs(tiny_config(), 11);
  std::vector<Row> mixed;
  for (int b = 0; b < 11; ++b) {
    const EngineOf& one = b % 4 == 3 ? complete : engine_;
    mixed.push_back({&one.plan.steps[b % 3], inputs.y[b]});
  }
  for (const int threads : {1, 2, 3}) {
    const auto workspace = engine_.engine->make_workspace({.threads = threads});
    std::vector<Work> work(11);
    TokenTrace trace;
    ForwardOutputs outputs{{}, work, &trace};
    engine_.engine->forward(inputs.x, mixed, *workspace, outputs);
    for (int b = 0; b < 11; ++b) {
      const EngineOf& one = b % 4 == 3 ? complete : engine_;
      const test::Forward alone = one.forward(test::rows_of(inputs, b, 1), b % 3);
      EXPECT_TRUE(at::equal(outputs.out[b], alone.out[0])) << b;
      EXPECT_EQ(work[b].required, alone.work[0].required) << b;
      EXPECT_EQ(work[b].executed, alone.work[0].executed) << b;
      if (alone.trace.masks.defined()) {
        EXPECT_TRUE(at::equal(trace.masks[b], alone.trace.masks[0])) << b;
        EXPECT_TRUE(at::equal(trace.logits[b], alone.trace.logits[0])) << b;
      } else {
        EXPECT_TRUE(trace.masks[b].eq(1).all().item<bool>()) << b;
      }
    }
  }
}

TEST_P(EveryEngine, TwoRunsAtTheSameTimeDoNotMeet) {
  const Inputs other = random_inputs(tiny_config(), 7);
  const at::Tensor wanted = engine_.forward(other, 2).out;
  const auto forwards = [&](const Inputs& inputs, int step, const at::Tensor& expected) {
    const auto workspace = engine_.engine->make_workspace({.threads = 2});
    const std::vector<Row> described = engine_.rows(step, inputs.y);
    for (int i = 0; i < 20; ++i) {
      std::vector<Work> work(inputs.y.size());
      ForwardOutputs outputs{.work = work};
      engine_.engine->forward(inputs.x, described, *workspace, outputs);
      EXPECT_TRUE(at::equal(outputs.out, expected));
    }
  };
  std::thread beside([&] { forwards(other, 2, wanted); });
  forwards(inputs_, 1, whole_);
  beside.join();
}

TEST_P(EveryEngine, TakesRowsThatLieApart) {
  const at::Tensor apart = inputs_.x.permute({0, 1, 3, 2}).contiguous().permute({0, 1, 3, 2});
  ASSERT_FALSE(apart.is_contiguous());
  EXPECT_TRUE(at::equal(engine_.forward(apart, 1, inputs_.y).out, whole_));
}

TEST_P(EveryEngine, NoSamplesAreNoWork) {
  EXPECT_EQ(engine_.forward(random_inputs(tiny_config(), 0), 1).out.sizes(), (at::IntArrayRef{0, 8, 8, 8}));
}

TEST_P(EveryEngine, RefusesOptionsThatDoNotFit) {
  const auto refuse = [&](const EngineOptions& options, const std::string& message) {
    expect_refused([&] { make_engine(GetParam(), checkpoint_, options); }, message);
  };
  refuse({.dtype = at::kDouble}, "dtype Double: expected float32, bfloat16 or int8");
  if (GetParam() == EngineKind::Reference)
    refuse({.dtype = at::kChar}, "dtype int8: the reference engine has no 8-bit arithmetic");
  refuse({.threads = 0}, "0 threads: expected 1 or more");
  Profile profile(2);
  expect_refused([&] { engine_.engine->make_workspace({.threads = 0}); }, "0 threads: expected 1 or more");
  expect_refused([&] { engine_.engine->make_workspace({.profile = &profile}); },
                 "a profile of 2 rows: expected 3");
  std::vector<float> largest(7);
  expect_refused([&] { engine_.engine->make_workspace({.largest_inputs = largest}); },
                 "7 largest inputs of Float activations: expected 256 of Float");
}

// Resident bytes of this process, of files and of its own.
double resident() {
  malloc_trim(0);
  std::ifstream status("/proc/self/status");
  double bytes = 0;
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("RssAnon:") || line.starts_with("RssFile:"))
      bytes += std::stod(line.substr(line.find(':') + 1)) * 1024;
  }
  return bytes;
}

// Some 90 MB of weights in two blocks.
DiTConfig large_config() {
  DiTConfig config = test::static_config();
  config.hidden_size = 768;
  config.mlp_hidden = 3072;
  return config;
}

// The pages of the file are dropped as it is packed: with them the model would be in memory twice.
TEST(PackedModel, TakesLittleMoreThanTheFile) {
  const test::TemporaryFolder folder;
  test::save_random_checkpoint(folder / "m.safetensors", large_config());
  const auto size = static_cast<double>(std::filesystem::file_size(folder / "m.safetensors"));
  ASSERT_GT(size, 80e6);
  const double before = resident();
  const Checkpoint checkpoint = load_checkpoint(folder / "m.safetensors");
  EXPECT_GT(resident() - before, 0.9 * size);  // read to be checked; the measure works
  const EngineOf engine(EngineKind::Cpu, checkpoint);
  EXPECT_GT(resident() - before, 0.9 * size);
  EXPECT_LT(resident() - before, 1.25 * size);
}

// What an engine takes beside the checkpoint, measured.
double measured_bytes(EngineKind kind, const Checkpoint& checkpoint, const EngineOptions& options, int rows) {
  const Inputs inputs = random_inputs(checkpoint.config, rows);
  const double before = resident();
  const EngineOf engine(kind, checkpoint, options);
  const test::Forward kept = engine.forward(inputs, 1);
  return resident() - before;
}

// A bound from below, and near enough to be of use: a third of what is measured or more.
TEST(LeastEngineBytes, AreBelowWhatIsMeasuredAndNearIt) {
  DiTConfig tokens = test::static_config();  // 1024 tokens a sample, few weights
  tokens.input_size = 64;
  tokens.hidden_size = 256;
  tokens.mlp_hidden = 1024;
  for (const DiTConfig& config : {large_config(), tokens}) {
    const Checkpoint checkpoint = random_checkpoint(config);
    for (const auto& [dtype, rows] :
         std::vector<std::pair<at::ScalarType, int>>{{at::kFloat, 2}, {at::kBFloat16, 9}}) {
      const EngineOptions options = {.dtype = dtype, .threads = 2};
      const double least = least_engine_bytes(EngineKind::Cpu, checkpoint, options, rows),
                   measured = measured_bytes(EngineKind::Cpu, checkpoint, options, rows);
      EXPECT_LE(least, 1.02 * measured) << model_name(config) << ", " << rows << " rows";
      EXPECT_GE(least, measured / 3) << model_name(config) << ", " << rows << " rows";
    }
  }
}

// Every pass keeps the stream where each range of a step begins.
TEST(LeastEngineBytes, CountTheRangesOfAPlan) {
  DiTConfig config = test::static_config();
  config.input_size = 64;  // 1024 tokens: a sample is a pass
  const Checkpoint checkpoint = random_checkpoint(config);
  PlanSpec spec = full_spec(config, std::vector<double>{20, 300, 500, 700});
  for (int s = 0; s < 3; ++s) {
    const auto [from, to] = std::array{std::pair{1, 2}, std::pair{0, 1}, std::pair{0, 2}}[s];
    spec.steps[s].ranges = {{from, to, 1}};
    std::fill(spec.steps[s].attn.begin() + from, spec.steps[s].attn.begin() + to, kSkipped);
    spec.steps[s].mlp = spec.steps[s].attn;
  }
  const RunPlan plan = test::plan_of_spec(checkpoint, spec, Mode::Static, false);
  ASSERT_EQ(plan.ranges, 3);  // of the first step, which keeps all of them
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const EngineOptions options = {.dtype = dtype, .threads = 2};
    const auto least = [&](int64_t rows, int ranges) {
      return least_engine_bytes(EngineKind::Cpu, checkpoint, options, rows, ranges);
    };
    const double stream = 1024.0 * config.hidden_size * sizeof(float);
    EXPECT_EQ(least(1, 3) - least(1, 0), 3 * stream);  // all threads together
    EXPECT_EQ(least(5, 3) - least(5, 0), 9 * stream);  // and each alone
    const double before = resident();
    test::Walk walk(EngineKind::Cpu, checkpoint, plan, options);  // of three rows
    const double histories = 3.0 * static_cast<double>(history_bytes(config, dtype, plan.slots));
    walk.forward();
    EXPECT_LE(least(3, plan.ranges) + histories, 1.02 * (resident() - before));
  }
}

TEST(LeastEngineBytes, AreTheWeightsAndMoreForTheReferenceToo) {
  const Checkpoint checkpoint = random_checkpoint(tiny_config());
  const double weights = static_cast<double>(checkpoint.num_parameters()) * sizeof(float);
  const auto least = [&](at::ScalarType dtype, int64_t rows) {
    return least_engine_bytes(EngineKind::Reference, checkpoint, {.dtype = dtype}, rows);
  };
  EXPECT_GT(least(at::kFloat, 1), weights);
  EXPECT_LT(least(at::kFloat, 1), 1.5 * weights);
  EXPECT_LT(least(at::kBFloat16, 1), least(at::kFloat, 1));
  EXPECT_GT(least(at::kFloat, int64_t{1} << 40), 1e15);  // no overflow on the way
}

}  // namespace
}  // namespace dydit
