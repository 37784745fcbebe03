// Work split by rows: each row is computed wholly by one thread, with no threads inside the operators.
// A row's result then cannot depend on how many rows or threads there are, which LibTorch's own
// parallel operators do not promise (their kernels change with row and thread counts).
#pragma once

#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace dydit {

class RowPool {
 public:
  /// Throws Error when the system does not give so many threads.
  explicit RowPool(int threads);
  ~RowPool();
  RowPool(const RowPool&) = delete;
  RowPool& operator=(const RowPool&) = delete;

  /// Calls fn(row) for row = 0..rows-1 on the pool's threads and waits; rethrows the first exception.
  void run(int rows, const std::function<void(int row)>& fn);
  int threads() const { return static_cast<int>(workers_.size()); }

 private:
  void work();
  void stop();

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  const std::function<void(int)>* fn_ = nullptr;
  int rows_ = 0, next_ = 0, running_ = 0;
  bool stop_ = false;
  std::exception_ptr error_;
  std::vector<std::thread> workers_;
};

}  // namespace dydit
