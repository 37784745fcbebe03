#include "dydit/base/row_pool.h"

#include <mutex>

#include <ATen/Parallel.h>

extern "C" {
// Of the runtimes that LibTorch brings; absent from one without MKL or OpenMP.
int omp_get_max_threads() __attribute__((weak));
void omp_set_num_threads(int threads) __attribute__((weak));
int MKL_Set_Num_Threads_Local(int threads) __attribute__((weak));
}

namespace dydit {

// at::set_num_threads would also change what threads that start later get, and MKL's number in all that there
// are.
LibTorchThreads::LibTorchThreads(int threads) {
  {
    // ATen sets its own defaults, which may be process-wide, or what a program set, at a thread's first
    // question; before, not after. The inline part of parallel_for asks for this library once more.
    static std::mutex mutex;
    const std::lock_guard lock(mutex);
    at::get_num_threads();
    at::internal::lazy_init_num_threads();
  }
  if (omp_set_num_threads) {
    omp_ = omp_get_max_threads();
    omp_set_num_threads(threads);
  }
  if (MKL_Set_Num_Threads_Local) mkl_ = MKL_Set_Num_Threads_Local(threads);
}

LibTorchThreads::~LibTorchThreads() {
  if (omp_set_num_threads) omp_set_num_threads(omp_);
  if (MKL_Set_Num_Threads_Local) MKL_Set_Num_Threads_Local(mkl_);
}

}  // namespace dydit
