// The factors that make a forward dynamic.
#pragma once

#include <functional>
#include <vector>

#include <ATen/core/Tensor.h>

namespace dydit {

/// What multiplies where. An empty member leaves all of its parts on. Gates may be hard masks (inference),
/// straight-through or soft (training).
struct Gates {
  std::vector<at::Tensor> heads;   // L of (B, H): factor of each head's output before proj
  std::vector<at::Tensor> groups;  // L of (B, H): factor of each channel group of fc1's output, before GELU
  /// (block, router logits (B, N)) -> (B, N): factor of each token's MLP update.
  std::function<at::Tensor(int block, const at::Tensor& logits)> tokens;
};

}  // namespace dydit
