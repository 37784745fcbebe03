// Clients take turns, an image at a time.
#include "dydit/serve/fair_queue.h"

#include <string>

#include <gtest/gtest.h>

namespace dydit {
namespace {

std::string turns(FairQueue& queue, int count = 100) {
  std::string text;
  for (int i = 0; i < count && queue.front(); ++i) {
    text += std::to_string(queue.front()->job) + ":" + std::to_string(queue.front()->image) + " ";
    queue.pop();
  }
  return text;
}

TEST(FairQueue, OneClientsJobsComeInOrder) {
  FairQueue queue;
  queue.add("a", 1, 2);
  queue.add("a", 2, 1);
  EXPECT_EQ(queue.jobs(), 2u);
  EXPECT_EQ(queue.images(), 3);
  EXPECT_EQ(turns(queue), "1:0 1:1 2:0 ");
  EXPECT_EQ(queue.jobs(), 0u);
}

TEST(FairQueue, ClientsTakeTurns) {
  FairQueue queue;
  queue.add("a", 1, 4);
  queue.add("b", 2, 1);
  queue.add("c", 3, 2);
  EXPECT_EQ(turns(queue), "1:0 2:0 3:0 1:1 3:1 1:2 1:3 ");
}

TEST(FairQueue, WhoComesLateIsNotKeptWaitingByManyImages) {
  FairQueue queue;
  queue.add("a", 1, 64);
  EXPECT_EQ(turns(queue, 3), "1:0 1:1 1:2 ");
  queue.add("b", 2, 1);
  EXPECT_EQ(turns(queue, 2), "1:3 2:0 ");
}

TEST(FairQueue, AJobThatIsRemovedLeavesTheOthers) {
  FairQueue queue;
  queue.add("a", 1, 4);
  queue.add("a", 2, 1);
  queue.add("b", 3, 2);
  queue.remove(1);
  queue.remove(9);  // was never there
  EXPECT_EQ(turns(queue), "2:0 3:0 3:1 ");
}

// What images_before says is what comes before.
TEST(FairQueue, PlacesAreThoseOfTheTurns) {
  for (const uint64_t asked : {1, 2, 3, 4, 5}) {
    FairQueue queue;
    queue.add("a", 1, 3);
    queue.add("b", 2, 2);
    queue.add("a", 3, 2);
    queue.add("c", 4, 5);
    queue.add("b", 5, 1);
    const auto said = queue.images_before(asked);
    ASSERT_TRUE(said);
    int before = 0;
    for (; queue.front()->job != asked; queue.pop()) ++before;
    EXPECT_EQ(*said, before) << asked;
    EXPECT_EQ(queue.images_before(9), std::nullopt);
  }
}

}  // namespace
}  // namespace dydit
