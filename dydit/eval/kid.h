// Kernel Inception Distance: MMD^2 with k(x, y) = (x.y / d + 1)^3, in float64. It has no bias with the number
// of images: the number to use below 10,000 of them.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include <ATen/core/Tensor.h>

#include "dydit/eval/products.h"

namespace dydit {

struct Kid {
  double unbiased = 0;  // may be negative
  double error = 0;     // of `unbiased`: jackknife that leaves out one row of either set
  double biased = 0;    // with k(x_i, x_i), over n^2
};

/// Over all rows. x (n, d), y (m, d) float32, finite. Throws Error for fewer than three rows.
Kid kid(const at::Tensor& x, const at::Tensor& y, const ProductOptions& options = {});

/// Over subsets (torch-fidelity, clean-fid).
struct KidOfSubsets {
  std::vector<double> each;
  double mean = 0;
  double deviation = 0, deviation_ddof1 = 0;  // of the subsets: no error of the mean
};

/// x_rows, y_rows (subsets, size) int64: which rows a subset takes.
KidOfSubsets kid_of_subsets(const at::Tensor& x, const at::Tensor& y, const at::Tensor& x_rows,
                            const at::Tensor& y_rows, int threads);

}  // namespace dydit
