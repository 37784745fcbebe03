// Orders from many threads at once: images are what they are alone, and who leaves, fails or is late does so
// alone.
#include "dydit/serve/service.h"

#include <atomic>
#include <chrono>
#include <limits>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "tests/support/random_model.h"

namespace dydit {
namespace {

using namespace std::chrono_literals;

DiTConfig pixel_config() {
  DiTConfig config = test::tiny_config();
  config.in_channels = 3;
  return config;
}

std::unique_ptr<const ServedModel> model_of(const std::string& name, const DiTConfig& config,
                                            float scale = 1) {
  Checkpoint checkpoint = test::random_checkpoint(config);
  checkpoint.sha256 = std::string(64, '0');
  if (scale != 1)
    checkpoint.weights["final_layer.linear.bias"] =
        at::full({config.patch_size * config.patch_size * config.out_channels()}, scale);
  return std::make_unique<ServedModel>(name, std::move(checkpoint), EngineKind::Cpu,
                                       EngineOptions{.threads = 2});
}

std::unique_ptr<Service> service_of(ServiceOptions options = {}) {
  std::vector<std::unique_ptr<const ServedModel>> models;
  models.push_back(model_of("one", pixel_config()));
  DiTConfig other = test::odd_config();
  models.push_back(model_of("two", other));
  options.threads = 2;
  if (options.max_rows == 0) options.max_rows = 6;
  return std::make_unique<Service>(std::move(models), options);
}

Order order_of(int images = 1, int steps = 3, uint64_t seed = 1) {
  Order order;
  order.request.classes = {2};
  order.request.num_images = images;
  order.request.num_steps = steps;
  order.request.sampler.kind = SamplerKind::Ddim;
  order.request.cfg_scale = 1.5f;
  order.request.seed = seed;
  order.seconds = 600;
  return order;
}

std::vector<std::string> hashes(const Job& job) {
  std::vector<std::string> all;
  for (const auto& image : job.images())
    all.push_back(image ? image->record["sha256"].get<std::string>() : "none");
  return all;
}

// What generate makes of it.
std::vector<std::string> alone(const ServedModel& model, const Order& order) {
  std::vector<std::string> all;
  SamplingOptions options;
  options.threads = 2;
  model.pipeline.generate(
      order.request, options, {.on_sample = [&](GeneratedSample&& sample) {
        all.push_back(model
                          .finished(order,
                                    {{"model", {{"file", "x"}, {"sha256", model.checkpoint.sha256}}},
                                     {"steps", 1},
                                     {"sampler", "ddim"},
                                     {"cfg_scale", 1.5},
                                     {"seed", 1},
                                     {"size", 8}},
                                    std::move(sample))
                          .record["sha256"]);
      }});
  return all;
}

TEST(Service, MixedOrdersFromManyThreadsAreEachWhatTheyAreAlone) {
  const auto service = service_of();
  std::mt19937 draw(3);
  std::vector<Order> orders;
  for (int i = 0; i < 60; ++i) {
    Order order = order_of(1 + static_cast<int>(draw() % 3), 2 + static_cast<int>(draw() % 12), draw());
    order.model = draw() % 2;
    order.request.sampler.kind = static_cast<SamplerKind>(draw() % 3);
    order.request.cfg_scale = draw() % 3 == 0 ? 1.0f : 1.5f;
    order.request.mode = draw() % 3 == 0 ? Mode::Static : Mode::Dynamic;
    order.partial_images = static_cast<int>(draw() % 2);
    if (draw() % 4 == 0)
      plan_by_policy({.cache = "fora:2"}, service->terms()[order.model].config, order.request);
    orders.push_back(order);
  }
  std::vector<std::shared_ptr<Job>> jobs(orders.size());
  std::vector<std::thread> clients;
  for (size_t c = 0; c < 6; ++c) {
    clients.emplace_back([&, c] {
      for (size_t i = c; i < orders.size(); i += 6) {
        jobs[i] = service->submit(orders[i], "client " + std::to_string(c), false);
        if (i % 3 == 0) jobs[i]->wait(Clock::now() + 60s);
      }
    });
  }
  for (std::thread& client : clients) client.join();
  for (size_t i = 0; i < orders.size(); ++i) {
    ASSERT_TRUE(jobs[i]->wait(Clock::now() + 60s));
    EXPECT_EQ(hashes(*jobs[i]), alone(*service->models()[orders[i].model], orders[i])) << i;
  }
  EXPECT_TRUE(service->idle() || (std::this_thread::sleep_for(200ms), service->idle()));
}

TEST(Service, WhoIsCancelledLeavesAndTheOthersGoOn) {
  const auto service = service_of();
  const Order stays = order_of(2, 40, 5);
  std::vector<std::shared_ptr<Job>> leaving;
  for (int i = 0; i < 8; ++i) leaving.push_back(service->submit(order_of(3, 1000), "a", false));
  const auto job = service->submit(stays, "b", false);
  for (auto& left : leaving) {
    std::this_thread::sleep_for(1ms);
    service->cancel(*left);
  }
  ASSERT_TRUE(job->wait(Clock::now() + 60s));
  EXPECT_EQ(hashes(*job), alone(*service->models()[0], stays));
  for (int i = 0; i < 100 && !service->idle(); ++i) std::this_thread::sleep_for(10ms);
  EXPECT_TRUE(service->idle());
  EXPECT_EQ(service->numbers().cancelled, 8u);
}

TEST(Service, AnImageThatBecomesNaNFailsItsJobAlone) {
  std::vector<std::unique_ptr<const ServedModel>> models;
  models.push_back(model_of("good", pixel_config()));
  models.push_back(model_of("bad", pixel_config(), std::numeric_limits<float>::infinity()));
  Service service(std::move(models), {.threads = 1, .max_rows = 4});
  Order bad = order_of();
  bad.model = 1;
  const auto fails = service.submit(bad, "a", false), good = service.submit(order_of(), "b", false);
  ASSERT_TRUE(fails->wait(Clock::now() + 60s) && good->wait(Clock::now() + 60s));
  EXPECT_EQ(fails->failure()->status, 500);
  EXPECT_NE(std::string(fails->failure()->what()).find("NaN"), std::string::npos);
  EXPECT_EQ(good->status().state, JobState::Completed);
}

TEST(Service, AQueueThatIsFullRefuses) {
  const auto service = service_of({.max_rows = 2, .queue_requests = 3, .queue_images = 8});
  std::vector<std::shared_ptr<Job>> jobs;
  const auto refused = [&](int images) -> std::optional<Refusal> {
    try {
      jobs.push_back(service->submit(order_of(images, 1000), "a", false));
    } catch (const Refusal& refusal) {
      return refusal;
    }
    return {};
  };
  EXPECT_FALSE(refused(2));
  const auto many = refused(9);
  ASSERT_TRUE(many);
  EXPECT_EQ(many->status, 429);
  EXPECT_GE(many->retry_after.value_or(0), 1);
  EXPECT_FALSE(refused(2));
  EXPECT_FALSE(refused(1));
  EXPECT_TRUE(refused(1));  // three wait
  EXPECT_EQ(service->numbers().refused, 2u);
  EXPECT_GT(service->seconds_left(*jobs[2]), service->seconds_left(*jobs[0]));
  EXPECT_GE(service->queue_position(*jobs[2]), 1);
}

TEST(Service, DrainsWithoutLosingWhatItAccepted) {
  const auto service = service_of();
  std::vector<std::shared_ptr<Job>> jobs;
  for (int i = 0; i < 5; ++i) jobs.push_back(service->submit(order_of(2, 20), "a", false));
  service->drain();
  EXPECT_THROW(service->submit(order_of(), "a", false), Refusal);
  for (const auto& job : jobs) {
    ASSERT_TRUE(job->wait(Clock::now() + 60s));
    EXPECT_EQ(job->status().state, JobState::Completed);
  }
}

TEST(Service, EndsInTheMiddleOfItsWork) {
  std::shared_ptr<Job> job;
  {
    const auto service = service_of();
    job = service->submit(order_of(4, 1000), "a", true);
    std::this_thread::sleep_for(10ms);
  }
  EXPECT_EQ(job->status().state, JobState::Cancelled);
}

TEST(Service, ForgetsWhatNobodyFetched) {
  const auto service = service_of({.keep_seconds = 0.05});
  const auto kept = service->submit(order_of(), "a", true),
             answered = service->submit(order_of(), "a", false);
  ASSERT_TRUE(kept->wait(Clock::now() + 60s) && answered->wait(Clock::now() + 60s));
  EXPECT_EQ(service->find(kept->id), kept);
  const auto status = [&](const std::string& id) {
    try {
      service->find(id);
    } catch (const Refusal& refusal) {
      return refusal.status;
    }
    return 200;
  };
  EXPECT_EQ(status(answered->id), 404);
  std::this_thread::sleep_for(60ms);
  EXPECT_EQ(status(kept->id), 410);
  EXPECT_EQ(status("nothing"), 404);
}

TEST(Service, PreviewsAreAtEvenDistances) {
  const auto service = service_of();
  Order order = order_of(1, 10);
  order.partial_images = 3;
  const auto job = service->submit(order, "a", false);
  std::vector<int> steps;
  for (size_t i = 0; const auto event = job->event(i, Clock::now() + 60s); ++i) steps.push_back(event->step);
  EXPECT_EQ(steps, (std::vector{3, 5, 8, 0}));
}

TEST(Service, AJobThatIsLateEndsAtItsDeadline) {
  const auto service = service_of();
  Order order = order_of(2, 1000);
  order.seconds = 0.05;
  const auto job = service->submit(order, "a", false);
  ASSERT_TRUE(job->wait(Clock::now() + 10s));
  EXPECT_EQ(job->failure()->status, 504);
  EXPECT_LT(job->seconds(), 5);
}

}  // namespace
}  // namespace dydit
