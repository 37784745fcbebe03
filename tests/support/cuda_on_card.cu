// Memory for kernels that run on a card: managed, so that tests look at it from both sides.
#include <cuda_runtime.h>
#include <stdexcept>

#include "tests/support/cuda_memory.h"
#include "tests/support/cuda_on_cpu.h"

namespace dydit::cuda {
namespace {

constexpr size_t kAround = 4096;

void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

}  // namespace

bool has_machine() {
  int cards = 0;
  return cudaGetDeviceCount(&cards) == cudaSuccess && cards > 0;
}

void finish_kernels() { check(cudaDeviceSynchronize()); }

Block take_block(size_t array_bytes) {
  void* at = nullptr;
  const size_t bytes = array_bytes + 2 * kAround;
  check(cudaMallocManaged(&at, bytes));
  return {static_cast<unsigned char*>(at), bytes, kAround};
}

void give_block(const Block& block) { cudaFree(block.begin); }

// A card has its own order.
void set_fiber_order(FiberOrder /*order*/, uint32_t /*seed*/) {}

}  // namespace dydit::cuda
