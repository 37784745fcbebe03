// Features of images that no network made.
#pragma once

#include <ATen/ATen.h>

#include "dydit/base/noise.h"

namespace dydit::test {

/// (n, d) float32: normals about a mean of their own in each column, spread differently.
inline at::Tensor random_features(int64_t n, int64_t d, uint64_t seed, double shift = 0) {
  at::Tensor rows = at::empty({n, d}, at::kFloat);
  for (int64_t i = 0; i < n; ++i)
    fill_normal({rows.data_ptr<float>() + i * d, static_cast<size_t>(d)}, seed, static_cast<uint64_t>(i), 0);
  const at::Tensor column = at::arange(d, at::kFloat);
  return (rows * (0.5 + column / d) + 0.1 * column + shift).contiguous();
}

}  // namespace dydit::test
