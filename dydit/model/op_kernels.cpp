// Compiled once a level with DYDIT_LEVEL (avx2, avx512) and that level's flags. Only plain loops and nothing
// inline from the standard library: an inline function compiled here with wide instructions could be the one
// the linker keeps.
#include "dydit/model/op_kernels.h"

#include "dydit/base/kernel_math.h"

namespace dydit::DYDIT_LEVEL {
namespace {

template <typename T>
void layer_norm_modulate(T* __restrict out, float* __restrict mean, float* __restrict rstd,
                         const float* __restrict x, const float* __restrict shift,
                         const float* __restrict scale, int N, int C, float eps) {
  for (int n = 0; n < N; ++n, x += C, out += C) {
    const float m = sum_of(C, [&](int i) { return x[i]; }) / C;
    const float variance = sum_of(C, [&](int i) { return (x[i] - m) * (x[i] - m); }) / C;
    const float r = 1.0f / __builtin_sqrtf(variance + eps);
    for (int i = 0; i < C; ++i) store(out, i, (x[i] - m) * r * (1.0f + scale[i]) + shift[i]);
    mean[n] = m;
    rstd[n] = r;
  }
}

template <typename T>
void layer_norm_modulate_backward(float* __restrict dx, float* __restrict dshift, float* __restrict dscale,
                                  const T* __restrict dout, const float* __restrict x,
                                  const float* __restrict mean, const float* __restrict rstd,
                                  const float* __restrict scale, int N, int C) {
  for (int i = 0; i < C; ++i) dshift[i] = dscale[i] = 0;
  for (int n = 0; n < N; ++n, x += C, dx += C, dout += C) {
    const float m = mean[n], r = rstd[n];
    const float sum = sum_of(C, [&](int i) { return load(dout, i) * (1.0f + scale[i]); });
    const float dot = sum_of(C, [&](int i) { return load(dout, i) * (1.0f + scale[i]) * (x[i] - m) * r; });
    const float mean_sum = sum / C, mean_dot = dot / C;
    for (int i = 0; i < C; ++i) {
      const float d = load(dout, i), normal = (x[i] - m) * r;
      dx[i] = r * (d * (1.0f + scale[i]) - mean_sum - normal * mean_dot);
      dshift[i] += d;
      dscale[i] += d * normal;
    }
  }
}

template <typename T>
void gated_residual(float* __restrict out, const float* __restrict x, const float* __restrict gate,
                    const T* __restrict y, const float* __restrict tokens, int N, int C) {
  for (int n = 0; n < N; ++n, out += C, x += C, y += C) {
    const float token = tokens ? tokens[n] : 1.0f;
    if (gate) {
      for (int i = 0; i < C; ++i) out[i] = x[i] + gate[i] * (load(y, i) * token);
    } else {
      for (int i = 0; i < C; ++i) out[i] = x[i] + load(y, i) * token;
    }
  }
}

template <typename T>
void gated_residual_backward(T* __restrict dy, float* __restrict dgate, float* __restrict dtokens,
                             const float* __restrict dout, const float* __restrict gate,
                             const T* __restrict y, const float* __restrict tokens, int N, int C) {
  for (int i = 0; gate && i < C; ++i) dgate[i] = 0;
  for (int n = 0; n < N; ++n, dy += C, dout += C, y += C) {
    const float token = tokens ? tokens[n] : 1.0f;
    if (!gate) {
      for (int i = 0; i < C; ++i) store(dy, i, dout[i] * token);
      if (dtokens) dtokens[n] = sum_of(C, [&](int i) { return dout[i] * load(y, i); });
      continue;
    }
    for (int i = 0; i < C; ++i) {
      store(dy, i, dout[i] * gate[i] * token);
      dgate[i] += dout[i] * load(y, i) * token;
    }
    if (dtokens) dtokens[n] = sum_of(C, [&](int i) { return dout[i] * gate[i] * load(y, i); });
  }
}

// Erf: the exact form, else the tanh approximation.
template <bool Erf>
inline float gelu_of(float x) {
  return Erf ? gelu_erf(x) : gelu(x);
}
template <bool Erf>
inline float gelu_slope_of(float x) {
  return Erf ? gelu_erf_slope(x) : gelu_slope(x);
}

template <typename T, bool Erf>
void gated_gelu(T* __restrict out, const T* __restrict h, const float* __restrict gate, int N, int F, int H) {
  const int width = F / H;
  for (int64_t part = 0; part < int64_t{N} * H; ++part, out += width, h += width) {
    const float g = gate ? gate[part % H] : 1.0f;
    for (int i = 0; i < width; ++i) store(out, i, gelu_of<Erf>(load(h, i) * g));
  }
}

template <typename T, bool Erf>
void gated_gelu_backward(T* __restrict dh, float* __restrict dgate, const T* __restrict dout,
                         const T* __restrict h, const float* __restrict gate, int N, int F, int H) {
  const int width = F / H;
  for (int j = 0; dgate && j < H; ++j) dgate[j] = 0;
  for (int64_t part = 0; part < int64_t{N} * H; ++part, dh += width, dout += width, h += width) {
    const float g = gate ? gate[part % H] : 1.0f;
    for (int i = 0; i < width; ++i) store(dh, i, load(dout, i) * gelu_slope_of<Erf>(load(h, i) * g) * g);
    if (dgate) {
      dgate[part % H] += sum_of(
          width, [&](int i) { return load(dout, i) * gelu_slope_of<Erf>(load(h, i) * g) * load(h, i); });
    }
  }
}

template <typename T>
void scaled_softmax(T* __restrict p, const T* __restrict s, int rows, int N, float factor) {
  for (int row = 0; row < rows; ++row, p += N, s += N) {
    const float largest = largest_of(s, N);
    const float inverse =
        1.0f / sum_of(N, [&](int j) { return exp_approx(factor * (load(s, j) - largest)); });
    for (int j = 0; j < N; ++j) store(p, j, exp_approx(factor * (load(s, j) - largest)) * inverse);
  }
}

template <typename T>
void scaled_softmax_backward(T* __restrict ds, const T* __restrict dp, const T* __restrict p, int rows, int N,
                             float factor) {
  for (int row = 0; row < rows; ++row, ds += N, dp += N, p += N) {
    const float dot = sum_of(N, [&](int i) { return load(p, i) * load(dp, i); });
    for (int i = 0; i < N; ++i) store(ds, i, factor * load(p, i) * (load(dp, i) - dot));
  }
}

template <typename T>
constexpr OpKernels<T> make_kernels() {
  return {layer_norm_modulate<T>, layer_norm_modulate_backward<T>,
          gated_residual<T>,      gated_residual_backward<T>,
          gated_gelu<T, false>,   gated_gelu_backward<T, false>,
          gated_gelu<T, true>,    gated_gelu_backward<T, true>,
          scaled_softmax<T>,      scaled_softmax_backward<T>};
}

}  // namespace

extern const OpKernels<float> float_kernels = make_kernels<float>();
extern const OpKernels<Bf16> bf16_kernels = make_kernels<Bf16>();

}  // namespace dydit::DYDIT_LEVEL
