// The two embeddings that are formulas, not weights, and what is made of them before the first block.
#pragma once

#include <string>

#include <ATen/core/Tensor.h>

#include "dydit/model/checkpoint.h"

namespace dydit {

/// x (rows, in) through the linear layer `name` of a checkpoint, in float32.
at::Tensor linear(const Checkpoint& checkpoint, const std::string& name, const at::Tensor& x);

/// Embeddings of times at a level of patch sizes: t (B) -> (B, C) float32.
at::Tensor embed_timesteps(const Checkpoint& checkpoint, const at::Tensor& t, int level = 0);

/// Fixed 2-D sin-cos position table (1, N, C): w before h, each half [sin | cos], omega = 10000^(-i/(C/4)).
/// Patches lie `spacing` apart, and have their position at their centre, in units of patches of spacing 1.
at::Tensor sincos_pos_embed(int hidden_size, int grid, double spacing = 1);

/// Frequencies of the timestep embedding: t (B) -> (B, size) = [cos | sin], every step in float32 as torch
/// does. The i-th of size / 2 is 10000^(-i / divisor).
at::Tensor timestep_frequencies(const at::Tensor& t, int size, int divisor);

}  // namespace dydit
