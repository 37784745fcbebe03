// Autograd around the kernels: shapes, types, threads; the arithmetic is in op_kernels.cpp.
#include "dydit/model/ops.h"

#include <cmath>

#include <ATen/Parallel.h>
#include <torch/torch.h>

#include "dydit/base/isa.h"
#include "dydit/model/dit.h"
#include "dydit/model/op_kernels.h"
#include "dydit/model/plain_ops.h"

namespace dydit {

#define DYDIT_DECLARE_LEVEL(level)             \
  namespace level {                            \
  extern const OpKernels<float> float_kernels; \
  extern const OpKernels<Bf16> bf16_kernels;   \
  }
DYDIT_DECLARE_LEVEL(avx2)
DYDIT_DECLARE_LEVEL(avx512)
#undef DYDIT_DECLARE_LEVEL

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// Calls fn(kernels, b) for each sample b, with the kernels for elements of `dtype` at the instruction level
// in force.
template <typename Fn>
void for_samples(int64_t samples, at::ScalarType dtype, const Fn& fn) {
  TORCH_INTERNAL_ASSERT(dtype == at::kFloat || dtype == at::kBFloat16);
  const bool wide = active_isa() >= Isa::Avx512;
  at::parallel_for(0, samples, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      if (dtype == at::kFloat) {
        fn(wide ? avx512::float_kernels : avx2::float_kernels, b);
      } else {
        fn(wide ? avx512::bf16_kernels : avx2::bf16_kernels, b);
      }
    }
  });
}

// The elements of sample b of a contiguous tensor, or null without a tensor.
template <typename T = float>
T* at_sample(const at::Tensor& tensor, int64_t b) {
  return tensor.defined() ? static_cast<T*>(tensor.data_ptr()) + b * tensor.stride(0) : nullptr;
}

// Autograd's functions take absent tensors as empty optionals.
std::optional<at::Tensor> optional(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional(tensor) : std::nullopt;
}
at::Tensor contiguous_or_none(const std::optional<at::Tensor>& tensor) {
  return tensor ? tensor->contiguous() : at::Tensor();
}
at::Tensor empty_or_none(const at::Tensor& like) {
  return like.defined() ? at::empty_like(like) : at::Tensor();
}

struct LayerNormModulate : Function<LayerNormModulate> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x_in, const at::Tensor& shift_in,
                            const at::Tensor& scale_in, at::ScalarType dtype, double eps) {
    const at::Tensor x = x_in.contiguous(), shift = shift_in.contiguous(), scale = scale_in.contiguous();
    const int B = x.size(0), N = x.size(1), C = x.size(2);
    const at::Tensor out = at::empty(x.sizes(), x.options().dtype(dtype));
    const at::Tensor mean = at::empty({B, N}, at::kFloat), rstd = at::empty({B, N}, at::kFloat);
    for_samples(B, dtype, [&]<typename T>(const OpKernels<T>& kernels, int64_t b) {
      kernels.layer_norm_modulate(at_sample<T>(out, b), at_sample(mean, b), at_sample(rstd, b),
                                  at_sample(x, b), at_sample(shift, b), at_sample(scale, b), N, C,
                                  static_cast<float>(eps));
    });
    context->save_for_backward({x, scale, mean, rstd});
    return out;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &scale = saved[1], &mean = saved[2], &rstd = saved[3];
    const at::Tensor dout = gradients[0].contiguous();
    const int B = x.size(0), N = x.size(1), C = x.size(2);
    const at::Tensor dx = at::empty_like(x), dshift = at::empty_like(scale), dscale = at::empty_like(scale);
    for_samples(B, dout.scalar_type(), [&]<typename T>(const OpKernels<T>& kernels, int64_t b) {
      kernels.layer_norm_modulate_backward(at_sample(dx, b), at_sample(dshift, b), at_sample(dscale, b),
                                           at_sample<T>(dout, b), at_sample(x, b), at_sample(mean, b),
                                           at_sample(rstd, b), at_sample(scale, b), N, C);
    });
    return {dx, dshift, dscale, at::Tensor(), at::Tensor()};
  }
};

struct GatedResidual : Function<GatedResidual> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x_in,
                            const std::optional<at::Tensor>& gate_in, const at::Tensor& y_in,
                            const std::optional<at::Tensor>& tokens_in) {
    const at::Tensor x = x_in.contiguous(), gate = contiguous_or_none(gate_in), y = y_in.contiguous();
    const at::Tensor tokens = contiguous_or_none(tokens_in);
    const int B = x.size(0), N = x.size(1), C = x.size(2);
    const at::Tensor out = at::empty_like(x);
    for_samples(B, y.scalar_type(), [&]<typename T>(const OpKernels<T>& kernels, int64_t b) {
      kernels.gated_residual(at_sample(out, b), at_sample(x, b), at_sample(gate, b), at_sample<T>(y, b),
                             at_sample(tokens, b), N, C);
    });
    context->save_for_backward({gate, y, tokens});
    return out;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &gate = saved[0], &y = saved[1], &tokens = saved[2];
    const at::Tensor dout = gradients[0].contiguous();
    const int B = y.size(0), N = y.size(1), C = y.size(2);
    const at::Tensor dy = at::empty_like(y), dgate = empty_or_none(gate), dtokens = empty_or_none(tokens);
    for_samples(B, y.scalar_type(), [&]<typename T>(const OpKernels<T>& kernels, int64_t b) {
      kernels.gated_residual_backward(at_sample<T>(dy, b), at_sample(dgate, b), at_sample(dtokens, b),
                                      at_sample(dout, b), at_sample(gate, b), at_sample<T>(y, b),
                                      at_sample(tokens, b), N, C);
    });
    return {dout, dgate, dy, dtokens};
  }
};

struct GatedGelu : Function<GatedGelu> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& h_in,
                            const std::optional<at::Tensor>& gate_in, bool erf) {
    const at::Tensor h = h_in.contiguous(), gate = contiguous_or_none(gate_in);
    const int B = h.size(0), N = h.size(1), F = h.size(2), H = gate.defined() ? gate.size(1) : 1;
    const at::Tensor out = at::empty_like(h);
    for_samples(B, h.scalar_type(), [&]<typename T>(const OpKernels<T>& kernels, int64_t b) {
      const auto& gelu = erf ? kernels.gated_gelu_erf : kernels.gated_gelu;
      gelu(at_sample<T>(out, b), at_sample<T>(h, b), at_sample(gate, b), N, F, H);
    });
    context->save_for_backward({h, gate});
    context->saved_data["erf"] = erf;
    return out;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &h = saved[0], &gate = saved[1];
    const at::Tensor dout = gradients[0].contiguous();
    const int B = h.size(0), N = h.size(1), F = h.size(2), H = gate.defined() ? gate.size(1) : 1;
    const at::Tensor dh = at::empty_like(h), dgate = empty_or_none(gate);
    const bool erf = context->saved_data["erf"].toBool();
    for_samples(B, h.scalar_type(), [&]<typename T>(const OpKernels<T>& kernels, int64_t b) {
      const auto& backward = erf ? kernels.gated_gelu_erf_backward : kernels.gated_gelu_backward;
      backward(at_sample<T>(dh, b), at_sample(dgate, b), at_sample<T>(dout, b), at_sample<T>(h, b),
               at_sample(gate, b), N, F, H);
    });
    return {dh, dgate, at::Tensor()};
  }
};

// Of each row of matrices (matrices, M, N).
struct ScaledSoftmax : Function<ScaledSoftmax> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& s_in, double factor) {
    const at::Tensor s = s_in.contiguous(), p = at::empty_like(s);
    const int M = s.size(1), N = s.size(2);
    for_samples(s.size(0), s.scalar_type(), [&]<typename T>(const OpKernels<T>& kernels, int64_t b) {
      kernels.scaled_softmax(at_sample<T>(p, b), at_sample<T>(s, b), M, N, static_cast<float>(factor));
    });
    context->save_for_backward({p});
    context->saved_data["factor"] = factor;
    return p;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const at::Tensor p = context->get_saved_variables()[0], dp = gradients[0].contiguous();
    const at::Tensor ds = at::empty_like(p);
    const int M = p.size(1), N = p.size(2);
    const auto factor = static_cast<float>(context->saved_data["factor"].toDouble());
    for_samples(p.size(0), p.scalar_type(), [&]<typename T>(const OpKernels<T>& kernels, int64_t b) {
      kernels.scaled_softmax_backward(at_sample<T>(ds, b), at_sample<T>(dp, b), at_sample<T>(p, b), M, N,
                                      factor);
    });
    return {ds, at::Tensor()};
  }
};

}  // namespace

at::Tensor layer_norm_modulate(const at::Tensor& x, const at::Tensor& shift, const at::Tensor& scale,
                               at::ScalarType dtype, double eps) {
  if (!x.is_cpu()) return plain::layer_norm_modulate(x, shift, scale, dtype, eps);
  return LayerNormModulate::apply(x, shift, scale, dtype, eps);
}

at::Tensor gated_residual(const at::Tensor& x, const at::Tensor& gate, const at::Tensor& y,
                          const at::Tensor& tokens) {
  if (!x.is_cpu()) return plain::gated_residual(x, gate, y, tokens);
  return GatedResidual::apply(x, optional(gate), y, optional(tokens));
}

at::Tensor gated_gelu(const at::Tensor& h, const at::Tensor& gate, GeluForm gelu) {
  if (!h.is_cpu()) return plain::gated_gelu(h, gate, gelu);
  return GatedGelu::apply(h, optional(gate), gelu == GeluForm::Erf);
}

at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  if (!q.is_cpu()) return plain::attention(q, k, v);
  const double factor = 1.0 / std::sqrt(static_cast<double>(q.size(3)));
  const at::Tensor scores = at::matmul(q, k.transpose(2, 3));
  return at::matmul(ScaledSoftmax::apply(scores.flatten(0, 1), factor).view(scores.sizes()), v);
}

at::Tensor attention_among(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           const at::Tensor& on) {
  constexpr double kNever = -1e30;  // finite, so that no row is NaN
  const double scale = 1 / std::sqrt(static_cast<double>(q.size(3)));
  const at::Tensor scores = at::matmul(q, k.transpose(2, 3)).to(at::kFloat) * scale;
  const at::Tensor off = on.logical_not().view({on.size(0), 1, 1, on.size(1)});
  return at::matmul(at::softmax(scores.masked_fill(off, kNever), 3).to(v.scalar_type()), v);
}

}  // namespace dydit
