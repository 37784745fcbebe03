// What the trainer needs of other processes; on one process, nothing.
#pragma once

#include <memory>
#include <span>

namespace dydit {

class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const { return 0; }
  virtual int size() const { return 1; }
  /// Element-wise sum over all processes, bit for bit the same on each.
  virtual void sum(std::span<float> values) {}
  virtual void sum(std::span<double> values) {}
  virtual void barrier() {}
};

/// The processes that mpirun started, through the module libdydit_mpi.so beside the program; a Communicator
/// of one process when not under mpirun. Throws Error under mpirun when the module or MPI is missing.
std::shared_ptr<Communicator> make_communicator();

}  // namespace dydit
