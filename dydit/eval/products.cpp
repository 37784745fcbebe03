#include "dydit/eval/products.h"

#include <algorithm>
#include <atomic>
#include <span>
#include <utility>
#include <vector>

#include <ATen/ATen.h>

#include "dydit/base/error.h"
#include "dydit/base/row_pool.h"
#include "dydit/base/team.h"

namespace dydit {
namespace {

using Block = std::pair<int64_t, int64_t>;  // its first row and column

at::Tensor rows_from(const at::Tensor& set, int64_t begin, at::ScalarType type) {
  return set.slice(0, begin, std::min(begin + kProductRows, set.size(0))).to(type);
}

// Each block on one thread.
void compute(const at::Tensor& x, const at::Tensor& y, std::span<const Block> blocks, at::ScalarType type,
             const ProductOptions& options, const std::function<void(const ProductBlock&)>& fn) {
  Team team(options.threads);
  std::vector<at::Tensor> buffers(static_cast<size_t>(team.threads()));
  std::atomic<long> done = 0;
  team.run(static_cast<int>(blocks.size()), [&](int b, int thread) {
    if (options.cancel && *options.cancel) throw Cancelled();
    const OneThread here;
    const auto [row, col] = blocks[b];
    const at::Tensor left = rows_from(x, row, type), right = rows_from(y, col, type);
    at::Tensor& products = buffers[thread];
    if (!products.defined() || products.size(0) != left.size(0) || products.size(1) != right.size(0))
      products = at::empty({left.size(0), right.size(0)}, left.options());
    at::mm_out(products, left, right.t());
    fn({row, col, products});
    ++done;
    if (thread == 0 && options.on_progress)
      options.on_progress({"blocks of products", done, static_cast<long>(blocks.size())});
  });
}

}  // namespace

void for_each_product(const at::Tensor& x, const at::Tensor& y, at::ScalarType type,
                      const ProductOptions& options, const std::function<void(const ProductBlock&)>& fn) {
  DYDIT_CHECK(x.size(1) == y.size(1),
              "features of {} and of {} numbers: a distance takes those of one extractor", x.size(1),
              y.size(1));
  std::vector<Block> blocks;
  for (int64_t row = 0; row < x.size(0); row += kProductRows) {
    for (int64_t col = 0; col < y.size(0); col += kProductRows) blocks.push_back({row, col});
  }
  compute(x, y, blocks, type, options, fn);
}

void for_each_own_product(const at::Tensor& x, at::ScalarType type, const ProductOptions& options,
                          const std::function<void(const ProductBlock&)>& fn) {
  std::vector<Block> blocks;
  for (int64_t row = 0; row < x.size(0); row += kProductRows) {
    for (int64_t col = row; col < x.size(0); col += kProductRows) blocks.push_back({row, col});
  }
  compute(x, x, blocks, type, options, fn);
}

}  // namespace dydit
