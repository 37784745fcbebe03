// Improved precision and recall (Kynkaanniemi et al. 2019): a ball around each row of a set reaches to its
// k-th nearest other row. Precision is the share of generated rows inside a ball of the reference, recall the
// share of reference rows inside a ball of the generated. Distances come from float32 products; what decides
// is computed in float64.
#pragma once

#include <optional>

#include <ATen/core/Tensor.h>

#include "dydit/eval/products.h"

namespace dydit {

inline constexpr int kNeighbours = 3;

struct PrecisionRecall {
  double precision = 0, recall = 0;
  std::optional<double> precision_error,
      recall_error;                // jackknife over groups of generated images; from 40 on
  at::Tensor is_inside_reference;  // (N) bool, of generated rows
  at::Tensor is_inside_generated;  // (M) bool, of reference rows
  at::Tensor generated_radii;      // (N) float64, distance to the k-th nearest other row
  at::Tensor reference_radii;      // (M) float64
  // Is it memorised? Distances to the nearest reference row, beside what reference rows have among
  // themselves.
  at::Tensor generated_nearest;  // (N) float64
  at::Tensor reference_nearest;  // (M) float64
};

/// generated (N, d), reference (M, d) float32, finite. Throws Error for sets of `kNeighbours` rows or fewer.
PrecisionRecall precision_recall(const at::Tensor& generated, const at::Tensor& reference,
                                 const ProductOptions& options = {});

}  // namespace dydit
