#include "dydit/data/parallel.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace dydit {

void parallel_for(int64_t count, int threads, const std::function<void(int64_t)>& fn) {
  std::atomic<int64_t> next{0}, lowest{count};
  std::mutex mutex;
  std::exception_ptr error;
  const auto work = [&] {
    for (int64_t i = next++; i < lowest; i = next++) {  // all below the lowest failure are still done
      try {
        fn(i);
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (i < lowest) {
          lowest = i;
          error = std::current_exception();
        }
      }
    }
  };
  {
    std::vector<std::jthread> helpers;
    for (int t = 1; t < std::min<int64_t>(threads, count); ++t) helpers.emplace_back(work);
    work();
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace dydit
