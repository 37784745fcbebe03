// A plain pool: one mutex, one job at a time, rows handed out in order.
#include "dydit/base/row_pool.h"

#include <algorithm>

#include <ATen/Parallel.h>

namespace dydit {

RowPool::RowPool(int threads) {
  for (int i = 0; i < std::max(1, threads); ++i) workers_.emplace_back([this] { work(); });
}

RowPool::~RowPool() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void RowPool::run(int rows, const std::function<void(int)>& fn) {
  std::unique_lock lock(mutex_);
  fn_ = &fn;
  rows_ = rows;
  next_ = 0;
  error_ = nullptr;
  wake_.notify_all();
  done_.wait(lock, [this] { return next_ >= rows_ && running_ == 0; });
  fn_ = nullptr;
  if (error_) std::rethrow_exception(error_);
}

void RowPool::work() {
  std::unique_lock lock(mutex_);
  at::set_num_threads(1);  // of this thread; under the mutex, since it also sets process-wide defaults
  while (true) {
    wake_.wait(lock, [this] { return stop_ || (fn_ != nullptr && next_ < rows_); });
    if (stop_) return;
    const int row = next_++;
    const auto* fn = fn_;
    ++running_;
    lock.unlock();
    std::exception_ptr error;
    try {
      (*fn)(row);
    } catch (...) {
      error = std::current_exception();
    }
    lock.lock();
    --running_;
    if (error) {
      if (!error_) error_ = error;
      next_ = rows_;  // the rest is not started
    }
    if (next_ >= rows_ && running_ == 0) done_.notify_all();
  }
}

}  // namespace dydit
