#include "dydit/eval/torch_fidelity.h"

#include <algorithm>
#include <bit>
#include <numeric>
#include <utility>

#include <ATen/ATen.h>

#include "dydit/base/error.h"

namespace dydit {
namespace {

constexpr uint32_t kSeed = 2020;
constexpr int kSubsets = 100;

at::Tensor to_index(const std::vector<int64_t>& rows) {
  return at::tensor(at::ArrayRef<int64_t>(rows), at::kLong);
}

}  // namespace

// numpy's legacy shuffle: from the last row on, changed with one below drawn by rejection under the next
// power of two.
std::vector<int64_t> NumpyPermutations::next(int64_t n) {
  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  for (auto i = static_cast<uint32_t>(n - 1); i > 0; --i) {
    const uint32_t mask = ~uint32_t{0} >> std::countl_zero(i);
    uint32_t other = 0;
    do other = static_cast<uint32_t>(random_()) & mask;
    while (other > i);
    std::swap(order[i], order[other]);
  }
  return order;
}

InceptionScore torch_fidelity_inception_score(const at::Tensor& logits, int threads) {
  const int64_t n = logits.size(0);
  const at::Tensor order = to_index(NumpyPermutations(kSeed).next(n));
  return inception_score(logits.index_select(0, order), parts_of_number(n, kTorchFidelityParts), threads);
}

SubsetRows torch_fidelity_rows(int64_t generated, int64_t reference, int subsets, int64_t size) {
  NumpyPermutations random(kSeed);
  std::vector<at::Tensor> ours, theirs;
  for (int s = 0; s < subsets; ++s) {
    ours.push_back(to_index(random.next(generated)).slice(0, 0, size));
    theirs.push_back(to_index(random.next(reference)).slice(0, 0, size));
  }
  return {at::stack(ours), at::stack(theirs)};
}

KidOfSubsets torch_fidelity_kid(const at::Tensor& generated, const at::Tensor& reference, int threads) {
  const int64_t fewest = std::min(generated.size(0), reference.size(0));
  DYDIT_CHECK(
      fewest >= kTorchFidelityRows,
      "torch-fidelity's KID takes subsets of {} images; here are {}. KID over all rows has no such bound.",
      kTorchFidelityRows, fewest);
  const SubsetRows rows =
      torch_fidelity_rows(generated.size(0), reference.size(0), kSubsets, kTorchFidelityRows);
  return kid_of_subsets(generated, reference, rows.generated, rows.reference, threads);
}

}  // namespace dydit
