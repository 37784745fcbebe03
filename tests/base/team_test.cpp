// The team does every task of every section once, and its sections do not overlap.
#include "dydit/base/team.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <barrier>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <thread>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include "dydit/base/error.h"
#include "tests/support/files.h"

namespace dydit {
namespace {

// A barrier in the first tasks of a section: a team with fewer threads would not come back.
class TeamOf : public testing::TestWithParam<int> {};

TEST_P(TeamOf, DoesEveryTaskOnceInManySectionsInARow) {
  Team team(GetParam());
  for (int section = 0; section < 3000; ++section) {
    const int tasks = section * 7 % 40;
    std::array<std::atomic<int>, 40> calls{};
    team.run(tasks, [&](int task, int) { ++calls[task]; });
    for (int task = 0; task < 40; ++task) {
      ASSERT_EQ(calls[task], task < tasks ? 1 : 0) << "task " << task << " of section " << section;
    }
  }
}

// All threads meet every now and then, and then take tasks at the same time.
TEST_P(TeamOf, DoesEveryTaskOnceWhenAllThreadsTakeAtOnce) {
  constexpr int kTasks = 60000;
  Team team(GetParam());
  for (int section = 0; section < 5; ++section) {
    std::vector<std::atomic<int>> calls(kTasks);
    std::barrier meeting(GetParam());
    team.run(kTasks, [&](int task, int) {
      ++calls[task];
      if (task % 1000 < GetParam()) meeting.arrive_and_wait();
    });
    for (int task = 0; task < kTasks; ++task) ASSERT_EQ(calls[task], 1) << "task " << task;
  }
}

// Plain memory: what a section wrote, the caller and then other threads of the next section must see.
TEST_P(TeamOf, ASectionSeesWhatTheOneBeforeWrote) {
  constexpr int kTasks = 37, kSections = 2000;
  Team team(GetParam());
  std::vector<int> now(kTasks), before(kTasks);
  for (int section = 0; section < kSections; ++section) {
    team.run(kTasks, [&](int task, int) { now[task] = before[(task + 11) % kTasks] + 1; });
    for (int task = 0; task < kTasks; ++task) ASSERT_EQ(now[task], section + 1) << "task " << task;
    std::swap(now, before);
  }
}

TEST_P(TeamOf, ReturnsWhenTheSlowestTaskIsDone) {
  Team team(GetParam());
  for (int section = 0; section < 5; ++section) {
    std::barrier meeting(GetParam());
    std::vector<int> done(GetParam());
    team.run(GetParam(), [&](int task, int thread) {
      meeting.arrive_and_wait();
      if (thread != 0) std::this_thread::sleep_for(std::chrono::milliseconds(10));  // the caller is done
      done[task] = 1;
    });
    EXPECT_EQ(done, std::vector<int>(GetParam(), 1));
  }
}

TEST_P(TeamOf, GivesThreadsThatAreInsideTogetherDifferentNumbers) {
  Team team(GetParam());
  EXPECT_EQ(team.threads(), GetParam());
  for (int section = 0; section < 20; ++section) {
    std::barrier meeting(GetParam());
    std::vector<int> numbers(GetParam());
    team.run(GetParam(), [&](int task, int thread) {
      meeting.arrive_and_wait();
      numbers[task] = thread;
    });
    std::sort(numbers.begin(), numbers.end());
    for (int i = 0; i < GetParam(); ++i) ASSERT_EQ(numbers[i], i);
  }
}

TEST_P(TeamOf, WakesUpAfterARest) {
  Team team(GetParam());
  for (int round = 0; round < 3; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));  // long enough for the threads to fall asleep
    std::barrier meeting(GetParam());
    std::atomic<int> calls = 0;
    team.run(GetParam(), [&](int, int) {
      meeting.arrive_and_wait();
      ++calls;
    });
    EXPECT_EQ(calls, GetParam());
  }
}

TEST_P(TeamOf, WithNoTasksCallsNothing) {
  Team team(GetParam());
  std::atomic<int> calls = 0;
  team.run(0, [&](int, int) { ++calls; });
  EXPECT_EQ(calls, 0);
}

TEST_P(TeamOf, DoesMoreTasksThanASectionHolds) {
  Team team(GetParam());
  for (const int tasks : {65535, 65536, 140000}) {
    std::vector<std::atomic<uint8_t>> calls(tasks);
    team.run(tasks, [&](int task, int) { ++calls[task]; });
    for (int task = 0; task < tasks; ++task) ASSERT_EQ(calls[task], 1) << "task " << task;
  }
}

TEST_P(TeamOf, ThrowsWhatATaskThrowsOnceNoTaskRunsAndIsUsableAfterwards) {
  Team team(GetParam());
  for (int section = 0; section < 50; ++section) {
    std::atomic<int> inside = 0;
    test::expect_error(
        [&] {
          team.run(40, [&](int task, int) {
            ++inside;
            std::this_thread::yield();
            --inside;
            if (task % 13 == 7) throw Error(fmt::format("task {}", task));
          });
        },
        "task ");
    ASSERT_EQ(inside, 0);
    std::array<std::atomic<int>, 40> calls{};
    team.run(40, [&](int task, int) { ++calls[task]; });
    for (int task = 0; task < 40; ++task) ASSERT_EQ(calls[task], 1) << "task " << task;
  }
}

INSTANTIATE_TEST_SUITE_P(Threads, TeamOf, testing::Values(1, 2, 3, 4));

TEST(Team, CanComeAndGoWithoutWork) {
  for (int i = 0; i < 50; ++i) Team team(4);
}

// Helps a team from a thread of its own.
class Guest {
 public:
  Guest(Team& team, int number)
      : thread_([this, &team, number] {
          while (!stop_) {
            if (!team.help(number)) std::this_thread::yield();
          }
        }) {}
  ~Guest() {
    stop_ = true;
    thread_.join();
  }

 private:
  std::atomic<bool> stop_ = false;
  std::thread thread_;  // starts last
};

TEST(TeamOfOne, GetsATaskDoneByAGuestUnderTheGuestsNumber) {
  Team team(Team::Alone{3});
  Guest guest(team, 5);
  for (int section = 0; section < 20; ++section) {
    std::barrier meeting(2);  // alone the team would not come back
    std::array<int, 2> numbers{};
    team.run(2, [&](int task, int thread) {
      meeting.arrive_and_wait();
      numbers[task] = thread;
    });
    std::sort(numbers.begin(), numbers.end());
    ASSERT_EQ(numbers, (std::array<int, 2>{3, 5}));
  }
}

TEST(TeamOfOne, DoesEveryTaskOnceWithGuestsAndSeesWhatTheyWrote) {
  constexpr int kTasks = 37;
  Team team(Team::Alone{0});
  Guest one(team, 1), other(team, 2);
  std::vector<int> now(kTasks), before(kTasks);
  for (int section = 0; section < 2000; ++section) {
    team.run(kTasks, [&](int task, int) { now[task] = before[(task + 11) % kTasks] + 1; });
    for (int task = 0; task < kTasks; ++task) ASSERT_EQ(now[task], section + 1) << "task " << task;
    std::swap(now, before);
  }
}

TEST(TeamOfOne, HasNothingForAGuestBetweenItsSections) {
  Team team(Team::Alone{0});
  EXPECT_FALSE(team.help(1));
  int calls = 0;
  team.run(3, [&](int, int thread) {
    EXPECT_EQ(thread, 0);
    ++calls;
  });
  EXPECT_EQ(calls, 3);
  EXPECT_FALSE(team.help(1));
}

TEST(TeamOfOne, ThrowsWhatAGuestsTaskThrows) {
  Team team(Team::Alone{0});
  Guest guest(team, 1);
  for (int section = 0; section < 20; ++section) {
    std::barrier meeting(2);
    const auto guest_throws = [&](int, int thread) {
      meeting.arrive_and_wait();
      if (thread == 1) throw Error("of the guest");
    };
    test::expect_error([&] { team.run(2, guest_throws); }, "of the guest");
  }
  EXPECT_FALSE(team.help(1));
}

class CrewOf : public testing::TestWithParam<int> {};

TEST_P(CrewOf, DoesEveryTaskOnceEachOnOneThread) {
  Crew crew(GetParam());
  for (int tasks = 0; tasks < 30; ++tasks) {
    std::vector<std::atomic<int>> calls(tasks), parts(tasks);
    crew.run_apart(tasks, [&](int task, int thread) {
      ++calls[task];
      crew.own(thread).run(5, [&](int, int) { ++parts[task]; });
    });
    for (int task = 0; task < tasks; ++task) {
      ASSERT_EQ(calls[task], 1) << task << " of " << tasks;
      ASSERT_EQ(parts[task], 5) << task << " of " << tasks;
    }
  }
}

TEST_P(CrewOf, ThrowsWhatATaskThrowsAndIsUsableAfterwards) {
  Crew crew(GetParam());
  for (int round = 0; round < 50; ++round) {
    // In the task itself, and in a section of it, where a helper may meet it.
    test::expect_error(
        [&] {
          crew.run_apart(7, [&](int task, int) {
            if (task == 3) throw Error("task 3");
          });
        },
        "task 3");
    test::expect_error(
        [&] {
          crew.run_apart(7, [&](int task, int thread) {
            crew.own(thread).run(9, [&](int part, int) {
              if (task == 5 && part == 8) throw Error("part 8 of task 5");
            });
          });
        },
        "part 8 of task 5");
    std::atomic<int> calls = 0;
    crew.run_apart(7, [&](int, int) { ++calls; });
    ASSERT_EQ(calls, 7);
  }
}

INSTANTIATE_TEST_SUITE_P(Threads, CrewOf, testing::Values(1, 2, 3));

// The last task has a section of two parts that wait for each other: only a thread that has no task left can
// bring the second.
TEST(Crew, HelpsTheThreadThatIsLate) {
  Crew crew(2);
  for (int round = 0; round < 20; ++round) {
    std::atomic<int> inside = 0;
    std::array<int, 2> threads = {-1, -1};
    crew.run_apart(2, [&](int task, int thread) {
      if (task == 0) return;
      crew.own(thread).run(2, [&](int part, int of) {
        threads[part] = of;
        ++inside;
        const auto patience = std::chrono::steady_clock::now() + std::chrono::seconds(20);
        while (inside < 2 && std::chrono::steady_clock::now() < patience) std::this_thread::yield();
      });
    });
    ASSERT_NE(threads[0], threads[1]) << "nobody helped";
  }
}

TEST(Crew, NumbersItsThreads) {
  Crew crew(3);
  EXPECT_EQ(crew.threads(), 3);
  for (int thread = 0; thread < 3; ++thread) {
    EXPECT_EQ(crew.own(thread).threads(), 1);
    crew.own(thread).run(1, [&](int, int number) { EXPECT_EQ(number, thread); });
  }
}

// In a process of its own, since the limit is the process's.
void start_more_threads_than_fit(const std::function<void()>& start) {
  const rlimit limit = {uint64_t{6} << 30, RLIM_INFINITY};  // of addresses; a thread's stack takes 8 MiB
  if (setrlimit(RLIMIT_AS, &limit) != 0) std::_Exit(3);
  try {
    start();
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    std::_Exit(7);
  }
  std::_Exit(0);
}

TEST(ThreadsThatDoNotStart, AreOneError) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer takes terabytes of addresses";
#endif
  testing::GTEST_FLAG(death_test_style) = "threadsafe";
  const char* message = "the system gives [0-9]+ of [0-9]+ threads \\(.*\\); take fewer --threads";
  EXPECT_EXIT(start_more_threads_than_fit([] { const Team team(5000); }), testing::ExitedWithCode(7),
              message);
  EXPECT_EXIT(start_more_threads_than_fit([] { const Crew crew(5000); }), testing::ExitedWithCode(7),
              message);
}

}  // namespace
}  // namespace dydit
