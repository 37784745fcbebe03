// Images in flight: whoever shares their forwards, each is what it is alone.
#include "dydit/pipeline/scheduler.h"

#include <map>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/CPUAllocator.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "dydit/pipeline/generate.h"
#include "tests/support/files.h"
#include "tests/support/random_model.h"

namespace dydit {
namespace {

using test::odd_config;
using test::random_checkpoint;
using test::tiny_config;

// Requests that differ in all that a request says.
std::vector<Request> mixed_requests() {
  std::vector<Request> requests;
  std::mt19937 draw(5);
  for (int i = 0; i < 12; ++i) {
    Request request;
    request.classes = {static_cast<int>(draw() % 5), static_cast<int>(draw() % 5)};
    request.num_images = 1 + static_cast<int>(draw() % 3);
    request.num_steps = 2 + static_cast<int>(draw() % 5);
    request.sampler = {static_cast<SamplerKind>(i % 3), i % 3 == 1 ? 0.5f : 0.0f};
    request.cfg_scale = i % 4 == 0 ? 1.0f : 1.5f + static_cast<float>(i);
    request.seed = draw();
    request.mode = i % 5 == 0 ? Mode::Static : Mode::Dynamic;
    if (i % 6 == 5) request.timesteps = {7, 999, 431};
    requests.push_back(request);
  }
  return requests;
}

struct Alone {
  std::vector<GeneratedSample> samples;
};
Alone alone(const Pipeline& pipeline, const Request& request) {
  Alone made;
  SamplingOptions options;
  options.token_map = true;
  pipeline.generate(request, options, {.on_sample = [&](GeneratedSample&& sample) {
                      made.samples.push_back(std::move(sample));
                    }});
  return made;
}

class SchedulerOf : public testing::TestWithParam<EngineKind> {};
INSTANTIATE_TEST_SUITE_P(Engines, SchedulerOf, testing::Values(EngineKind::Cpu, EngineKind::Reference),
                         [](const auto& info) { return std::string(kEngineNames[info.param]); });

// Requests arrive at any time; a new one may come while others are half done.
TEST_P(SchedulerOf, ImagesThatShareForwardsAreWhatTheyAreAlone) {
  const std::vector<Request> requests = mixed_requests();
  for (const DiTConfig& config : {tiny_config(), odd_config()}) {
    const Checkpoint checkpoint = random_checkpoint(config);
    const Pipeline pipeline(checkpoint, GetParam(), {.threads = 2});
    for (const int threads : {1, 3}) {
      SamplingOptions options;
      options.threads = threads;
      Scheduler scheduler(pipeline.engine(), options);
      std::mt19937 draw(static_cast<unsigned>(threads));
      std::map<const Course*, size_t> number;
      std::vector<std::shared_ptr<Course>> courses;
      size_t finished = 0, images = 0;
      while (courses.size() < requests.size() || !scheduler.in_flight().empty()) {
        while (courses.size() < requests.size() && draw() % 2 == 0) {
          const Request& request = requests[courses.size()];
          courses.push_back(
              std::make_shared<Course>(request, pipeline.plan(request), Extras{.entries = true}));
          number[courses.back().get()] = courses.size() - 1;
          scheduler.add(courses.back(), 0, request.num_images);
          images += request.num_images;
        }
        if (scheduler.in_flight().empty()) continue;
        for (const Sample& sample : scheduler.step()) {
          const Request& request = requests[number.at(sample.course.get())];
          const GeneratedSample wanted = alone(pipeline, request).samples[static_cast<size_t>(sample.index)];
          SCOPED_TRACE(fmt::format("request {}, image {}", number.at(sample.course.get()), sample.index));
          EXPECT_TRUE(at::equal(sample.x, wanted.sample));
          EXPECT_EQ(sample.label, wanted.label);
          EXPECT_EQ(sample.work.required, wanted.work.required);
          EXPECT_EQ(sample.work.executed, wanted.work.executed);
          ++finished;
        }
      }
      EXPECT_EQ(finished, images);
    }
  }
}

TEST(Scheduler, FinishesInTheOrderOfAddition) {
  const Checkpoint checkpoint = random_checkpoint(tiny_config());
  const Pipeline pipeline(checkpoint, EngineKind::Cpu, {});
  Request request;
  request.num_steps = 2;
  request.num_images = 5;
  const auto course = std::make_shared<Course>(request, pipeline.plan(request));
  Scheduler scheduler(pipeline.engine(), {});
  scheduler.add(course, 3, 2);
  scheduler.add(course, 0, 2);
  EXPECT_TRUE(scheduler.step().empty());
  scheduler.add(course, 2, 1);
  std::vector<int> order;
  for (const Sample& sample : scheduler.step()) order.push_back(sample.index);
  EXPECT_EQ(order, (std::vector<int>{3, 4, 0, 1}));
  ASSERT_EQ(scheduler.in_flight().size(), 1u);
  EXPECT_EQ(scheduler.in_flight()[0].steps_done(), 1);
}

TEST(Pipeline, RunsAtTheSameTimeDoNotMeet) {
  for (const EngineKind kind : {EngineKind::Cpu, EngineKind::Reference}) {
    const Checkpoint checkpoint = random_checkpoint(tiny_config());
    const Pipeline pipeline(checkpoint, kind, {});
    const std::vector<Request> requests = mixed_requests();
    std::vector<Alone> wanted, got(requests.size());
    for (const Request& request : requests) wanted.push_back(alone(pipeline, request));
    const Pipeline fresh(checkpoint, kind, {});  // so that plans are made at the same time, too
    std::vector<std::thread> runs;
    for (size_t i = 0; i < requests.size(); ++i)
      runs.emplace_back([&, i] { got[i] = alone(fresh, requests[i]); });
    for (std::thread& run : runs) run.join();
    for (size_t i = 0; i < requests.size(); ++i) {
      ASSERT_EQ(got[i].samples.size(), wanted[i].samples.size());
      for (size_t k = 0; k < wanted[i].samples.size(); ++k)
        EXPECT_TRUE(at::equal(got[i].samples[k].sample, wanted[i].samples[k].sample)) << i << ", " << k;
    }
  }
}

TEST(Pipeline, PlansAreThoseOfMakeWidthPlanInAnyOrderAndAgain) {
  const Checkpoint checkpoint = random_checkpoint(tiny_config());
  const Pipeline pipeline(checkpoint, EngineKind::Cpu, {});
  for (const std::vector<double>& timesteps : {std::vector<double>{3, 500, 998}, {998, 3, 3, 41}, {500}}) {
    for (const Mode mode : {Mode::Dynamic, Mode::Static}) {
      const RunPlan got = pipeline.widths(timesteps, mode),
                    want = make_width_plan(checkpoint, timesteps, mode);
      ASSERT_EQ(got.steps.size(), want.steps.size());
      for (size_t s = 0; s < want.steps.size(); ++s) {
        EXPECT_EQ(got.steps[s].timestep, want.steps[s].timestep);
        EXPECT_TRUE(got.steps[s].same_work(want.steps[s]));
        EXPECT_EQ(got.steps[s].margin, want.steps[s].margin);
      }
    }
  }
  test::expect_error([&] { pipeline.widths(std::vector<double>{1000}, Mode::Dynamic); }, "timestep 1000");
}

// What belongs to the whole process is as it was, while a run goes on and afterwards.
TEST(Pipeline, LeavesTheProcessAsItWas) {
  const Checkpoint checkpoint = random_checkpoint(tiny_config());
  const c10::Allocator* allocator = c10::GetCPUAllocator();
  const int threads = at::get_num_threads();
  for (const EngineKind kind : {EngineKind::Cpu, EngineKind::Reference}) {
    GenerateOptions options;
    options.engine = kind;
    options.num_steps = 2;
    options.threads = 2;
    const auto look = [&] {
      EXPECT_EQ(c10::GetCPUAllocator(), allocator);
      EXPECT_EQ(at::get_num_threads(), threads);
      int elsewhere = 0;
      std::thread([&] { elsewhere = at::get_num_threads(); }).join();
      EXPECT_EQ(elsewhere, threads);
    };
    generate(
        checkpoint, options,
        {.on_sample = [&](GeneratedSample&&) { look(); }, .on_progress = [&](const Progress&) { look(); }});
    look();
  }
}

TEST(Scheduler, AnImageTakenUpHalfwayEndsAsIfItHadNeverStopped) {
  const Checkpoint checkpoint = random_checkpoint(tiny_config());
  const Pipeline pipeline(checkpoint, EngineKind::Cpu, {});
  Request request;
  request.num_images = 2;
  request.num_steps = 6;
  request.sampler = {SamplerKind::Dpm};
  const auto course = std::make_shared<Course>(request, pipeline.plan(request));
  Scheduler first(pipeline.engine(), {}), second(pipeline.engine(), {});
  first.add(course, 0, 2);
  for (int done = 0; done < 3; ++done) first.step();
  std::vector<Sample> halfway;
  for (const Sample& sample : first.in_flight()) {
    halfway.push_back(sample);
    halfway.back().x = sample.x.clone();
    halfway.back().x0 = sample.x0.clone();
  }
  second.resume(std::move(halfway));
  std::vector<Sample> wanted, got;
  for (int done = 3; done < 6; ++done) {
    wanted = first.step();
    got = second.step();
  }
  ASSERT_EQ(got.size(), 2u);
  for (size_t i = 0; i < 2; ++i) EXPECT_TRUE(at::equal(got[i].x, wanted[i].x));
}

}  // namespace
}  // namespace dydit
