#include "dydit/engine/cpu/memory.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#include <sys/mman.h>

namespace dydit::cpu {
namespace {

constexpr size_t kLine = 64, kLargePage = size_t{2} << 20, kArenaBlock = 128 * kLargePage;

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

void Arena::Unmap::operator()(void* memory) const { ::munmap(memory, bytes); }

void* Arena::take(size_t bytes) {
  bytes = round_up(bytes, kLine);
  if (bytes > left_) {
    const size_t size = round_up(std::max(bytes, kArenaBlock), kLargePage),
                 whole = size + kLargePage;  // so that it can begin at a large page
    void* block =
        ::mmap(nullptr, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (block == MAP_FAILED) throw std::bad_alloc();
    blocks_.emplace_back(block, Unmap{whole});
    next_ = reinterpret_cast<std::byte*>(round_up(reinterpret_cast<uintptr_t>(block), kLargePage));
    left_ = size;
    madvise(next_, left_, MADV_HUGEPAGE);  // a wish, as above
  }
  void* piece = next_;
  next_ += bytes;
  left_ -= bytes;
  return piece;
}

}  // namespace dydit::cpu
