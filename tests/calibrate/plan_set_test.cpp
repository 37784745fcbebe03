// MODEL.plans.json: what is written comes back, and every reason for which a text is refused.
#include "dydit/calibrate/plan_set.h"

#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "tests/support/files.h"
#include "tests/support/random_model.h"

namespace dydit {
namespace {

using test::error_of;
using test::expect_error;
using test::random_checkpoint;
using test::TemporaryFolder;
using test::tiny_config;

PlanSet example() {
  PlanSet set{
      .model_sha256 = "ab12",
      .run = {.sampler = {SamplerKind::Ddim, 0.5f},
              .timesteps = {0, 250, 500},
              .cfg_scale = 2,
              .cfg_channels = 3,
              .mode = Mode::Dynamic,
              .dtype = at::kBFloat16},
      .measured = {.images = 3, .seeds = {18446744073709551615u}, .classes = {0, 1, 0}, .seconds = 2.5}};
  PlanSpec plan = full_spec(tiny_config(), set.run.timesteps);
  plan.name = "a";
  plan.steps[0].attn = {0, 0};
  set.plans.push_back(
      {.cost = 0.25, .cost_max = 0.375, .error = 0.0625, .error_se = 0.5, .psnr = 30.5, .plan = plan});
  plan.name = "b";
  plan.steps[0].attn = {kCompute, kCompute};
  set.plans.push_back({.cost = 1, .cost_max = 1, .plan = plan});
  return set;
}

std::string good() { return plan_set_text(example(), tiny_config()); }

TEST(PlanSet, ComesBackAsItWasWritten) {
  const PlanSet set = parse_plan_set(good(), "FILE"), wanted = example();
  EXPECT_EQ(set.model_sha256, wanted.model_sha256);
  EXPECT_EQ(set.run.sampler.kind, wanted.run.sampler.kind);
  EXPECT_EQ(set.run.sampler.eta, wanted.run.sampler.eta);
  EXPECT_EQ(set.run.timesteps, wanted.run.timesteps);
  EXPECT_EQ(set.run.cfg_scale, wanted.run.cfg_scale);
  EXPECT_EQ(set.run.cfg_channels, wanted.run.cfg_channels);
  EXPECT_EQ(set.run.mode, wanted.run.mode);
  EXPECT_EQ(set.run.dtype, wanted.run.dtype);
  EXPECT_EQ(set.measured.images, 3);
  EXPECT_EQ(set.measured.seeds, wanted.measured.seeds);
  EXPECT_EQ(set.measured.classes, wanted.measured.classes);
  EXPECT_EQ(set.measured.seconds, 2.5);
  ASSERT_EQ(set.plans.size(), 2u);
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(set.plans[i].cost, wanted.plans[i].cost);
    EXPECT_EQ(set.plans[i].cost_max, wanted.plans[i].cost_max);
    EXPECT_EQ(set.plans[i].error, wanted.plans[i].error);
    EXPECT_EQ(set.plans[i].error_se, wanted.plans[i].error_se);
    EXPECT_EQ(set.plans[i].psnr, wanted.plans[i].psnr);
    EXPECT_EQ(set.plans[i].plan, wanted.plans[i].plan);
  }
}

TEST(PlanSet, RefusesWhatIsNone) {
  struct Fault {
    std::string from, to, message;
  };
  const std::vector<Fault> faults = {
      {"\"dydit_plans\": 1", "\"dydit_plans\": 2", "FILE: dydit_plans is 2, but this program reads 1"},
      {"\"dydit_plans\": 1, ", "", "FILE: holds no plans: an object with dydit_plans is wanted"},
      {"\"plans\": [", "\"plan\": [", "FILE: key \"plan\" is unknown"},
      {"\"model_sha256\": \"ab12\"", "\"model_sha256\": 5", "model_sha256 is 5; a text is wanted"},
      {"\"sampler\"", "\"sample\"", "FILE: run: key \"sample\" is unknown; did you mean sampler?"},
      {"\"ddim\"", "\"odd\"", "FILE: run: sampler is \"odd\"; ddpm, ddim, dpm++, euler"},
      {"\"eta\": 0.5", "\"eta\": -1", "FILE: run: eta is -1; a number from 0 is wanted"},
      {"\"eta\": 0.5", "\"eta\": NaN", "FILE: line 2 is not JSON"},
      {"[500, 250, 0]", "[]", "FILE: run: timesteps is empty"},
      {"[500, 250, 0]", "[500, 500, 0]", "timesteps holds 500 after 500; they fall"},
      {"[500, 250, 0]", "[1500, 250, 0]", "timesteps is 1500; 0 to 999 is wanted"},
      {"\"cfg_channels\": 3", "\"cfg_channels\": 0", "cfg_channels is 0; 1 to"},
      {"\"images\": 3", "\"images\": 3.5", "images is 3.5; a whole number"},
      {"\"seconds\": 2.5", "\"seconds\": \"x\"", "seconds is \"x\"; a number from 0 is wanted"},
      {"18446744073709551615", "-1", "seeds holds -1; whole numbers from 0 are wanted"},
      {"\"cost\": 0.25", "\"cost\": 0.5", "FILE: plan 1: cost is 0.5, above cost_max, 0.375"},
      {"\"error\": 0.0625, ", "", "FILE: plan 1: error is missing"},
      {"\"psnr\": 30.5", "\"psnr\": \"high\"", "FILE: plan 1: psnr is \"high\"; a number is wanted"},
      {"\"depth\": 2", "\"depth\": 3",
       "FILE: plan 1: plan: step t = 500: attn says 2 blocks, the model has 3"},
      {"\"depth\": 2", "\"depth\": 0", "FILE: plan 1: plan: depth is 0; 1 to 65536 is wanted"},
      {"\"num_tokens\": 16", "\"num_tokens\": 15", "num_tokens is 15; the tokens of an image are a square"},
      {"\"attn\": \"cc\"", "\"attn\": \"00\"", "the first step must compute all"},
      {"\"attn\": \"cc\"", "\"attention\": \"cc\"", "step t = 500: key \"attention\" is unknown"},
  };
  for (const Fault& fault : faults) {
    SCOPED_TRACE(fault.from + " -> " + fault.to);
    std::string text = good();
    const size_t at = text.find(fault.from);
    ASSERT_NE(at, text.npos);
    text.replace(at, fault.from.size(), fault.to);
    const std::string message = error_of([&] { parse_plan_set(text, "FILE"); });
    EXPECT_TRUE(message.starts_with("FILE: ")) << message;
    EXPECT_NE(message.find(fault.message), message.npos) << message << "\nwanted: " << fault.message;
  }
  PlanSet none = example();
  none.plans.clear();
  expect_error([&] { parse_plan_set(plan_set_text(none, tiny_config()), "FILE"); }, "FILE: holds 0 plans");
  const std::string large(size_t{16 << 20} + 1, ' ');
  expect_error([&] { parse_plan_set(large, "FILE"); }, "plans of 16777217 bytes; at most 16777216 are read");
}

TEST(PlanSet, IsForOneModelAndRun) {
  Checkpoint checkpoint = random_checkpoint(tiny_config());
  checkpoint.sha256 = "ab12";
  GenerateOptions options;
  options.timesteps = {500, 250, 0};
  options.sampler = {SamplerKind::Ddim, 0.5f};
  options.cfg_scale = 2.2f;
  const PlanSet set = example();
  const auto refused = [&](const GenerateOptions& other, const std::string& message) {
    expect_error([&] { check_plan_set(set, checkpoint, other, "FILE"); }, message);
  };
  EXPECT_NO_THROW(check_plan_set(set, checkpoint, options, "FILE"));
  GenerateOptions other = options;
  other.sampler.kind = SamplerKind::Ddpm;
  refused(other, "FILE: its plans are for sampler ddim, this run has ddpm; calibrate it");
  other = options;
  other.sampler.eta = 0;
  refused(other, "its plans are for eta 0.5, this run has 0");
  other = options;
  other.timesteps = {500, 251, 0};
  refused(other, "its plans are for timesteps");
  other = options;
  other.mode = Mode::Static;
  refused(other, "its plans are for mode dynamic, this run has static");
  other = options;
  other.cfg_scale = 2.21f;
  refused(other, "its plans are for guidance scale 2, this run has 2.21");
  other = options;
  other.guided_channels = 4;
  refused(other, "its plans are for guided channels 3, this run has 4");
  checkpoint.sha256 = "cd34";
  refused(options, "its plans are for the model of SHA-256 ab12");
}

TEST(PlanSet, ABudgetTakesThePlanOfLeastErrorWithinIt) {
  const PlanSet set = example();
  EXPECT_EQ(plan_within(set, 0.37), nullptr);
  EXPECT_EQ(plan_within(set, 0.375), &set.plans[0]);
  EXPECT_EQ(plan_within(set, 0.99), &set.plans[0]);
  EXPECT_EQ(plan_within(set, 1), &set.plans[1]);
}

TEST(PlanSet, LiesBesideTheModel) {
  const TemporaryFolder folder;
  EXPECT_EQ(plan_set_path("a/dydit-0.5.safetensors"), "a/dydit-0.5.plans.json");
  std::filesystem::create_directory(folder / "model-0.5");
  EXPECT_EQ(plan_set_path(folder / "model-0.5"), folder / "model-0.5.plans.json");
  EXPECT_EQ(plan_set_path(folder / "model-0.5" / ""), folder / "model-0.5.plans.json");
}

}  // namespace
}  // namespace dydit
