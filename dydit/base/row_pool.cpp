// A plain pool: one mutex, one job at a time, rows handed out in order.
#include "dydit/base/row_pool.h"

#include <algorithm>

#include <ATen/Parallel.h>

#include "dydit/base/threads.h"

extern "C" {
// Of the runtimes that LibTorch brings; absent from one without MKL or OpenMP.
void omp_set_num_threads(int threads) __attribute__((weak));
int MKL_Set_Num_Threads_Local(int threads) __attribute__((weak));
}

namespace dydit {
namespace {

// at::set_num_threads would also change what threads that start later get, and MKL's number in all that there
// are.
void use_one_thread_here() {
  at::get_num_threads();  // ATen sets its own defaults at a thread's first question; before, not after
  if (omp_set_num_threads) omp_set_num_threads(1);
  if (MKL_Set_Num_Threads_Local) MKL_Set_Num_Threads_Local(1);
}

}  // namespace

RowPool::RowPool(int threads) {
  start_threads(
      workers_, std::max(1, threads), [this](int) { work(); }, [this] { stop(); });
}

RowPool::~RowPool() { stop(); }

void RowPool::stop() {
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
  use_one_thread_here();  // under the mutex, since ATen's own defaults may be process-wide
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
