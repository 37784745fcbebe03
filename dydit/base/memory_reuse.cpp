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

constexpr size_t kHeader = 64;  // the header holds the block's size and keeps it aligned

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
    const std::lock_guard lock(mutex_);
    if (scopes_++ == 0) {
      before_ = c10::GetCPUAllocator();
      c10::SetCPUAllocator(this);
    }
  }
  void leave() {
    const std::lock_guard lock(mutex_);
    if (--scopes_ > 0) return;
    c10::SetCPUAllocator(before_);
    for (auto& [bytes, blocks] : free_) {
      for (void* block : blocks) std::free(block);
    }
    free_.clear();
  }

 private:
  static size_t rounded(size_t bytes) { return (bytes + kHeader - 1) / kHeader * kHeader; }

  void* take(size_t bytes) {
    {
      const std::lock_guard lock(mutex_);
      const auto found = free_.find(rounded(bytes));
      if (found != free_.end() && !found->second.empty()) {
        void* block = found->second.back();
        found->second.pop_back();
        return static_cast<char*>(block) + kHeader;
      }
    }
    void* block = std::aligned_alloc(kHeader, rounded(bytes) + kHeader);
    if (block == nullptr) throw std::bad_alloc();
    *static_cast<size_t*>(block) = rounded(bytes);
    return static_cast<char*>(block) + kHeader;
  }

  static void give_back(void* data) {
    if (data == nullptr) return;
    ReusingAllocator& self = instance();
    void* block = static_cast<char*>(data) - kHeader;
    const std::lock_guard lock(self.mutex_);
    if (self.scopes_ > 0) {
      self.free_[*static_cast<size_t*>(block)].push_back(block);
    } else {
      std::free(block);
    }
  }

  std::mutex mutex_;
  int scopes_ = 0;
  c10::Allocator* before_ = nullptr;
  std::map<size_t, std::vector<void*>> free_;  // by size
};

}  // namespace

MemoryReuse::MemoryReuse() { ReusingAllocator::instance().enter(); }
MemoryReuse::~MemoryReuse() { ReusingAllocator::instance().leave(); }

}  // namespace dydit
