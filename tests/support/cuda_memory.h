// Arrays that kernels may read and write, on the machine that runs them: on the CPU (cuda_on_cpu_memory.cpp)
// or on a card (cuda_on_card.cu). On the CPU an array ends at a page that nobody may touch; on both the bytes
// around it must stay.
#pragma once

#include <cstddef>
#include <cstring>
#include <span>
#include <vector>

#include <gtest/gtest.h>

namespace dydit::cuda {

/// Whether kernels can run; and, before memory is looked at, wait until they have.
bool has_machine();
void finish_kernels();
/// Memory for kernels, 256-byte aligned but for its end; null where there is none.
struct Block {
  unsigned char* begin = nullptr;  // of `bytes` in all
  size_t bytes = 0;
  size_t offset = 0;  // where the array begins, 16-byte aligned
};
Block take_block(size_t array_bytes);
void give_block(const Block& block);

/// An array that begins as NaN (or -1), with what lies around it filled with a pattern.
template <typename T>
class Array {
 public:
  explicit Array(size_t size) : size_(size), block_(take_block(size * sizeof(T))) {
    std::memset(block_.begin, kAround, block_.bytes);
    std::memset(block_.begin + block_.offset, 0xff, size * sizeof(T));
  }
  explicit Array(const std::vector<T>& values) : Array(values.size()) {
    std::memcpy(block_.begin + block_.offset, values.data(), values.size() * sizeof(T));
  }
  ~Array() {
    finish_kernels();
    const size_t end = block_.offset + size_ * sizeof(T);
    bool intact = true;
    for (size_t i = 0; i < block_.bytes; ++i)
      if (i < block_.offset || i >= end) intact = intact && block_.begin[i] == kAround;
    EXPECT_TRUE(intact) << "a kernel wrote outside of its array";
    give_block(block_);
  }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;

  T* data() { return reinterpret_cast<T*>(block_.begin + block_.offset); }
  std::vector<T> values() {
    finish_kernels();
    return std::vector<T>(data(), data() + size_);
  }

 private:
  static constexpr unsigned char kAround = 0xa5;
  size_t size_;
  Block block_;
};

}  // namespace dydit::cuda
