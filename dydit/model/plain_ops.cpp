// See the header.
#include "dydit/model/plain_ops.h"

#include <ATen/ATen.h>

namespace dydit::plain {

at::Tensor layer_norm_modulate(const at::Tensor& x, const at::Tensor& shift, const at::Tensor& scale,
                               at::ScalarType dtype, double eps) {
  const at::Tensor normed = at::layer_norm(x, {x.size(2)}, {}, {}, eps);
  return at::addcmul(shift.unsqueeze(1), normed, 1 + scale.unsqueeze(1)).to(dtype);
}

at::Tensor gated_residual(const at::Tensor& x, const at::Tensor& gate, const at::Tensor& y,
                          const at::Tensor& tokens) {
  const at::Tensor update = gate.defined() ? gate.unsqueeze(1) * y : y;  // float32: types are promoted
  return x + (tokens.defined() ? update * tokens.unsqueeze(2) : update);
}

at::Tensor gated_gelu(const at::Tensor& h, const at::Tensor& gate, GeluForm gelu) {
  const char* const form = gelu == GeluForm::Erf ? "none" : "tanh";
  if (!gate.defined()) return at::gelu(h, form);  // float32 inside
  const int64_t B = h.size(0), N = h.size(1), F = h.size(2), H = gate.size(1);
  const at::Tensor gated = h.view({B, N, H, F / H}) * gate.view({B, 1, H, 1});  // float32
  return at::gelu(gated, form).view({B, N, F}).to(h.scalar_type());
}

at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  return at::scaled_dot_product_attention(q, k, v);
}

}  // namespace dydit::plain
