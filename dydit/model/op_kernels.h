// Kernels of the fused operators, compiled once for every instruction level and chosen at run time. Plain
// loops that the compiler turns into vectors; each call handles one sample, so callers split the batch over
// threads.
#pragma once

#include <cstdint>

#include "dydit/base/bf16.h"

namespace dydit {

/// N tokens of C channels (F in the MLP, H groups), row-major; T is float or Bf16. Outputs first.
template <typename T>
struct OpKernels {
  // out (N, C), mean, rstd (N) <- modulate(layer_norm(x), shift, scale).  x (N, C); shift, scale (C)
  void (*layer_norm_modulate)(T* out, float* mean, float* rstd, const float* x, const float* shift,
                              const float* scale, int N, int C, float eps);
  // dx (N, C); dshift, dscale (C), overwritten
  void (*layer_norm_modulate_backward)(float* dx, float* dshift, float* dscale, const T* dout, const float* x,
                                       const float* mean, const float* rstd, const float* scale, int N,
                                       int C);
  // out (N, C) <- x + gate y tokens.  gate (C) and tokens (N) may be null: all 1
  void (*gated_residual)(float* out, const float* x, const float* gate, const T* y, const float* tokens,
                         int N, int C);
  // dy (N, C); dgate (C, null with gate) and dtokens (N, may be null), overwritten
  void (*gated_residual_backward)(T* dy, float* dgate, float* dtokens, const float* dout, const float* gate,
                                  const T* y, const float* tokens, int N, int C);
  // out (N, F) <- gelu_tanh(h gate), gate (H) of F/H channels each; may be null: all 1
  void (*gated_gelu)(T* out, const T* h, const float* gate, int N, int F, int H);
  // dh (N, F); dgate (H, may be null), overwritten
  void (*gated_gelu_backward)(T* dh, float* dgate, const T* dout, const T* h, const float* gate, int N, int F,
                              int H);
  // The same of gelu's exact form.
  void (*gated_gelu_erf)(T* out, const T* h, const float* gate, int N, int F, int H);
  void (*gated_gelu_erf_backward)(T* dh, float* dgate, const T* dout, const T* h, const float* gate, int N,
                                  int F, int H);
  // p (rows, N) <- softmax(factor s), row by row
  void (*scaled_softmax)(T* p, const T* s, int rows, int N, float factor);
  // ds (rows, N) <- factor p (dp - sum(p dp))
  void (*scaled_softmax_backward)(T* ds, const T* dp, const T* p, int rows, int N, float factor);
};

}  // namespace dydit
