// The door of all engines: what they take, what they refuse, and what they need.
#include "dydit/engine/engine.h"

#include <fstream>
#include <malloc.h>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "dydit/base/error.h"
#include "tests/support/engines.h"
#include "tests/support/files.h"
#include "tests/support/random_model.h"

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
  void expect_refused(const at::Tensor& x, int step, const std::vector<int64_t>& y, size_t work_rows,
                      const std::string& message) {
    std::vector<Work> work(work_rows);
    const auto forward = [&] { engine_.engine->forward(x, step, y, work); };
    EXPECT_THROW(forward(), UsageError) << message;
    test::expect_error(forward, message);
    EXPECT_TRUE(at::equal(engine_.forward(inputs_, 1).out, whole_));
  }

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
    expect_refused(x, 1, inputs_.y, 3, wanted + got);
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

TEST_P(EveryEngine, RefusesAStepThatThePlanLacks) {
  expect_refused(inputs_.x, -1, inputs_.y, 3, "step -1: the plan has steps 0 to 2");
  expect_refused(inputs_.x, 3, inputs_.y, 3, "step 3: the plan has steps 0 to 2");
}

TEST_P(EveryEngine, RefusesOtherThanALabelAndAWorkARow) {
  expect_refused(inputs_.x, 1, {1, 2}, 3, "2 labels for 3 rows of x");
  expect_refused(inputs_.x, 1, {1, 2, 3, 4}, 3, "4 labels for 3 rows of x");
  expect_refused(inputs_.x, 1, inputs_.y, 2, "work for 2 rows, x has 3");
  expect_refused(inputs_.x, 1, inputs_.y, 4, "work for 4 rows, x has 3");
}

TEST_P(EveryEngine, RefusesALabelThatTheModelLacks) {
  expect_refused(inputs_.x, 1, {0, 6, 1}, 3, "label 6: expected 0 to 5");
  expect_refused(inputs_.x, 1, {0, 1, -1}, 3, "label -1: expected 0 to 5");
}

TEST_P(EveryEngine, TakesRowsThatLieApart) {
  const at::Tensor apart = inputs_.x.permute({0, 1, 3, 2}).contiguous().permute({0, 1, 3, 2});
  ASSERT_FALSE(apart.is_contiguous());
  EXPECT_TRUE(at::equal(engine_.forward(apart, 1, inputs_.y).out, whole_));
}

TEST_P(EveryEngine, NoSamplesAreNoWork) {
  EXPECT_EQ(engine_.forward(random_inputs(tiny_config(), 0), 1).out.sizes(), (at::IntArrayRef{0, 8, 8, 8}));
}

TEST_P(EveryEngine, RefusesAPlanOrOptionsThatDoNotFit) {
  const auto refuse = [&](const WidthPlan& plan, const EngineOptions& options, const std::string& message) {
    const auto make = [&] { make_engine(GetParam(), checkpoint_, plan, options); };
    EXPECT_THROW(make(), UsageError) << message;
    test::expect_error(make, message);
  };
  const WidthPlan other =
      make_width_plan(random_checkpoint(test::odd_config()), test::kTimesteps, Mode::Dynamic);
  refuse(other, {}, "the plan is for ");
  refuse(engine_.plan, {.dtype = at::kDouble}, "dtype Double: expected float32 or bfloat16");
  refuse(engine_.plan, {.threads = 0}, "0 threads: expected 1 or more");
  Profile profile(2);
  refuse(engine_.plan, {.profile = &profile}, "a profile of 2 rows: expected 3");
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
