#include "tests/engine/device_primitives.cuh"
#include "tests/engine/device_primitives_card.h"

namespace dydit::cuda {

std::optional<std::vector<uint32_t>> primitives_on_card(const std::vector<uint32_t>& in) {
  int cards = 0;
  if (cudaGetDeviceCount(&cards) != cudaSuccess || cards == 0) return std::nullopt;
  std::vector<uint32_t> out(kAllPrimitiveThreads * sizeof(Primitives) / sizeof(uint32_t));
  uint32_t* from = nullptr;
  Primitives* to = nullptr;
  check(cudaMalloc(&from, in.size() * sizeof(uint32_t)));
  check(cudaMalloc(&to, out.size() * sizeof(uint32_t)));
  check(cudaMemcpy(from, in.data(), in.size() * sizeof(uint32_t), cudaMemcpyHostToDevice));
  run_primitives(to, from);
  check(cudaMemcpy(out.data(), to, out.size() * sizeof(uint32_t), cudaMemcpyDeviceToHost));
  check(cudaFree(from));
  check(cudaFree(to));
  return out;
}

}  // namespace dydit::cuda
