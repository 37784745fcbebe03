// Two models on one path, and models of a few steps: whose steps are whose, and what is refused.
#include "dydit/pipeline/stitch.h"

#include <memory>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "dydit/base/error.h"
#include "dydit/base/noise.h"
#include "dydit/diffusion/consistency.h"
#include "dydit/diffusion/lcm.h"
#include "dydit/diffusion/losses.h"
#include "dydit/pipeline/generate.h"
#include "dydit/pipeline/record.h"
#include "tests/support/files.h"
#include "tests/support/random_model.h"

namespace dydit {
namespace {

using test::expect_error;
using test::random_checkpoint;
using test::static_config;
using test::tiny_config;

// Half as wide, and static.
DiTConfig small_config() {
  DiTConfig config = static_config();
  config.hidden_size = 32;
  config.num_heads = 2;
  config.mlp_hidden = 128;
  return config;
}

Request ten_steps() {
  Request request;
  request.classes = {3, 0, 4};
  request.num_images = 3;
  request.num_steps = 10;
  request.sampler.kind = SamplerKind::Ddpm;  // draws noise and heeds the variance
  request.cfg_scale = 2;
  request.seed = 17;
  return request;
}

std::vector<GeneratedSample> stitched(const Pipeline& large, const Pipeline& small, const Stitch& stitch,
                                      const Request& request, int batch) {
  std::vector<GeneratedSample> samples;
  large.generate(request, {.batch = batch},
                 {.on_sample = [&](GeneratedSample&& sample) { samples.push_back(std::move(sample)); }},
                 stitch, small);
  return samples;
}

class StitchOf : public testing::TestWithParam<EngineKind> {
 protected:
  const Checkpoint large_ = random_checkpoint(tiny_config()),
                   small_ = random_checkpoint(small_config(), /*seed=*/12);
  const Pipeline large_pipeline_{large_, GetParam(), {}}, small_pipeline_{small_, GetParam(), {}};
  const Stitch stitch_ = {&small_, 0.4};
};
INSTANTIATE_TEST_SUITE_P(Engines, StitchOf, testing::Values(EngineKind::Cpu, EngineKind::Reference),
                         [](const auto& info) { return std::string(kEngineNames[info.param]); });

TEST(Stitch, TheSmallModelTakesTheNoisyShare) {
  const Stitch stitch = {.ratio = 0.4};
  EXPECT_TRUE(stitch.takes({}, 600));
  EXPECT_FALSE(stitch.takes({}, 599));
  EXPECT_TRUE((Stitch{.ratio = 0.7}.takes({}, 300)));  // 1 - .7 is above .3 in double
  const Objective sit = {Path::Linear, Prediction::Velocity, ModelClock::Data};
  EXPECT_TRUE(stitch.takes(sit, 0.4));  // its 0 is noise
  EXPECT_FALSE(stitch.takes(sit, 0.41));
}

// The small model alone until the switch, and from there, as they stand, the large one alone.
TEST_P(StitchOf, IsTheSwitchByHand) {
  const Request request = ten_steps();
  const auto of = [&](const Pipeline& pipeline, Mode mode) {
    Request own = request;
    own.mode = mode;
    return std::make_shared<Course>(own, pipeline.plan(own));
  };
  const auto small = of(small_pipeline_, Mode::Static), large = of(large_pipeline_, Mode::Dynamic);
  Scheduler first(small_pipeline_.engine(), {}), second(large_pipeline_.engine(), {});
  first.add(small, 0, request.num_images);
  int taken = 0;
  for (int step = 9; step >= 0 && stitch_.takes({}, small->plan.steps[static_cast<size_t>(step)].timestep);
       --step, ++taken)
    first.step();
  EXPECT_EQ(taken, 4);
  std::vector<Sample> moved(first.in_flight().begin(), first.in_flight().end());
  for (Sample& sample : moved) sample.course = large;
  second.resume(moved);
  std::vector<Sample> wanted;
  while (wanted.empty()) wanted = second.step();

  for (const int batch : {1, 2, 3}) {
    const auto got = stitched(large_pipeline_, small_pipeline_, stitch_, request, batch);
    ASSERT_EQ(got.size(), wanted.size());
    for (size_t i = 0; i < got.size(); ++i) {
      EXPECT_TRUE(at::equal(got[i].sample, wanted[i].x)) << "batch " << batch << ", image " << i;
      EXPECT_EQ(got[i].work.required, wanted[i].work.required);
      EXPECT_EQ(got[i].work.executed, wanted[i].work.executed);
    }
  }
}

TEST_P(StitchOf, ImagesAtOtherStepsShareForwards) {
  const Request request = ten_steps();
  const StitchedPlan plan = stitched_plan(large_, stitch_, request);
  const auto course = std::make_shared<Course>(request, plan.plan, Extras(), plan.small);
  Scheduler scheduler(large_pipeline_.engine(), {.threads = 2}, &small_pipeline_.engine());
  const auto wanted = stitched(large_pipeline_, small_pipeline_, stitch_, request, 3);
  size_t finished = 0;
  for (int i = 0; i < 3 || !scheduler.in_flight().empty(); ++i) {
    if (i < 3) scheduler.add(course, i, 1);
    for (int k = 0; k < 2; ++k) {
      for (const Sample& sample : scheduler.step()) {
        EXPECT_TRUE(at::equal(sample.x, wanted[static_cast<size_t>(sample.index)].sample)) << sample.index;
        EXPECT_EQ(sample.work.required, wanted[static_cast<size_t>(sample.index)].work.required);
        ++finished;
      }
    }
  }
  EXPECT_EQ(finished, 3u);
}

TEST(Stitch, WorkIsThatOfEachModelsSteps) {
  const Checkpoint large = random_checkpoint(static_config()), small = random_checkpoint(small_config());
  Request request = ten_steps();
  request.mode = Mode::Static;
  const StitchedMacs macs =
      stitched_macs(stitched_plan(large, {&small, 0.4}, request), small.config, request.guided());
  EXPECT_EQ(macs.large, static_macs_per_sample(large.config, request) / 10 * 6);
  EXPECT_EQ(macs.small, static_macs_per_sample(small.config, request) / 10 * 4);
}

TEST(Stitch, TheRecordSaysWhoDoesWhat) {
  const Checkpoint large = random_checkpoint(static_config()), small = random_checkpoint(small_config());
  GenerateOptions options;
  static_cast<Request&>(options) = ten_steps();
  options.mode = Mode::Static;
  options.stitch = Stitch{&small, 0.4};
  const nlohmann::json stitch = run_record(large, options)["stitch"];
  EXPECT_EQ(stitch["small"]["steps"], 4);
  EXPECT_EQ(stitch["small"]["first"], 999);
  EXPECT_EQ(stitch["small"]["last"], 666);
  EXPECT_EQ(stitch["large"]["steps"], 6);
  EXPECT_EQ(stitch["large"]["first"], 555);
  EXPECT_EQ(stitch["large"]["last"], 0);
  EXPECT_GT(stitch["required_share"], 0.6);
  EXPECT_LT(stitch["required_share"], 1);
}

void expect_refused(const std::function<void(Checkpoint& small)>& change, const std::string& part,
                    double ratio = 0.4) {
  const Checkpoint large = random_checkpoint(tiny_config());
  Checkpoint small = random_checkpoint(small_config());
  change(small);
  EXPECT_THROW(check_stitch(large, {&small, ratio}), UsageError) << part;
  expect_error([&] { check_stitch(large, {&small, ratio}); }, part);
}

TEST(CheckStitch, RefusesModelsOfOtherImages) {
  expect_refused([](Checkpoint&) {}, "stitch ratio 0: expected a share", 0);
  expect_refused([](Checkpoint&) {}, "stitch ratio 1: expected a share", 1);
  expect_refused([](Checkpoint& small) { small.config.input_size = 16; },
                 "image side 16, but random.safetensors has 8");
  expect_refused([](Checkpoint& small) { small.config.in_channels = 3; }, "channels 3");
  expect_refused([](Checkpoint& small) { small.config.num_classes = 4; }, "classes 4");
  expect_refused([](Checkpoint& small) { small.config.learn_sigma = false; }, "learned sigma");
  expect_refused([](Checkpoint& small) { small.config.has_null_class = false; }, "null class");
  expect_refused(
      [](Checkpoint& small) {
        small.config.objective = {Path::Linear, Prediction::Velocity, ModelClock::Data};
      },
      "what it predicts");
  expect_refused(
      [](Checkpoint& small) {
        small.few_step = FewStep{"lcm", {999}, 1};
      },
      "is distilled to few steps");
  expect_refused([](Checkpoint& small) { small.quantization = Quantization(); }, "is quantised");
}

TEST(Stitch, RefusesAPlanThatKeepsFeatures) {
  const Checkpoint large = random_checkpoint(static_config()), small = random_checkpoint(small_config());
  Request request = ten_steps();
  request.mode = Mode::Static;
  plan_by_policy({.cache = "fora:2"}, large.config, request);
  expect_error([&] { stitched_plan(large, {&small, 0.4}, request); }, "leave out --stitch or the cache");
  plan_by_policy({.guide = {.every = 2}}, large.config, request);
  expect_error([&] { stitched_plan(large, {&small, 0.4}, request); }, "leave out --stitch or the cache");
  plan_by_policy({.guide = {.from = 500}}, large.config, request);  // keeps nothing
  EXPECT_NO_THROW(stitched_plan(large, {&small, 0.4}, request));
}

Checkpoint few_step_model() {
  Checkpoint checkpoint = random_checkpoint(tiny_config());
  const std::vector<int> grid = lcm_timesteps(kLcmGrid);
  checkpoint.few_step = FewStep{"lcm", {grid.rbegin(), grid.rend()}, 1.5};
  return checkpoint;
}

Request of_few_step(const Checkpoint& checkpoint) {
  Request request = ten_steps();
  take_few_step(checkpoint.few_step, {}, request);
  return request;
}

TEST(FewStep, FillsInWhatIsLeftOpen) {
  const Request request = of_few_step(few_step_model());
  EXPECT_EQ(request.sampler.kind, SamplerKind::Lcm);
  EXPECT_EQ(request.num_steps, 4);
  EXPECT_EQ(request.cfg_scale, 1);
  Request said = ten_steps();
  take_few_step(few_step_model().few_step, {.sampler = false, .cfg_scale = false, .steps = false}, said);
  EXPECT_EQ(said.num_steps, 10);
  EXPECT_EQ(said.cfg_scale, 2);
  Request plain = ten_steps();
  take_few_step({}, {}, plain);
  EXPECT_EQ(plain.sampler.kind, SamplerKind::Ddpm);
}

// Four steps written out: the consistency function of the model's output, then noise of its own number.
TEST(FewStep, SamplesByTheConsistencyFunction) {
  const Checkpoint checkpoint = few_step_model();
  for (const EngineKind kind : {EngineKind::Cpu, EngineKind::Reference}) {
    const Pipeline pipeline(checkpoint, kind, {});
    const Request request = of_few_step(checkpoint);
    std::vector<at::Tensor> got;
    pipeline.generate(request, {.batch = 2},
                      {.on_sample = [&](GeneratedSample&& sample) { got.push_back(sample.sample); }});
    ASSERT_EQ(got.size(), 3u);
    const std::vector<int> timesteps = lcm_timesteps(4);
    for (int image = 0; image < 3; ++image) {
      at::Tensor x = at::empty({1, 4, 8, 8});
      const auto fill = [&](at::Tensor& tensor, uint64_t draw) {
        fill_normal({tensor.data_ptr<float>(), 256}, request.seed, static_cast<uint64_t>(image), draw);
      };
      fill(x, 0);
      const auto workspace = pipeline.engine().make_workspace({});
      for (int step = 3; step >= 0; --step) {
        const double t = timesteps[static_cast<size_t>(step)];
        const RunPlan plan = pipeline.widths(std::vector<double>{t}, Mode::Dynamic);
        const std::vector<Row> rows = {{&plan.steps[0], request.label(image)}};
        std::vector<Work> work(1);
        ForwardOutputs outputs{.work = work};
        pipeline.engine().forward(x, rows, *workspace, outputs);
        x = lcm_consistency(x, outputs.out.slice(1, 0, 4), at::full({1}, t, at::kLong));
        if (step == 0) break;
        at::Tensor noise = at::empty_like(x);
        fill(noise, static_cast<uint64_t>(4 - step));
        x = q_sample(x, at::full({1}, timesteps[static_cast<size_t>(step - 1)], at::kLong), noise)
                .contiguous();
      }
      EXPECT_LT(test::relative_difference(got[static_cast<size_t>(image)], x[0]), 1e-3) << image;
    }
  }
}

TEST(FewStep, RefusesAllElse) {
  const Checkpoint checkpoint = few_step_model();
  const Pipeline pipeline(checkpoint, EngineKind::Cpu, {});
  const auto refused = [&](const std::function<void(Request&)>& change, const std::string& part) {
    Request request = of_few_step(checkpoint);
    change(request);
    EXPECT_THROW(pipeline.plan(request), UsageError) << part;
    expect_error([&] { pipeline.plan(request); }, part);
  };
  refused([](Request& request) { request.sampler.kind = SamplerKind::Ddim; },
          "sampler ddim: this model is distilled");
  refused([](Request& request) { request.cfg_scale = 1.5; },
          "guidance scale 1.5: this model is distilled with guidance 1.5");
  refused([](Request& request) { request.timesteps = {500, 999}; }, "timestep 500: this model is distilled");
  refused([](Request& request) { request.num_steps = 60; }, "--steps 60: lcm takes 1 to 50");
  EXPECT_EQ(samplers_of(checkpoint.few_step, checkpoint.config.objective), (std::vector<std::string>{"lcm"}));
}

TEST(FewStep, ItsSamplerIsForNoOtherModel) {
  const Checkpoint checkpoint = random_checkpoint(tiny_config());
  const Pipeline pipeline(checkpoint, EngineKind::Cpu, {});
  Request request = ten_steps();
  request.sampler.kind = SamplerKind::Lcm;
  expect_error([&] { pipeline.plan(request); }, "sampler lcm: is for models that were distilled");
}

}  // namespace
}  // namespace dydit
