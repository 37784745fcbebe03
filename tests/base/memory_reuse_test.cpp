// Whose memory is kept, and for how long; how much: tests/pipeline/heap_test.cpp.
#include "dydit/base/memory_reuse.h"

#include <optional>
#include <thread>

#include <ATen/ops/empty.h>
#include <c10/core/CPUAllocator.h>
#include <gtest/gtest.h>

namespace dydit {
namespace {

// Of a size that nothing else here asks for. The memory that was freed last comes first.
void* data_of_a_tensor() { return at::empty({98765}, at::kFloat).data_ptr(); }

TEST(MemoryReuse, EndsWithTheOutermostOfNestedScopes) {
  const c10::Allocator* before = c10::GetCPUAllocator();
  {
    const MemoryReuse outer;
    const c10::Allocator* during = c10::GetCPUAllocator();
    EXPECT_NE(during, before);
    for (int i = 0; i < 3; ++i) {
      const MemoryReuse inner;
      EXPECT_EQ(c10::GetCPUAllocator(), during);
    }
    EXPECT_EQ(c10::GetCPUAllocator(), during);  // still kept
    void* first = data_of_a_tensor();
    { const MemoryReuse inner; }
    EXPECT_EQ(data_of_a_tensor(), first);
  }
  EXPECT_EQ(c10::GetCPUAllocator(), before);
}

TEST(MemoryReuse, EndsWithTheLastOfOverlappingScopes) {
  const c10::Allocator* before = c10::GetCPUAllocator();
  std::optional<MemoryReuse> one, other;
  one.emplace();
  const c10::Allocator* during = c10::GetCPUAllocator();
  other.emplace();
  one.reset();
  EXPECT_EQ(c10::GetCPUAllocator(), during);
  other.reset();
  EXPECT_EQ(c10::GetCPUAllocator(), before);
}

TEST(MemoryReuse, OfTwoThreadsEndsWithTheLast) {
  const c10::Allocator* before = c10::GetCPUAllocator();
  std::optional<MemoryReuse> here(std::in_place);
  const c10::Allocator* during = c10::GetCPUAllocator();
  std::thread([] { const MemoryReuse there; }).join();
  EXPECT_EQ(c10::GetCPUAllocator(), during);
  here.reset();
  EXPECT_EQ(c10::GetCPUAllocator(), before);
}

TEST(MemoryReuse, LetsTensorsOutliveItOnAnyThread) {
  at::Tensor kept;
  {
    const MemoryReuse scope;
    kept = at::empty({1000}, at::kFloat).fill_(7);
  }
  EXPECT_EQ(kept[999].item<float>(), 7);
  std::thread([tensor = std::move(kept)]() mutable { tensor.reset(); }).join();
}

}  // namespace
}  // namespace dydit
