// Work split by rows: each row is computed wholly by one thread, with no threads inside the operators.
// A row's result then cannot depend on how many rows or threads there are, which LibTorch's own
// parallel operators do not promise (their kernels change with row and thread counts).
#pragma once

#include "dydit/base/team.h"

namespace dydit {

/// As long as it lives, LibTorch's operators on this thread use so many threads.
class LibTorchThreads {
 public:
  explicit LibTorchThreads(int threads);
  ~LibTorchThreads();
  LibTorchThreads(const LibTorchThreads&) = delete;
  LibTorchThreads& operator=(const LibTorchThreads&) = delete;

 private:
  int omp_ = 0, mkl_ = 0;  // what was in force
};

/// They use no other than this.
struct OneThread : LibTorchThreads {
  OneThread() : LibTorchThreads(1) {}
};

class RowPool {
 public:
  /// Throws Error when the system does not give so many threads.
  explicit RowPool(int threads) : team_(threads) {}

  /// Calls fn(row) for row = 0..rows-1 on the pool's threads, of which the caller is one, and waits;
  /// exceptions as Team::run.
  template <typename Fn>
  void run(int rows, const Fn& fn) {
    team_.run(rows, [&](int row, int) {
      const OneThread here;
      fn(row);
    });
  }
  int threads() const { return team_.threads(); }

 private:
  Team team_;
};

}  // namespace dydit
