// The pool runs every row once, on any number of threads, and survives a row that throws.
#include "dydit/base/row_pool.h"

#include <atomic>
#include <chrono>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

namespace dydit {
namespace {

class RowPoolOf : public testing::TestWithParam<int> {};

TEST_P(RowPoolOf, RunsEveryRowOnce) {
  RowPool pool(GetParam());
  for (int rows : {0, 1, 3, 7, 200}) {
    std::vector<std::atomic<int>> calls(rows);
    pool.run(rows, [&](int row) { ++calls[row]; });
    for (int row = 0; row < rows; ++row) EXPECT_EQ(calls[row], 1) << "row " << row << " of " << rows;
  }
}

TEST_P(RowPoolOf, RethrowsAndIsUsableAfterwards) {
  RowPool pool(GetParam());
  for (int round = 0; round < 20; ++round) {
    EXPECT_THROW(pool.run(9,
                          [](int row) {
                            if (row == 4) throw std::runtime_error("row 4");
                          }),
                 std::runtime_error);
    std::atomic<int> calls = 0;
    pool.run(9, [&](int) { ++calls; });
    EXPECT_EQ(calls, 9);
  }
}

INSTANTIATE_TEST_SUITE_P(Threads, RowPoolOf, testing::Values(1, 2, 3, 4));

TEST(RowPool, UsesAllItsThreads) {
  RowPool pool(3);
  std::atomic<int> inside = 0;
  // Each row waits for the other two: with fewer threads this would not end.
  pool.run(3, [&](int) {
    ++inside;
    while (inside < 3) std::this_thread::yield();
  });
  EXPECT_EQ(inside, 3);
}

TEST(RowPool, StartsNoRowAfterAnException) {
  RowPool pool(1);
  std::vector<int> started;
  const auto fail_at_two = [&](int row) {
    started.push_back(row);
    if (row == 2) throw std::runtime_error("row 2");
  };
  EXPECT_THROW(pool.run(100, fail_at_two), std::runtime_error);
  EXPECT_EQ(started, (std::vector<int>{0, 1, 2}));
}

TEST(RowPool, HasAtLeastOneThread) { EXPECT_EQ(RowPool(0).threads(), 1); }

TEST(RowPool, OperatorsInsideARowUseOneThread) {
  RowPool pool(2);
  std::atomic<int> most = 0;
  pool.run(8, [&](int) {
    if (at::get_num_threads() > most) most = at::get_num_threads();
  });
  EXPECT_EQ(most, 1);
}

int threads_of_a_new_thread() {
  int threads = 0;
  std::thread([&] { threads = at::get_num_threads(); }).join();
  return threads;
}

TEST(RowPool, ChangesTheThreadsOfNoOther) {
  const int before = at::get_num_threads();
  at::set_num_threads(3);  // as a program does
  {
    RowPool pool(2);
    pool.run(8, [&](int) { EXPECT_EQ(at::get_num_threads(), 1); });
    EXPECT_EQ(at::get_num_threads(), 3);
    EXPECT_EQ(threads_of_a_new_thread(), 3);
  }
  EXPECT_EQ(at::get_num_threads(), 3);
  EXPECT_EQ(threads_of_a_new_thread(), 3);
  at::set_num_threads(before);
}

TEST(RowPool, ParallelLoopsInsideARowUseOneThreadWhateverTheProgramSet) {
  const int before = at::get_num_threads();
  at::set_num_threads(3);
  RowPool pool(3);
  std::atomic<int> most = 0;
  pool.run(16, [&](int) {
    at::parallel_for(0, 2, 1, [](int64_t, int64_t) {});
    if (at::get_num_threads() > most) most = at::get_num_threads();
    std::this_thread::sleep_for(std::chrono::milliseconds(5));  // so that every thread gets a row
  });
  EXPECT_EQ(most, 1);
  at::set_num_threads(before);
}

extern "C" int MKL_Get_Max_Threads() __attribute__((weak));

TEST(RowPool, ChangesMklInNoOtherThread) {
  if (!MKL_Get_Max_Threads) GTEST_SKIP() << "this LibTorch has no MKL";
  const int before = at::get_num_threads();
  at::set_num_threads(3);
  RowPool pool(2);
  pool.run(8, [&](int) { EXPECT_EQ(MKL_Get_Max_Threads(), 1); });
  EXPECT_EQ(MKL_Get_Max_Threads(), 3);
  at::set_num_threads(before);
}

}  // namespace
}  // namespace dydit
