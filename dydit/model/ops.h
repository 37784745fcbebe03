// Fused operators of a DiT block with their gradients: one pass over memory where separate operators take
// several. Each sample is computed by one thread in a fixed order, so a sample's result depends on that
// sample alone.
#pragma once

#include <ATen/core/Tensor.h>

#include "dydit/model/config.h"

namespace dydit {

/// modulate(layer_norm(x, eps), shift, scale): x (B, N, C) float32, shift, scale (B, C) float32 -> (B, N, C)
/// in `dtype`.
at::Tensor layer_norm_modulate(const at::Tensor& x, const at::Tensor& shift, const at::Tensor& scale,
                               at::ScalarType dtype, double eps);

/// x + gate y tokens: x (B, N, C) float32, gate (B, C) float32 or undefined, y (B, N, C), tokens (B, N)
/// float32 or undefined -> (B, N, C) float32. A token of 0 keeps x exactly.
at::Tensor gated_residual(const at::Tensor& x, const at::Tensor& gate, const at::Tensor& y,
                          const at::Tensor& tokens = {});

/// gelu(h gate): h (B, N, F), gate (B, H) float32 on groups of F/H channels, or undefined -> (B, N, F) of h's
/// type.
at::Tensor gated_gelu(const at::Tensor& h, const at::Tensor& gate = {}, GeluForm gelu = GeluForm::Tanh);

/// softmax(q k^T / sqrt(D)) v: q, k, v (B, H, N, D) -> (B, H, N, D), the same type.
at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v);
/// The same to keys of which `on` (B, N) is true alone; where none is, the result is finite.
at::Tensor attention_among(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           const at::Tensor& on);

}  // namespace dydit
