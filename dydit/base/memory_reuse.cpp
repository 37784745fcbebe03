#include "dydit/base/memory_reuse.h"

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <new>
#include <vector>

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

namespace dydit {
namespace {

// The header holds the block's size, 0 where the block is not to be kept, and keeps it aligned.
constexpr size_t kHeader = 64;

thread_local int scopes_here = 0;  // of this thread

class ReusingAllocator final : public c10::Allocator {
 public:
  static ReusingAllocator& instance() {
    static auto* allocator = new ReusingAllocator;  // tensors may be freed while the program ends
    return *allocator;
  }

  c10::DataPtr allocate(size_t bytes) override {
    void* data = take(bytes);
    return {data, data, &give_back, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &give_back; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }

  void enter() {
    ++scopes_here;
    const std::lock_guard lock(mutex_);
    if (scopes_++ == 0) {
      before_ = c10::GetCPUAllocator();
      c10::SetCPUAllocator(this);
    }
  }
  void leave() {
    --scopes_here;
    const std::lock_guard lock(mutex_);
    if (--scopes_ > 0) return;
    c10::SetCPUAllocator(before_);
    for (auto& [bytes, blocks] : free_) {
      for (void* block : blocks) std::free(block);
    }
    free_.clear();
    kept_ = 0;
  }

 private:
  static size_t rounded(size_t bytes) { return (bytes + kHeader - 1) / kHeader * kHeader; }

  void* take(size_t bytes) {
    if (scopes_here > 0) {
      const std::lock_guard lock(mutex_);
      const auto found = free_.find(rounded(bytes));
      if (found != free_.end() && !found->second.empty()) {
        void* block = found->second.back();
        found->second.pop_back();
        kept_ -= rounded(bytes);
        return static_cast<char*>(block) + kHeader;
      }
    }
    void* block = std::aligned_alloc(kHeader, rounded(bytes) + kHeader);
    if (block == nullptr) throw std::bad_alloc();
    *static_cast<size_t*>(block) = scopes_here > 0 ? rounded(bytes) : 0;
    return static_cast<char*>(block) + kHeader;
  }

  static void give_back(void* data) {
    if (data == nullptr) return;
    ReusingAllocator& self = instance();
    void* block = static_cast<char*>(data) - kHeader;
    const size_t bytes = *static_cast<size_t*>(block);
    {
      const std::lock_guard lock(self.mutex_);
      if (bytes > 0 && self.scopes_ > 0 && self.kept_ + bytes <= kMostKept) {
        self.free_[bytes].push_back(block);
        self.kept_ += bytes;
        return;
      }
    }
    std::free(block);
  }

  std::mutex mutex_;
  int scopes_ = 0;
  c10::Allocator* before_ = nullptr;
  std::map<size_t, std::vector<void*>> free_;  // by size
  size_t kept_ = 0;                            // bytes of all of them
};

}  // namespace

MemoryReuse::MemoryReuse() { ReusingAllocator::instance().enter(); }
MemoryReuse::~MemoryReuse() { ReusingAllocator::instance().leave(); }

}  // namespace dydit
