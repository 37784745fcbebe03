// Inception Score and KID as torch-fidelity 0.4 reports them: of rows that numpy's generator draws from seed
// 2020, so that its published numbers can be met.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include <ATen/core/Tensor.h>

#include "dydit/eval/inception_score.h"
#include "dydit/eval/kid.h"

namespace dydit {

inline constexpr int64_t kTorchFidelityRows = 1000;  // of a subset

/// numpy.random.RandomState(seed).permutation(n), again and again.
class NumpyPermutations {
 public:
  explicit NumpyPermutations(uint32_t seed) : random_(seed) {}
  std::vector<int64_t> next(int64_t n);

 private:
  std::mt19937 random_;
};

/// 10 parts of permuted rows; mean and deviation are what it prints.
InceptionScore torch_fidelity_inception_score(const at::Tensor& logits, int threads);

/// 100 subsets of 1,000 rows of each side; mean and deviation are what it prints. Throws Error for fewer
/// rows.
KidOfSubsets torch_fidelity_kid(const at::Tensor& generated, const at::Tensor& reference, int threads);

/// `subsets` times `size` rows of each side, (subsets, size) int64.
struct SubsetRows {
  at::Tensor generated, reference;
};
SubsetRows torch_fidelity_rows(int64_t generated, int64_t reference, int subsets, int64_t size);

}  // namespace dydit
