// Lengths of float32 tensors as vectors, added up in double in one order.
#pragma once

#include <cassert>
#include <cmath>
#include <cstdint>

#include <ATen/core/Tensor.h>

namespace dydit {

/// ||a - b||; both contiguous and of one size.
inline double distance(const at::Tensor& a, const at::Tensor& b) {
  assert(a.is_contiguous() && b.is_contiguous() && a.numel() == b.numel());
  const float *x = a.data_ptr<float>(), *y = b.data_ptr<float>();
  double sum = 0;
  for (int64_t i = 0; i < a.numel(); ++i) sum += (double{x[i]} - y[i]) * (double{x[i]} - y[i]);
  return std::sqrt(sum);
}

/// ||a||.
inline double length(const at::Tensor& a) {
  assert(a.is_contiguous());
  const float* x = a.data_ptr<float>();
  double sum = 0;
  for (int64_t i = 0; i < a.numel(); ++i) sum += double{x[i]} * x[i];
  return std::sqrt(sum);
}

}  // namespace dydit
