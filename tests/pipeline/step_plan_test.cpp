// Images that go through plans of steps: each is what it is alone, guidance is what its steps say, and a run
// that a plan is not for is refused.
#include <algorithm>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "dydit/base/error.h"
#include "dydit/pipeline/generate.h"
#include "tests/support/files.h"
#include "tests/support/random_model.h"
#include "tests/support/random_plan.h"

namespace dydit {
namespace {

using test::expect_error;
using test::odd_config;
using test::random_checkpoint;
using test::random_spec;
using test::spread_timesteps;
using test::tiny_config;

// An image of its own: all that a request says differs from one to the next, and three of four have a plan.
Request request_of(const DiTConfig& config, int i) {
  Request request;
  request.classes = {i % config.num_classes};
  request.seed = 100 + i;
  request.num_steps = 3 + i % 6;
  request.cfg_scale = i % 3 == 0 ? 1.0f : 1.5f + 0.1f * static_cast<float>(i);
  request.mode = i % 5 == 0 ? Mode::Static : Mode::Dynamic;
  request.sampler = {static_cast<SamplerKind>(i % 3), i % 3 == 1 ? 0.5f : 0.0f};
  if (i % 4 == 3) return request;
  request.plan = random_spec(config, spread_timesteps(request.num_steps), 200 + i % 16,
                             {.guided = request.guided(), .widths = request.mode == Mode::Dynamic});
  return request;
}

struct Made {
  at::Tensor x;
  Work work;
};

std::shared_ptr<Course> course_of(const Pipeline& pipeline, const Request& request) {
  return std::make_shared<Course>(request, pipeline.plan(request));
}

Made alone(const Pipeline& pipeline, const std::shared_ptr<Course>& course) {
  Scheduler scheduler(pipeline.engine(), {});
  scheduler.add(course, 0, 1);
  for (;;) {
    for (const Sample& sample : scheduler.step()) return {sample.x, sample.work};
  }
}

// They come two or three at a time, whenever there is room, and leave when they are done.
void expect_as_alone(EngineKind kind, const EngineOptions& options, const DiTConfig& config, int images,
                     const std::vector<int>& threads) {
  c10::InferenceMode guard;
  const Checkpoint checkpoint = random_checkpoint(config);
  const Pipeline pipeline(checkpoint, kind, options);
  std::vector<std::shared_ptr<Course>> courses;
  std::vector<Made> wanted;
  for (int i = 0; i < images; ++i) {
    courses.push_back(course_of(pipeline, request_of(config, i)));
    wanted.push_back(alone(pipeline, courses.back()));
  }
  for (const int count : threads) {
    SCOPED_TRACE(fmt::format("{}, {} threads", model_name(config), count));
    Scheduler scheduler(pipeline.engine(), {.threads = count});
    std::mt19937 draw(static_cast<unsigned>(count));
    int added = 0, finished = 0;
    size_t most = 0;
    while (finished < images) {
      for (size_t some = draw() % 4; some > 0 && added < images && scheduler.in_flight().size() < 12; --some)
        scheduler.add(courses[added++], 0, 1);
      if (scheduler.in_flight().empty()) continue;
      most = std::max(most, scheduler.in_flight().size());
      for (const Sample& sample : scheduler.step()) {
        const auto i =
            static_cast<size_t>(std::find(courses.begin(), courses.end(), sample.course) - courses.begin());
        EXPECT_TRUE(at::equal(sample.x, wanted[i].x)) << "image " << i;
        EXPECT_EQ(sample.work.required, wanted[i].work.required) << "image " << i;
        EXPECT_EQ(sample.work.executed, wanted[i].work.executed) << "image " << i;
        ++finished;
      }
    }
    EXPECT_GE(most, 4u);
  }
}

TEST(SchedulerOfPlans, FortyImagesThatShareForwardsAreWhatTheyAreAlone) {
  expect_as_alone(EngineKind::Cpu, {}, tiny_config(), 40, {1, 2, 3});
}
TEST(SchedulerOfPlans, ImagesOfOddSizesThatShareForwardsAreWhatTheyAreAlone) {
  expect_as_alone(EngineKind::Cpu, {}, odd_config(), 20, {2});
}
TEST(SchedulerOfPlans, ImagesOfSeveralPatchSizesThatShareForwardsAreWhatTheyAreAlone) {
  expect_as_alone(EngineKind::Cpu, {}, test::levels_config(), 24, {1, 2});
}
TEST(SchedulerOfPlans, ImagesWhoseTokensSkipBlocksAreWhatTheyAreAlone) {
  expect_as_alone(EngineKind::Cpu, {}, test::block_scope_config(), 16, {1, 2});
}
TEST(SchedulerOfPlans, ImagesInBFloat16ThatShareForwardsAreWhatTheyAreAlone) {
  expect_as_alone(EngineKind::Cpu, {.dtype = at::kBFloat16}, tiny_config(), 20, {2});
}
TEST(SchedulerOfPlans, ImagesOfTheReferenceThatShareForwardsAreWhatTheyAreAlone) {
  expect_as_alone(EngineKind::Reference, {}, tiny_config(), 12, {1, 3});
}

TEST(SchedulerOfPlans, CountsTheWorkThatThePlanNeeds) {
  Checkpoint checkpoint = random_checkpoint(tiny_config());
  checkpoint.keep_counts = KeepCounts{.heads = {{1, 2, 3, 4}, {4, 1, 1, 2}},
                                      .groups = {{3, 1, 4, 2}, {2, 2, 2, 1}},
                                      .tokens = {{16, 1, 5, 8}, {2, 9, 16, 1}}};
  for (const EngineKind kind : {EngineKind::Cpu, EngineKind::Reference}) {
    const Pipeline pipeline(checkpoint, kind, {});
    for (int i = 0; i < 9; ++i) {
      const auto course = course_of(pipeline, request_of(tiny_config(), i));
      EXPECT_EQ(alone(pipeline, course).work.required, plan_macs(course->plan, course->request.guided()))
          << i;
    }
  }
}

TEST(SchedulerOfPlans, APlanThatComputesAllChangesNoBit) {
  const Checkpoint checkpoint = random_checkpoint(tiny_config());
  for (const EngineKind kind : {EngineKind::Cpu, EngineKind::Reference}) {
    const Pipeline pipeline(checkpoint, kind, {});
    for (const SamplerKind sampler : {SamplerKind::Ddpm, SamplerKind::Ddim, SamplerKind::Dpm}) {
      Request request;
      request.num_steps = 4;
      request.sampler.kind = sampler;
      const Made without = alone(pipeline, course_of(pipeline, request));
      request.plan = full_spec(checkpoint.config, run_spacing(request, {}).timesteps);
      const Made with = alone(pipeline, course_of(pipeline, request));
      EXPECT_TRUE(at::equal(with.x, without.x));
      EXPECT_EQ(with.work.required, without.work.required);
      EXPECT_EQ(with.work.executed, without.work.executed);
    }
  }
}

// Finished images leave their memory to later ones, whose features it does not hold yet.
TEST(SchedulerOfPlans, HistoriesAreUsedAgainAndNeverMeet) {
  const Checkpoint checkpoint = random_checkpoint(tiny_config());
  const Pipeline pipeline(checkpoint, EngineKind::Cpu, {});
  const auto course = course_of(pipeline, request_of(tiny_config(), 1));
  ASSERT_GT(course->plan.slots, 0);
  ASSERT_TRUE(course->request.guided());
  Scheduler scheduler(pipeline.engine(), {});
  const auto histories = [&] {
    std::vector<void*> all;
    for (const Sample& sample : scheduler.in_flight()) {
      for (const History& history : sample.histories) {
        all.push_back(history.features.data_ptr());
        EXPECT_EQ(history.kept_at, std::vector<int>(course->plan.slots, -1));
      }
    }
    std::sort(all.begin(), all.end());
    EXPECT_EQ(std::adjacent_find(all.begin(), all.end()), all.end());
    return all;
  };
  scheduler.add(course, 0, 3);
  const std::vector<void*> first = histories();
  EXPECT_EQ(first.size(), 6u);
  while (!scheduler.in_flight().empty()) {
    for (const Sample& sample : scheduler.step()) {
      EXPECT_FALSE(sample.histories[0].features.defined());  // what is handed out holds no features
      EXPECT_FALSE(sample.differences.defined());
    }
  }
  scheduler.add(course, 0, 3);
  EXPECT_EQ(histories(), first);
}

TEST(SchedulerOfPlans, WithoutGuidanceKeepsOneRow) {
  const Checkpoint checkpoint = random_checkpoint(tiny_config());
  const Pipeline pipeline(checkpoint, EngineKind::Cpu, {});
  Request request = request_of(tiny_config(), 1);
  const auto guided = course_of(pipeline, request);
  request.cfg_scale = 1;
  request.plan = random_spec(tiny_config(), spread_timesteps(4), 3);
  const auto plain = course_of(pipeline, request);
  Scheduler scheduler(pipeline.engine(), {});
  scheduler.add(plain, 0, 1);
  EXPECT_TRUE(scheduler.in_flight()[0].histories[0].features.defined());
  EXPECT_FALSE(scheduler.in_flight()[0].histories[1].features.defined());
  const int64_t feature = int64_t{16} * 64 * 4,
                difference = int64_t{guided->request.channels_guided(tiny_config())} * 64 * 4;
  EXPECT_EQ(cache_bytes(plain->plan, plain->request, at::kFloat), plain->plan.slots * feature);
  EXPECT_EQ(cache_bytes(guided->plan, guided->request, at::kFloat),
            2 * guided->plan.slots * feature + guided->plan.guide_slots * difference);
}

// One step at a time of one image, with what the model gave before guidance.
struct Steps {
  Steps(const Pipeline& pipeline, const Request& request)
      : scheduler(pipeline.engine(), {}), course(course_of(pipeline, request)) {
    scheduler.add(course, 0, 1);
  }
  // The conditional row's first three channels, the null class's, and x before and after.
  struct Step {
    at::Tensor cond, null, before, after;
  };
  Step step() {
    Step made;
    const at::Tensor x = scheduler.in_flight()[0].x;
    made.before = x.clone();
    scheduler.step();
    made.after = x.clone();
    const at::Tensor outputs = scheduler.outputs().clone();
    made.cond = outputs[0];
    if (outputs.size(0) == 2) made.null = outputs[1];
    return made;
  }
  Scheduler scheduler;
  std::shared_ptr<Course> course;
};

// eps that took x to where it is, by DDIM without noise: x' = a x + b eps.
at::Tensor eps_of(const Steps& steps, const Steps::Step& made, int step) {
  at::Tensor zero = made.before.clone(), one = made.before.clone();
  const at::Tensor nothing = at::zeros_like(zero), unit = at::ones_like(zero);
  const auto apply = [&](at::Tensor& x, const at::Tensor& eps) {
    const size_t n = static_cast<size_t>(x.numel());
    apply_step(steps.course->solver.steps[step], {.x = {x.data_ptr<float>(), n},
                                                  .eps = {eps.data_ptr<float>(), n},
                                                  .variance = {},
                                                  .noise = {},
                                                  .x0 = {}});
  };
  apply(zero, nothing);
  apply(one, unit);
  return (made.after - zero) / (one - zero);
}

// Scale 3 of the run; the steps: full, scale 2, off, forecast of order 1, forecast of order 0 by scale 5.
TEST(GuidanceOfPlans, IsWhatEachStepSays) {
  const DiTConfig config = tiny_config();
  const Checkpoint checkpoint = random_checkpoint(config);
  for (const EngineKind kind : {EngineKind::Cpu, EngineKind::Reference}) {
    const Pipeline pipeline(checkpoint, kind, {});
    Request request;
    request.cfg_scale = 3;
    request.guided_channels = 3;
    request.mode = Mode::Static;
    request.sampler = {SamplerKind::Ddim, 0};
    request.plan = full_spec(config, std::vector<double>{500, 600, 700, 800, 900});
    std::vector<StepSpec>& plan = request.plan->steps;
    plan[3].scale = 2.0f;
    plan[2].guide = GuideKind::Off;
    plan[1].guide = plan[0].guide = GuideKind::Forecast;
    plan[1].guide_order = 1;
    plan[0].scale = 5.0f;
    Steps steps(pipeline, request);
    const auto guided = [](const at::Tensor& eps) { return eps.slice(0, 0, 3); };
    const auto expect_eps = [&](const Steps::Step& made, int step, const at::Tensor& wanted) {
      const at::Tensor eps = eps_of(steps, made, step);
      EXPECT_LT(test::relative_difference(guided(eps), wanted), 1e-4) << "step " << step;
      EXPECT_LT(test::relative_difference(eps[3], made.cond[3]), 1e-4) << "step " << step << ", not guided";
    };
    const Steps::Step first = steps.step(), second = steps.step(), third = steps.step(),
                      fourth = steps.step();
    const at::Tensor d4 = guided(first.cond) - guided(first.null),
                     d3 = guided(second.cond) - guided(second.null);
    expect_eps(first, 4, guided(first.null) + 3 * d4);
    expect_eps(second, 3, guided(second.null) + 2 * d3);
    EXPECT_FALSE(third.null.defined());
    expect_eps(third, 2, guided(third.cond));
    EXPECT_FALSE(fourth.null.defined());
    expect_eps(fourth, 1, guided(fourth.cond) + 2 * (3 * d3 - 2 * d4));  // two steps beyond the line's end
    at::Tensor x = steps.scheduler.in_flight()[0].x;
    Steps::Step fifth;
    fifth.before = x.clone();
    const std::vector<Sample> finished = steps.scheduler.step();
    fifth.after = finished[0].x;
    fifth.cond = steps.scheduler.outputs()[0].clone();
    expect_eps(fifth, 0, guided(fifth.cond) + 4 * d3);
    EXPECT_EQ(finished[0].work.required, plan_macs(steps.course->plan, true));
  }
}

class RefusedPlan : public testing::Test {
 protected:
  Request request() const {
    Request request;
    request.sampler = {SamplerKind::Ddim, 0};
    request.cfg_scale = 2;
    request.mode = Mode::Dynamic;
    request.plan = full_spec(config_, std::vector<double>{100, 500, 900});
    request.plan->name = "hand";
    return request;
  }
  void expect_refused(const Request& request, const std::string& message) const {
    EXPECT_THROW(check_request(config_, request), UsageError);
    expect_error([&] { check_request(config_, request); }, message);
  }
  const DiTConfig config_ = tiny_config();
};

TEST_F(RefusedPlan, IsForAnotherRun) {
  Request good = request();
  good.plan->sampler = "ddim";
  good.plan->eta = 0;
  good.plan->cfg_scale = 2;
  good.plan->mode = "dynamic";
  check_request(config_, good);
  const auto refuse = [&](const std::function<void(Request&)>& change, const std::string& message) {
    Request changed = good;
    change(changed);
    expect_refused(changed, message);
  };
  refuse([](Request& r) { r.sampler.kind = SamplerKind::Ddpm; }, "is for sampler ddim, this run has ddpm");
  refuse([](Request& r) { r.sampler.eta = 1; }, "is for eta 0, this run has 1");
  refuse([](Request& r) { r.cfg_scale = 4; }, "is for guidance scale 2, this run has 4");
  refuse([](Request& r) { r.mode = Mode::Static; }, "is for mode dynamic, this run has static");
}

TEST_F(RefusedPlan, SaysWidthsInAStaticRun) {
  const auto refuse = [&](const std::function<void(StepSpec&)>& change) {
    Request by_hand = request();
    change(by_hand.plan->steps[1]);
    check_request(config_, by_hand);
    by_hand.mode = Mode::Static;
    expect_refused(by_hand, "says which heads, groups or tokens are on, this run is static: leave them out");
  };
  const std::vector<std::vector<uint8_t>> parts(2, {1, 0, 1, 0});
  refuse([&](StepSpec& step) { step.heads = parts; });
  refuse([&](StepSpec& step) { step.groups = parts; });
  refuse([&](StepSpec& step) { step.tokens = {3, 16}; });
}

TEST_F(RefusedPlan, CannotBeTaken) {
  Request first = request();
  first.plan->steps.back().mlp[1] = 0;
  expect_error([&] { check_request(config_, first); }, "hand: step t = 900: the first step must compute all");
  Request guide = request();
  guide.plan->steps.back().guide = GuideKind::Forecast;
  expect_error([&] { check_request(config_, guide); }, "the first step must compute all");
  guide.cfg_scale = 1;  // without guidance nobody asks
  check_request(config_, guide);
}

TEST_F(RefusedPlan, IsForAnotherModel) {
  const test::TemporaryFolder folder;
  test::save_random_checkpoint(folder / "m.safetensors", config_);
  const Checkpoint checkpoint = load_checkpoint(folder / "m.safetensors");
  const Pipeline pipeline(checkpoint, EngineKind::Cpu, {});
  Request one = request();
  one.plan->model_sha256 = checkpoint.sha256;
  EXPECT_EQ(pipeline.plan(one).steps.size(), 3u);
  one.plan->model_sha256 = std::string(64, 'a');
  EXPECT_THROW(pipeline.plan(one), UsageError);
  expect_error([&] { pipeline.plan(one); }, "is for the model of SHA-256 aaaaaaaaaa, ");
  expect_error([&] { pipeline.plan(one); }, "is of " + checkpoint.sha256.substr(0, 10));
}

// 16 tokens of 64 channels in float32 are 4 KiB; both rows keep all four branches: 32 KiB an image.
TEST_F(RefusedPlan, KeepsMoreThanItMay) {
  const Checkpoint checkpoint = random_checkpoint(config_);
  const Pipeline pipeline(checkpoint, EngineKind::Cpu, {});
  Request many = request();
  many.num_images = 5;
  for (auto* actions : {&many.plan->steps[1].attn, &many.plan->steps[1].mlp}) actions->assign(2, 0);
  const auto generate = [&](int64_t bytes, int batch) {
    int made = 0;
    SamplingOptions options;
    options.batch = batch;
    options.cache_memory = bytes;
    pipeline.generate(many, options, {.on_sample = [&](GeneratedSample&&) { ++made; }});
    return made;
  };
  const int64_t image = 32 << 10;
  EXPECT_EQ(generate(3 * image, 3), 5);
  EXPECT_EQ(generate(5 * image, 16), 5);  // no batch is larger than the images that there are
  expect_error([&] { generate(3 * image, 4); }, "take --batch 3 or a larger --cache-memory");
  expect_error([&] { generate(3 * image - 1, 3); }, "take --batch 2 or a larger --cache-memory");
  expect_error([&] { generate(image - 1, 1); }, "take a larger --cache-memory or a plan of a lower order");
  expect_error([&] { generate(image - 1, 1); }, "of features an image");
}

}  // namespace
}  // namespace dydit
