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

template <>
const OpKernels<float>& op_kernels<float>() {
  return active_isa() >= Isa::Avx512 ? avx512::float_kernels : avx2::float_kernels;
}
template <>
const OpKernels<Bf16>& op_kernels<Bf16>() {
  return active_isa() >= Isa::Avx512 ? avx512::bf16_kernels : avx2::bf16_kernels;
}

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// Calls fn with a null pointer of the element type of `dtype`.
template <typename Fn>
void with_type(at::ScalarType dtype, const Fn& fn) {
  TORCH_INTERNAL_ASSERT(dtype == at::kFloat || dtype == at::kBFloat16);
  if (dtype == at::kFloat) {
    fn(static_cast<float*>(nullptr));
  } else {
    fn(static_cast<Bf16*>(nullptr));
  }
}

template <typename T>
T* data(const at::Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

// The floats of sample b, or null without a tensor.
float* row_or_null(const at::Tensor& tensor, int64_t b) {
  return tensor.defined() ? data<float>(tensor) + b * tensor.size(1) : nullptr;
}

// Autograd's functions take absent tensors as empty optionals.
std::optional<at::Tensor> optional(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional(tensor) : std::nullopt;
}
at::Tensor contiguous_or_none(const std::optional<at::Tensor>& tensor) {
  return tensor ? tensor->contiguous() : at::Tensor();
}

template <typename Fn>
void for_samples(int64_t samples, const Fn& fn) {
  at::parallel_for(0, samples, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) fn(b);
  });
}

struct LayerNormModulate : Function<LayerNormModulate> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x_in, const at::Tensor& shift_in,
                            const at::Tensor& scale_in, at::ScalarType dtype, double eps) {
    const at::Tensor x = x_in.contiguous(), shift = shift_in.contiguous(), scale = scale_in.contiguous();
    const int64_t B = x.size(0), N = x.size(1), C = x.size(2);
    const at::Tensor out = at::empty(x.sizes(), x.options().dtype(dtype));
    const at::Tensor mean = at::empty({B, N}, at::kFloat), rstd = at::empty({B, N}, at::kFloat);
    with_type(dtype, [&](auto* tag) {
      using T = std::remove_pointer_t<decltype(tag)>;
      for_samples(B, [&](int64_t b) {
        op_kernels<T>().layer_norm_modulate(
            data<T>(out) + b * N * C, data<float>(mean) + b * N, data<float>(rstd) + b * N,
            data<float>(x) + b * N * C, data<float>(shift) + b * C, data<float>(scale) + b * C,
            static_cast<int>(N), static_cast<int>(C), static_cast<float>(eps));
      });
    });
    context->save_for_backward({x, scale, mean, rstd});
    return out;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &scale = saved[1], &mean = saved[2], &rstd = saved[3];
    const at::Tensor dout = gradients[0].contiguous();
    const int64_t B = x.size(0), N = x.size(1), C = x.size(2);
    const at::Tensor dx = at::empty_like(x), dshift = at::empty_like(scale), dscale = at::empty_like(scale);
    with_type(dout.scalar_type(), [&](auto* tag) {
      using T = std::remove_pointer_t<decltype(tag)>;
      for_samples(B, [&](int64_t b) {
        op_kernels<T>().layer_norm_modulate_backward(
            data<float>(dx) + b * N * C, data<float>(dshift) + b * C, data<float>(dscale) + b * C,
            data<T>(dout) + b * N * C, data<float>(x) + b * N * C, data<float>(mean) + b * N,
            data<float>(rstd) + b * N, data<float>(scale) + b * C, static_cast<int>(N), static_cast<int>(C));
      });
    });
    return {dx, dshift, dscale, at::Tensor(), at::Tensor()};
  }
};

struct GatedResidual : Function<GatedResidual> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x_in, const at::Tensor& gate_in,
                            const at::Tensor& y_in, const std::optional<at::Tensor>& tokens_in) {
    const at::Tensor x = x_in.contiguous(), gate = gate_in.contiguous(), y = y_in.contiguous();
    const at::Tensor tokens = contiguous_or_none(tokens_in);
    const int64_t B = x.size(0), N = x.size(1), C = x.size(2);
    const at::Tensor out = at::empty_like(x);
    with_type(y.scalar_type(), [&](auto* tag) {
      using T = std::remove_pointer_t<decltype(tag)>;
      for_samples(B, [&](int64_t b) {
        op_kernels<T>().gated_residual(data<float>(out) + b * N * C, data<float>(x) + b * N * C,
                                       data<float>(gate) + b * C, data<T>(y) + b * N * C,
                                       row_or_null(tokens, b), static_cast<int>(N), static_cast<int>(C));
      });
    });
    context->save_for_backward({gate, y, tokens});
    return out;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &gate = saved[0], &y = saved[1], &tokens = saved[2];
    const at::Tensor dout = gradients[0].contiguous();
    const int64_t B = y.size(0), N = y.size(1), C = y.size(2);
    const at::Tensor dy = at::empty_like(y), dgate = at::empty_like(gate);
    const at::Tensor dtokens = tokens.defined() ? at::empty_like(tokens) : at::Tensor();
    with_type(y.scalar_type(), [&](auto* tag) {
      using T = std::remove_pointer_t<decltype(tag)>;
      for_samples(B, [&](int64_t b) {
        op_kernels<T>().gated_residual_backward(
            data<T>(dy) + b * N * C, data<float>(dgate) + b * C, row_or_null(dtokens, b),
            data<float>(dout) + b * N * C, data<float>(gate) + b * C, data<T>(y) + b * N * C,
            row_or_null(tokens, b), static_cast<int>(N), static_cast<int>(C));
      });
    });
    return {dout, dgate, dy, dtokens};
  }
};

struct GatedGelu : Function<GatedGelu> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& h_in,
                            const std::optional<at::Tensor>& gate_in) {
    const at::Tensor h = h_in.contiguous(), gate = contiguous_or_none(gate_in);
    const int64_t B = h.size(0), N = h.size(1), F = h.size(2), H = gate.defined() ? gate.size(1) : 1;
    const at::Tensor out = at::empty_like(h);
    with_type(h.scalar_type(), [&](auto* tag) {
      using T = std::remove_pointer_t<decltype(tag)>;
      for_samples(B, [&](int64_t b) {
        op_kernels<T>().gated_gelu(data<T>(out) + b * N * F, data<T>(h) + b * N * F, row_or_null(gate, b),
                                   static_cast<int>(N), static_cast<int>(F), static_cast<int>(H));
      });
    });
    context->save_for_backward({h, gate});
    return out;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &h = saved[0], &gate = saved[1];
    const at::Tensor dout = gradients[0].contiguous();
    const int64_t B = h.size(0), N = h.size(1), F = h.size(2), H = gate.defined() ? gate.size(1) : 1;
    const at::Tensor dh = at::empty_like(h), dgate = gate.defined() ? at::empty_like(gate) : at::Tensor();
    with_type(h.scalar_type(), [&](auto* tag) {
      using T = std::remove_pointer_t<decltype(tag)>;
      for_samples(B, [&](int64_t b) {
        op_kernels<T>().gated_gelu_backward(
            data<T>(dh) + b * N * F, row_or_null(dgate, b), data<T>(dout) + b * N * F, data<T>(h) + b * N * F,
            row_or_null(gate, b), static_cast<int>(N), static_cast<int>(F), static_cast<int>(H));
      });
    });
    return {dh, dgate};
  }
};

struct ScaledSoftmax : Function<ScaledSoftmax> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& s_in, double factor) {
    const at::Tensor s = s_in.contiguous(), p = at::empty_like(s);
    const int64_t N = s.size(-1), M = s.size(-2), matrices = s.numel() / (N * M);
    with_type(s.scalar_type(), [&](auto* tag) {
      using T = std::remove_pointer_t<decltype(tag)>;
      for_samples(matrices, [&](int64_t b) {
        op_kernels<T>().scaled_softmax(data<T>(p) + b * M * N, data<T>(s) + b * M * N, static_cast<int>(M),
                                       static_cast<int>(N), static_cast<float>(factor));
      });
    });
    context->save_for_backward({p});
    context->saved_data["factor"] = factor;
    return p;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const at::Tensor p = context->get_saved_variables()[0], dp = gradients[0].contiguous();
    const at::Tensor ds = at::empty_like(p);
    const int64_t N = p.size(-1), M = p.size(-2), matrices = p.numel() / (N * M);
    const auto factor = static_cast<float>(context->saved_data["factor"].toDouble());
    with_type(p.scalar_type(), [&](auto* tag) {
      using T = std::remove_pointer_t<decltype(tag)>;
      for_samples(matrices, [&](int64_t b) {
        op_kernels<T>().scaled_softmax_backward(data<T>(ds) + b * M * N, data<T>(dp) + b * M * N,
                                                data<T>(p) + b * M * N, static_cast<int>(M),
                                                static_cast<int>(N), factor);
      });
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
  return GatedResidual::apply(x, gate, y, optional(tokens));
}

at::Tensor gated_gelu(const at::Tensor& h, const at::Tensor& gate) {
  if (!h.is_cpu()) return plain::gated_gelu(h, gate);
  return GatedGelu::apply(h, optional(gate));
}

at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  if (!q.is_cpu()) return plain::attention(q, k, v);
  const double factor = 1.0 / std::sqrt(static_cast<double>(q.size(3)));
  return at::matmul(ScaledSoftmax::apply(at::matmul(q, k.transpose(2, 3)), factor), v);
}

}  // namespace dydit
