// The noise of PyTorch scripts: one stream for the whole batch, so that an image depends on its neighbours.
#pragma once

#include <cstdint>
#include <span>

#include <ATen/core/Generator.h>

namespace dydit {

/// What torch.randn gives on the CPU after torch.manual_seed(seed), call after call.
class TorchNoise {
 public:
  explicit TorchNoise(uint64_t seed);

  /// The values of the next torch.randn of out.size() elements, row-major.
  void fill(std::span<float> out);

 private:
  at::Generator generator_;
};

}  // namespace dydit
