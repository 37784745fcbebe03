// What makes a forward dynamic: factors of its parts, and what stands in the place of a branch.
#pragma once

#include <functional>
#include <vector>

#include <ATen/core/Tensor.h>

namespace dydit {

enum class Branch { Attention, Mlp };  // of a block

/// What multiplies where. An empty member leaves all of its parts on. Gates may be hard masks (inference),
/// straight-through or soft (training).
struct Gates {
  std::vector<at::Tensor> heads;   // L of (B, H): factor of each head's output before proj
  std::vector<at::Tensor> groups;  // L of (B, H): factor of each channel group of fc1's output, before GELU
  /// (block, router logits (B, N)) -> (B, N): factor of each token's MLP update.
  std::function<at::Tensor(int block, const at::Tensor& logits)> tokens;
  /// (block, branch, its computation) -> (B, N, C): what the branch adds to the stream, un-gated, its bias
  /// included, tokens that are off 0. Empty: what is computed. Without gradients.
  std::function<at::Tensor(int block, Branch branch, const std::function<at::Tensor()>& compute)> branch;
  /// (block, stream (B, N, C)) -> the block to go on with; may change the stream. Called where a block begins
  /// and, with the depth, after the last. Empty: all blocks are run.
  std::function<int(int block, at::Tensor& stream)> enter;
};

}  // namespace dydit
