// The machine that runs CUDA kernels on the CPU: what it promises, and what it finds in kernels that are
// wrong.
#include "tests/support/cuda_on_cpu.h"

#include <array>
#include <bit>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "dydit/engine/cuda/attention.cuh"
#include "dydit/engine/cuda/device.h"
#include "tests/support/cuda_memory.h"

namespace dydit::cuda {
namespace {

constexpr FiberOrder kOrders[] = {FiberOrder::Ascending, FiberOrder::Descending, FiberOrder::Seeded};

// What a grid that is wrong is said to do.
template <typename Kernel>
std::string failure_of(const Kernel& kernel, int threads = 64) {
  try {
    run_grid({.threads = threads, .shared = 1024}, kernel);
  } catch (const std::logic_error& error) {
    return error.what();
  }
  return "";
}

// Each thread writes a word of shared memory and reads the one opposite.
template <bool kBarrier>
std::array<int, 64> exchanged(FiberOrder order) {
  std::array<int, 64> out{};
  set_fiber_order(order);
  run_grid({.threads = 64, .shared = 256}, [&] {
    auto* words = static_cast<int*>(shared_memory());
    words[thread_index()] = thread_index();
    if (kBarrier) sync_block();
    out[thread_index()] = words[63 - thread_index()];
  });
  set_fiber_order(FiberOrder::Ascending);
  return out;
}

TEST(CudaOnCpu, ABarrierOrdersTheThreadsOfABlock) {
  for (const FiberOrder order : kOrders) {
    const std::array<int, 64> got = exchanged<true>(order);
    for (int i = 0; i < 64; ++i) EXPECT_EQ(got[i], 63 - i);
  }
}

TEST(CudaOnCpu, AMissingBarrierShowsInTheOrders) {
  EXPECT_NE(exchanged<false>(FiberOrder::Ascending), exchanged<true>(FiberOrder::Ascending));
  EXPECT_NE(exchanged<false>(FiberOrder::Ascending), exchanged<false>(FiberOrder::Descending));
}

TEST(CudaOnCpu, EveryThreadOfEveryBlockRunsOnce) {
  std::vector<int> runs(2 * 3 * 4 * 96, 0);
  run_grid({.x = 2, .y = 3, .z = 4, .threads = 96},
           [&] { ++runs[((block_z() * 3 + block_y()) * 2 + block_x()) * 96 + thread_index()]; });
  EXPECT_EQ(runs, std::vector<int>(runs.size(), 1));
}

TEST(CudaOnCpu, SharedMemoryBeginsAsNaNInEveryBlock) {
  int numbers = 0;
  run_grid({.x = 2, .threads = 32, .shared = 512}, [&] {
    float& value = static_cast<float*>(shared_memory())[4 * thread_index()];
    numbers += value == value;
    value = 1;
  });
  EXPECT_EQ(numbers, 0);
}

TEST(CudaOnCpu, CopiesArriveWhenTheirGroupIsWaitedFor) {
  alignas(16) const std::array<uint32_t, 8> source = {1, 2, 3, 4, 5, 6, 7, 8};
  run_grid({.threads = 32, .shared = 1024}, [&] {
    auto* own = static_cast<uint32_t*>(shared_memory()) + 8 * thread_index();
    copy_async(own, source.data());
    close_copies();
    copy_async(own + 4, source.data() + 4);
    close_copies();
    EXPECT_EQ(own[0], 0xffffffffu);
    wait_for_copies<1>();
    EXPECT_EQ(own[3], 4u);
    EXPECT_EQ(own[4], 0xffffffffu);
    wait_for_copies<0>();
    EXPECT_EQ(own[7], 8u);
  });
}

TEST(CudaOnCpu, WhatNoKernelMayDoIsSaid) {
  EXPECT_NE(failure_of([] {
              if (thread_index() < 40) sync_block();
            }).find("wait for each other"),
            std::string::npos);
  EXPECT_NE(failure_of([] {
              if (thread_index() != 5) sync_warp();
            }).find("a lane of the warp has ended"),
            std::string::npos);
  EXPECT_NE(
      failure_of([] { thread_index() % 2 ? sync_warp() : void(ballot(true)); }).find("want different things"),
      std::string::npos);
  EXPECT_NE(failure_of([] {
              alignas(16) static const std::array<char, 32> source{};
              copy_async(static_cast<char*>(shared_memory()) + 4, source.data());
            }).find("not aligned"),
            std::string::npos);
  EXPECT_NE(failure_of([] {
              alignas(16) static const std::array<char, 32> source{};
              copy_async(shared_memory(), source.data());
            }).find("copies on their way"),
            std::string::npos);
  EXPECT_NE(failure_of([] {
              uint32_t out[4];
              load_matrices(out, static_cast<char*>(shared_memory()) + 1024 - 16 * (thread_index() % 32));
            }).find("not in shared memory"),
            std::string::npos);
  EXPECT_NE(failure_of([] {}, 48).find("no GPU takes"), std::string::npos);
}

TEST(CudaOnCpu, AfterAFailureTheNextGridRuns) {
  failure_of([] {
    if (thread_index() == 0) sync_block();
  });
  EXPECT_EQ(exchanged<true>(FiberOrder::Ascending)[0], 63);
}

// How many queries a block takes one after the other changes no bit; launches with several are too large for
// a test.
TEST(CudaOnCpu, RoundsOfAttentionChangeNoBit) {
  using Shape = AttentionShape<72>;
  std::mt19937 random(1);
  std::normal_distribution<float> draw;
  std::vector<Bf16> qkv(256 * 2 * 3 * 72);
  for (Bf16& value : qkv) value.bits = static_cast<uint16_t>(std::bit_cast<uint32_t>(draw(random)) >> 16);
  std::vector<uint16_t> first;
  for (const int rounds : {1, 2, 4}) {
    for (const FiberOrder order : kOrders) {
      set_fiber_order(order);
      Array<Bf16> in(qkv), out(256 * 2 * 72);
      launch(attention_kernel<72>,
             {.x = 4 / rounds, .y = 2, .threads = Shape::kThreads, .shared = Shape::kBytes}, nullptr,
             out.data(), static_cast<const Bf16*>(in.data()), .17f, 2, rounds);
      std::vector<uint16_t> bits;
      for (const Bf16 value : out.values()) bits.push_back(value.bits);
      if (first.empty()) first = bits;
      EXPECT_EQ(bits, first) << rounds << " rounds";
    }
  }
  set_fiber_order(FiberOrder::Ascending);
}

}  // namespace
}  // namespace dydit::cuda
