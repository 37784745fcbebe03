// All products of the rows of two sets, block by block: what distances and kernels are made of. A block is
// computed by one thread, so that it does not depend on how many there are.
#pragma once

#include <cstdint>
#include <functional>

#include <ATen/core/Tensor.h>

#include "dydit/base/progress.h"

namespace dydit {

inline constexpr int64_t kProductRows = 2048;  // of a block, and its columns

/// x_i . y_j for i = row.., j = col..
struct ProductBlock {
  int64_t row = 0, col = 0;  // multiples of kProductRows
  at::Tensor products;       // (rows, cols); its memory is used again
};

struct ProductOptions {
  int threads = 1;
  ProgressFn on_progress = {};
  const CancelFlag* cancel = nullptr;
};

/// x (N, d), y (M, d) float32; products of `type`, float or double. fn is called from several threads at
/// once. Throws Cancelled between blocks.
void for_each_product(const at::Tensor& x, const at::Tensor& y, at::ScalarType type,
                      const ProductOptions& options, const std::function<void(const ProductBlock&)>& fn);
/// Of the rows of one set among themselves: blocks on the diagonal and above it.
void for_each_own_product(const at::Tensor& x, at::ScalarType type, const ProductOptions& options,
                          const std::function<void(const ProductBlock&)>& fn);

}  // namespace dydit
