#include "dydit/engine/cpu/memory.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

#include <sys/mman.h>

namespace dydit::cpu {
namespace {

constexpr size_t kLine = 64, kLargePage = size_t{2} << 20, kArenaBlock = 8 * kLargePage;

size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

}  // namespace

void AlignedFree::operator()(void* memory) const { std::free(memory); }

Memory allocate(size_t bytes) {
  const size_t unit = bytes >= kLargePage / 2 ? kLargePage : kLine,
               whole = round_up(std::max(bytes, kLine), unit);
  void* memory = std::aligned_alloc(unit, whole);
  if (memory == nullptr) throw std::bad_alloc();
  if (unit == kLargePage) madvise(memory, whole, MADV_HUGEPAGE);  // a wish: small pages do as well
  std::memset(memory, 0, whole);
  return Memory(memory);
}

void* Arena::take(size_t bytes) {
  bytes = round_up(bytes, kLine);
  if (bytes > left_) {
    left_ = round_up(std::max(bytes, kArenaBlock), kLargePage);
    blocks_.push_back(allocate(left_));
    next_ = static_cast<std::byte*>(blocks_.back().get());
  }
  void* piece = next_;
  next_ += bytes;
  left_ -= bytes;
  return piece;
}

}  // namespace dydit::cpu
