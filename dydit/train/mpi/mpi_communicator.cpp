// Sums over MPI processes: reduced to rank 0 in buckets and sent to all, so that every rank holds the same
// bits.
#include <algorithm>
#include <exception>
#include <mpi.h>

#include "dydit/base/error.h"
#include "dydit/train/communicator.h"

namespace dydit {
namespace {

constexpr size_t kBucket = 1 << 20;  // elements a message

class MpiCommunicator final : public Communicator {
 public:
  MpiCommunicator() {
    int provided = 0;
    MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided);  // one thread calls MPI
    MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
    MPI_Comm_size(MPI_COMM_WORLD, &size_);
  }
  ~MpiCommunicator() override {
    // Finalising waits for the other ranks, which wait for this one; left out, mpirun ends them all.
    if (std::uncaught_exceptions() == 0) MPI_Finalize();
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  void sum(std::span<float> values) override { sum_buckets(values.data(), values.size(), MPI_FLOAT); }
  void sum(std::span<double> values) override { sum_buckets(values.data(), values.size(), MPI_DOUBLE); }
  void barrier() override { MPI_Barrier(MPI_COMM_WORLD); }

 private:
  template <typename T>
  void sum_buckets(T* values, size_t size, MPI_Datatype type) {
    for (size_t begin = 0; begin < size; begin += kBucket) {
      const int count = static_cast<int>(std::min(kBucket, size - begin));
      T* bucket = values + begin;
      MPI_Reduce(rank_ == 0 ? MPI_IN_PLACE : bucket, bucket, count, type, MPI_SUM, 0, MPI_COMM_WORLD);
      MPI_Bcast(bucket, count, type, 0, MPI_COMM_WORLD);
    }
  }

  int rank_ = 0, size_ = 1;
};

}  // namespace
}  // namespace dydit

extern "C" dydit::Communicator* dydit_make_mpi_communicator() { return new dydit::MpiCommunicator(); }
