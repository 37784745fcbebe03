// The two embeddings that are formulas, not weights.
#pragma once

#include <ATen/core/Tensor.h>

#include "dydit/model/config.h"

namespace dydit {

/// Fixed 2-D sin-cos position table (1, N, C): w before h, each half [sin | cos], omega = 10000^(-i/(C/4)).
at::Tensor sincos_pos_embed(int hidden_size, int grid);

/// Frequencies of the timestep embedding: t (B) -> (B, 256) = [cos | sin], every step in float32 as torch
/// does. The i-th of 128 is 10000^(-i / divisor).
at::Tensor timestep_frequencies(const at::Tensor& t, int divisor);

}  // namespace dydit
