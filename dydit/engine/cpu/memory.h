// Memory of the CPU engine: on 64-byte boundaries and, where it is large, in 2 MiB pages. With pages of 4 KiB
// the second-level cache would hold whatever their places in memory leave room for, another amount in every
// run.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

namespace dydit::cpu {

struct AlignedFree {
  void operator()(void* memory) const;
};
using Memory = std::unique_ptr<void, AlignedFree>;

/// `bytes` of zeros; rounded up to whole large pages from half a page on.
Memory allocate(size_t bytes);

/// Hands out pieces of large blocks that live as long as the arena. What no piece has touched takes no
/// memory.
class Arena {
 public:
  /// `bytes` of zeros on a 64-byte boundary.
  void* take(size_t bytes);

 private:
  struct Unmap {
    size_t bytes;
    void operator()(void* memory) const;
  };
  std::vector<std::unique_ptr<void, Unmap>> blocks_;
  std::byte* next_ = nullptr;
  size_t left_ = 0;
};

// Grow-only memory: nothing is allocated once the largest batch has passed. What it held is lost when it
// grows.
class Buffer {
 public:
  void reserve(size_t bytes) {
    if (bytes <= bytes_) return;
    bytes_ = 0;  // until there is memory: allocate may throw
    memory_.reset();
    memory_ = allocate(bytes + 64);  // rows of an odd size are read one element beyond the last
    bytes_ = bytes;
  }
  float* floats(size_t count) {
    if (count > 0) reserve(count * sizeof(float));
    return as<float>();
  }
  template <typename T>
  T* as() const {
    return static_cast<T*>(memory_.get());
  }

 private:
  size_t bytes_ = 0;
  Memory memory_;
};

}  // namespace dydit::cpu
