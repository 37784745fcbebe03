// The operators of ops.h written with LibTorch's own, for devices without kernels of ours: the same formulas,
// gradients by autograd. float32 inside, whatever the type of the result.
#pragma once

#include <ATen/core/Tensor.h>

#include "dydit/model/config.h"

namespace dydit::plain {

at::Tensor layer_norm_modulate(const at::Tensor& x, const at::Tensor& shift, const at::Tensor& scale,
                               at::ScalarType dtype, double eps);
at::Tensor gated_residual(const at::Tensor& x, const at::Tensor& gate, const at::Tensor& y,
                          const at::Tensor& tokens = {});
at::Tensor gated_gelu(const at::Tensor& h, const at::Tensor& gate = {}, GeluForm gelu = GeluForm::Tanh);
at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v);

}  // namespace dydit::plain
