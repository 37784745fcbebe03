// See the header.
#include "dydit/engine/torch/ops.h"

#include <ATen/ATen.h>

#include "dydit/model/ops.h"
#include "dydit/plan/run_plan.h"

namespace dydit::aten {
namespace {

at::Tensor rows_of(const at::Tensor& x) { return x.reshape({-1, x.size(-1)}); }

at::Tensor shaped_as(const at::Tensor& rows, const at::Tensor& x) {
  return rows.view({x.size(0), x.size(1), rows.size(1)});
}

}  // namespace

at::Tensor norm_modulate(const at::Tensor& x, const at::Tensor& shift, const at::Tensor& scale1,
                         at::ScalarType dtype, double eps) {
  const at::Tensor normed = std::get<0>(at::native_layer_norm(x, {x.size(2)}, {}, {}, eps));
  at::Tensor out = at::empty(x.sizes(), x.options().dtype(dtype));
  return at::addcmul_out(out, shift, normed, scale1);
}

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  const at::Tensor rows = rows_of(x);
  return shaped_as(bias.defined() ? at::addmm(bias, rows, weight) : at::mm(rows, weight), x);
}

at::Tensor linear_gelu(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, GeluForm form) {
  // The fused operator has the tanh form on CUDA and the exact one on the CPU.
  if (x.is_cuda() && form == GeluForm::Tanh && bias.defined())
    return shaped_as(at::_addmm_activation(bias, rows_of(x), weight, 1, 1, /*use_gelu=*/true), x);
  return at::gelu(linear(x, weight, bias), form == GeluForm::Erf ? "none" : "tanh");
}

at::Tensor attention(const at::Tensor& qkv, const at::Tensor& on) {
  const auto parts = qkv.transpose(1, 2).unbind(3);  // (B, n, k, D) each, views
  const at::Tensor &q = parts[0], &k = parts[1], &v = parts[2];
  at::Tensor heads;  // (B, n, k, D)
  if (on.defined()) {
    heads = attention_among(q, k, v, on);
  } else if (q.is_cuda() && q.scalar_type() == at::kBFloat16 && q.size(3) % 8 == 0) {
    // By name: what the general operator takes changes with shapes, and with it the order of sums.
    heads = std::get<0>(at::_scaled_dot_product_flash_attention(q, k, v));
  } else {
    heads = at::scaled_dot_product_attention(q, k, v);
  }
  return heads.transpose(1, 2).reshape({q.size(0), q.size(2), -1});
}

void add_gated(at::Tensor& x, const at::Tensor& gate, const at::Tensor& y) {
  gate.defined() ? x.addcmul_(gate, y) : x.add_(y);
}

Chosen choose(const at::Tensor& logits, int keep, int cap, int extras, const at::Tensor& starts) {
  const int64_t B = logits.size(0), N = logits.size(1);
  if (keep < 0 && cap >= N) {
    const at::Tensor mask = logits > kGateThreshold;
    const at::Tensor front = at::ones({B, extras}, mask.options());
    return {{}, extras > 0 ? at::cat({front, mask}, 1) : mask, mask};
  }
  if (keep >= N) return {{}, {}, at::ones({B, N}, logits.options().dtype(at::kBool))};
  // topk is not stable; a zero has a sign, which select_tokens does not see.
  auto [values, order] = at::sort(logits + 0.0, /*stable=*/true, /*dim=*/1, /*descending=*/true);
  const int64_t k = keep < 0 ? cap : keep;
  const at::Tensor patches = order.slice(1, 0, k);
  const at::Tensor on = values.slice(1, 0, k) > kGateThreshold;
  Chosen chosen;
  chosen.mask = keep < 0 ? logits > kGateThreshold
                         : at::zeros({B, N}, on.options()).scatter_(1, patches, at::ones_like(on));
  at::Tensor rows = patches + (starts.unsqueeze(1) + extras);
  if (keep < 0) chosen.on = on;
  if (extras > 0) {
    const at::Tensor front = starts.unsqueeze(1) + at::arange(extras, starts.options());
    rows = at::cat({front, rows}, 1);
    if (keep < 0) chosen.on = at::cat({at::ones({B, extras}, on.options()), on}, 1);
  }
  chosen.rows = rows.flatten();
  return chosen;
}

at::Tensor taken(const at::Tensor& x, const Chosen& chosen) {
  if (!chosen.rows.defined()) return x;
  const int64_t B = x.size(0), C = x.size(2);
  return rows_of(x).index_select(0, chosen.rows).view({B, chosen.rows.size(0) / B, C});
}

void put(at::Tensor& x, const Chosen& chosen, const at::Tensor& rows) {
  x.view({-1, x.size(2)}).index_copy_(0, chosen.rows, rows_of(rows));
}

bool rows_are_independent(const std::function<at::Tensor(const at::Tensor& x)>& layer, int64_t in,
                          const at::TensorOptions& options) {
  const at::Tensor x = at::randn({1, 4096, in}, options), whole = layer(x);
  for (const int64_t rows : {256, 1000}) {
    if (!at::equal(layer(x.narrow(1, 0, rows).contiguous()), whole.narrow(1, 0, rows))) return false;
  }
  return true;
}

at::Tensor to_device(const at::Tensor& host, at::Device device) {
  return device.is_cuda() ? host.pin_memory().to(device, /*non_blocking=*/true) : host.to(device);
}

}  // namespace dydit::aten
