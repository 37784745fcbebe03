// A job's state as its clients see it.
#include "dydit/serve/job.h"

#include <chrono>
#include <thread>

#include <gtest/gtest.h>

namespace dydit {
namespace {

using namespace std::chrono_literals;

Order order_of(int images) {
  Order order;
  order.request.num_images = images;
  order.request.num_steps = 2;
  order.seconds = 60;
  return order;
}

TEST(Job, IsCompletedByItsLastImage) {
  Job job("id", 0, order_of(2), "c");
  EXPECT_EQ(job.status().state, JobState::Queued);
  job.begin();
  job.tell({.image = 1, .step = 1, .png = "preview"});
  job.tell({.image = 1, .png = "one"});
  EXPECT_EQ(job.status().state, JobState::Generating);
  EXPECT_EQ(job.status().finished, 1);
  job.tell({.image = 0, .png = "zero"});
  EXPECT_EQ(job.status().state, JobState::Completed);
  EXPECT_EQ(job.images()[0]->png, "zero");
  EXPECT_EQ(job.images()[1]->png, "one");
  EXPECT_EQ(job.event(0, Clock::now())->png, "preview");
  EXPECT_EQ(job.event(3, Clock::now() + 1h), nullptr);  // ended: nobody waits
  EXPECT_EQ(job.bytes(), 14u);
}

TEST(Job, WhatComesAfterItsEndIsDropped) {
  Job job("id", 0, order_of(1), "c");
  job.cancel();
  job.fail(Refusal(500, "late"));
  job.begin();
  job.tell({.image = 0, .png = "late"});
  EXPECT_EQ(job.status().state, JobState::Cancelled);
  EXPECT_EQ(job.failure()->status, 499);
  EXPECT_EQ(job.images()[0], nullptr);
}

TEST(Job, ExpiresAtItsDeadlineAndSaysWhatWasDone) {
  Job job("id", 0, order_of(2), "c");
  job.tell({.image = 0, .png = "zero"});
  job.expire(job.deadline - 1ms);
  EXPECT_FALSE(job.failure());
  job.expire(job.deadline);
  EXPECT_EQ(job.failure()->status, 504);
  EXPECT_STREQ(job.failure()->what(), "1 of 2 images were finished within 60 s");
}

TEST(Job, WakesWhoWaits) {
  Job job("id", 0, order_of(1), "c");
  EXPECT_FALSE(job.wait(Clock::now() + 1ms));
  std::thread other([&] {
    std::this_thread::sleep_for(20ms);
    job.tell({.image = 0, .png = "zero"});
  });
  EXPECT_EQ(job.event(0, Clock::now() + 1h)->png, "zero");
  EXPECT_TRUE(job.wait(Clock::now() + 1h));
  other.join();
}

}  // namespace
}  // namespace dydit
