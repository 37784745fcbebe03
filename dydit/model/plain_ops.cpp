// See the header.
#include "dydit/model/plain_ops.h"

#include <ATen/ATen.h>

#include "dydit/model/config.h"

namespace dydit::plain {

at::Tensor layer_norm_modulate(const at::Tensor& x, const at::Tensor& shift, const at::Tensor& scale,
                               at::ScalarType dtype) {
  const at::Tensor normed = at::layer_norm(x, {x.size(2)}, {}, {}, kLayerNormEps);
  return (normed * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)).to(dtype);
}

at::Tensor gated_residual(const at::Tensor& x, const at::Tensor& gate, const at::Tensor& y,
                          const at::Tensor& tokens) {
  const at::Tensor update = gate.unsqueeze(1) * y.to(at::kFloat);
  return x + (tokens.defined() ? update * tokens.unsqueeze(2) : update);
}

at::Tensor gated_gelu(const at::Tensor& h, const at::Tensor& gate) {
  if (!gate.defined()) return at::gelu(h, "tanh");  // float32 inside
  const int64_t B = h.size(0), N = h.size(1), F = h.size(2), H = gate.size(1);
  const at::Tensor gated = h.to(at::kFloat).view({B, N, H, F / H}) * gate.view({B, 1, H, 1});
  return at::gelu(gated, "tanh").view({B, N, F}).to(h.scalar_type());
}

at::Tensor scaled_softmax(const at::Tensor& s, double factor) {
  return at::softmax(s.to(at::kFloat) * factor, -1).to(s.scalar_type());
}

}  // namespace dydit::plain
