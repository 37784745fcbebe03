// LibTorch's own generator, but not the global one.
#include "dydit/base/torch_noise.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/from_blob.h>

namespace dydit {

TorchNoise::TorchNoise(uint64_t seed) : generator_(at::make_generator<at::CPUGeneratorImpl>(seed)) {}

void TorchNoise::fill(std::span<float> out) {
  at::from_blob(out.data(), {static_cast<int64_t>(out.size())}, at::kFloat).normal_(0, 1, generator_);
}

}  // namespace dydit
