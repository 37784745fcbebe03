#include "dydit/eval/kid.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include <ATen/ATen.h>

#include "dydit/base/error.h"
#include "dydit/base/row_pool.h"

namespace dydit {
namespace {

// Sums of the kernel's rows and of its columns.
struct KernelSums {
  std::vector<double> rows, cols;
  double total = 0;
};

double total_of(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0);
}

// The sums of a block, which go to places of its own: what is added up afterwards has one order.
void add_block(const ProductBlock& block, double d, bool on_diagonal, double* row_sums, double* col_sums) {
  const int64_t rows = block.products.size(0), cols = block.products.size(1);
  double* values = block.products.data_ptr<double>();
  for (int64_t i = 0; i < rows; ++i, values += cols) {
    for (int64_t j = 0; j < cols; ++j) {
      const double base = values[j] / d + 1;
      values[j] = base * base * base;
    }
    if (on_diagonal) values[i] = 0;
    double sums[8] = {};
    int64_t j = 0;
    for (; j + 8 <= cols; j += 8) {
      for (int lane = 0; lane < 8; ++lane) sums[lane] += values[j + lane];
    }
    for (; j < cols; ++j) sums[0] += values[j];
    row_sums[i] = std::accumulate(sums, sums + 8, 0.0);
    for (int64_t c = 0; c < cols; ++c) col_sums[c] += values[c];
  }
}

int64_t blocks_of(int64_t rows) { return (rows + kProductRows - 1) / kProductRows; }

void add_to(std::vector<double>& sums, const double* part) {
  for (double& sum : sums) sum += *part++;
}

// Of the rows of x over those of y, and the other way round.
KernelSums kernel_sums(const at::Tensor& x, const at::Tensor& y, const ProductOptions& options) {
  const int64_t n = x.size(0), m = y.size(0);
  std::vector<double> row_parts(static_cast<size_t>(blocks_of(m) * n));  // (blocks of y, n)
  std::vector<double> col_parts(static_cast<size_t>(blocks_of(n) * m));  // (blocks of x, m)
  for_each_product(x, y, at::kDouble, options, [&](const ProductBlock& block) {
    add_block(block, static_cast<double>(x.size(1)), /*on_diagonal=*/false,
              row_parts.data() + block.col / kProductRows * n + block.row,
              col_parts.data() + block.row / kProductRows * m + block.col);
  });
  KernelSums sums{std::vector<double>(static_cast<size_t>(n)), std::vector<double>(static_cast<size_t>(m))};
  for (int64_t b = 0; b < blocks_of(m); ++b) add_to(sums.rows, row_parts.data() + b * n);
  for (int64_t b = 0; b < blocks_of(n); ++b) add_to(sums.cols, col_parts.data() + b * m);
  sums.total = total_of(sums.rows);
  return sums;
}

// Of the rows of x over its other rows.
KernelSums own_kernel_sums(const at::Tensor& x, const ProductOptions& options) {
  const int64_t n = x.size(0);
  std::vector<double> parts(
      static_cast<size_t>(blocks_of(n) * n));  // (blocks, n): a block and its mirror image
  for_each_own_product(x, at::kDouble, options, [&](const ProductBlock& block) {
    const bool on_diagonal = block.row == block.col;
    std::vector<double> mirrored(static_cast<size_t>(block.products.size(1)));
    add_block(block, static_cast<double>(x.size(1)), on_diagonal,
              parts.data() + block.col / kProductRows * n + block.row, mirrored.data());
    if (!on_diagonal)
      std::copy(mirrored.begin(), mirrored.end(), parts.data() + block.row / kProductRows * n + block.col);
  });
  KernelSums sums{std::vector<double>(static_cast<size_t>(n)), {}};
  for (int64_t b = 0; b < blocks_of(n); ++b) add_to(sums.rows, parts.data() + b * n);
  sums.total = total_of(sums.rows);
  return sums;
}

// Sum of k(x_i, x_i).
double diagonal_of(const at::Tensor& x) {
  const auto d = static_cast<double>(x.size(1));
  double sum = 0;
  for (int64_t i = 0; i < x.size(0); ++i) {
    const at::Tensor row = x[i].to(at::kDouble);
    sum += std::pow(row.dot(row).item<double>() / d + 1, 3);
  }
  return sum;
}

void check_size(const at::Tensor& x) {
  DYDIT_CHECK(x.size(0) >= 3, "KID of {} rows: three or more are needed", x.size(0));
}

double unbiased_mmd(double xx, double yy, double xy, double n, double m) {
  return xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2 * xy / (n * m);
}

double squared_deviations(const std::vector<double>& values) {
  const double mean = total_of(values) / static_cast<double>(values.size());
  double squares = 0;
  for (const double value : values) squares += (value - mean) * (value - mean);
  return squares;
}

}  // namespace

Kid kid(const at::Tensor& x, const at::Tensor& y, const ProductOptions& options) {
  check_size(x);
  check_size(y);
  const KernelSums xx = own_kernel_sums(x, options), yy = own_kernel_sums(y, options),
                   xy = kernel_sums(x, y, options);
  const auto n = static_cast<double>(x.size(0)), m = static_cast<double>(y.size(0));
  std::vector<double> without_x, without_y;
  for (size_t i = 0; i < xx.rows.size(); ++i)
    without_x.push_back(unbiased_mmd(xx.total - 2 * xx.rows[i], yy.total, xy.total - xy.rows[i], n - 1, m));
  for (size_t j = 0; j < yy.rows.size(); ++j)
    without_y.push_back(unbiased_mmd(xx.total, yy.total - 2 * yy.rows[j], xy.total - xy.cols[j], n, m - 1));
  const double biased =
      (xx.total + diagonal_of(x)) / (n * n) + (yy.total + diagonal_of(y)) / (m * m) - 2 * xy.total / (n * m);
  return {
      unbiased_mmd(xx.total, yy.total, xy.total, n, m),
      std::sqrt((n - 1) / n * squared_deviations(without_x) + (m - 1) / m * squared_deviations(without_y)),
      biased};
}

KidOfSubsets kid_of_subsets(const at::Tensor& x, const at::Tensor& y, const at::Tensor& x_rows,
                            const at::Tensor& y_rows, int threads) {
  KidOfSubsets result;
  for (int64_t s = 0; s < x_rows.size(0); ++s)
    result.each.push_back(
        kid(x.index_select(0, x_rows[s]), y.index_select(0, y_rows[s]), {.threads = threads}).unbiased);
  const auto count = static_cast<double>(result.each.size());
  result.mean = total_of(result.each) / count;
  const double squares = squared_deviations(result.each);
  result.deviation = std::sqrt(squares / count);
  result.deviation_ddof1 = std::sqrt(squares / (count - 1));
  return result;
}

}  // namespace dydit
