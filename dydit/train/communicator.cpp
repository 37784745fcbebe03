// MPI lives in a module of its own, loaded only under mpirun: the program starts without it.
#include "dydit/train/communicator.h"

#include <cstdlib>
#include <dlfcn.h>
#include <filesystem>

#include "dydit/base/error.h"

namespace dydit {
namespace {

constexpr const char* kModule = "libdydit_mpi.so";
constexpr const char* kFactory = "dydit_make_mpi_communicator";

// Variables that OpenMPI, MPICH and Slurm set for the processes they start.
bool under_mpirun() {
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK"}) {
    if (std::getenv(name)) return true;
  }
  return false;
}

}  // namespace

std::shared_ptr<Communicator> make_communicator() {
  if (!under_mpirun()) return std::make_shared<Communicator>();
  const std::filesystem::path module = std::filesystem::canonical("/proc/self/exe").parent_path() / kModule;
  // Never closed: MPI's finalisation runs at exit.
  void* handle = dlopen(module.c_str(), RTLD_NOW | RTLD_GLOBAL);
  DYDIT_CHECK(handle,
              "started by mpirun, but {} cannot be loaded ({}); build with MPI (libopenmpi-dev) or start "
              "without mpirun",
              module.string(), dlerror());
  using Factory = Communicator* (*)();
  const auto factory = reinterpret_cast<Factory>(dlsym(handle, kFactory));
  DYDIT_CHECK(factory, "{}: has no {}; it belongs to another version", module.string(), kFactory);
  return std::shared_ptr<Communicator>(factory());
}

}  // namespace dydit
