#include "dydit/eval/frechet.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include <ATen/ATen.h>
#include <ATen/core/PhiloxRNGEngine.h>

#include "dydit/base/error.h"
#include "dydit/base/row_pool.h"

namespace dydit {
namespace {

void check_dimension(const FactoredGaussian& a, const at::Tensor& mean) {
  DYDIT_CHECK(a.mean.size(0) == mean.size(0),
              "features of {} and of {} numbers: a distance takes those of one extractor", a.mean.size(0),
              mean.size(0));
}

double squared_norm(const at::Tensor& vector) { return vector.dot(vector).item<double>(); }

}  // namespace

FactoredGaussian factor(const Gaussian& gaussian) {
  const OneThread here;
  const auto [values, vectors] = at::linalg_eigh(gaussian.cov);
  return {gaussian.mean, (vectors * values.clamp_min(0).sqrt()).t().contiguous(),
          gaussian.cov.trace().item<double>()};
}

FactoredGaussian factor_rows(const at::Tensor& rows) {
  DYDIT_CHECK(rows.size(0) >= 2, "{} rows: a covariance needs two or more", rows.size(0));
  const OneThread here;
  at::Tensor x = rows.to(at::kDouble);
  const at::Tensor mean = x.mean(0);
  x.sub_(mean).div_(std::sqrt(static_cast<double>(rows.size(0) - 1)));
  return {mean, x, squared_norm(x.flatten())};
}

double frechet_distance(const FactoredGaussian& a, const FactoredGaussian& b) {
  check_dimension(a, b.mean);
  const OneThread here;
  const double product_root = at::linalg_svdvals(at::mm(a.root, b.root.t())).sum().item<double>();
  return squared_norm(a.mean - b.mean) + a.trace + b.trace - 2 * product_root;
}

double quick_frechet_distance(const FactoredGaussian& a, const Gaussian& b) {
  check_dimension(a, b.mean);
  const OneThread here;
  const at::Tensor product = at::mm(at::mm(a.root, b.cov), a.root.t());
  const double product_root =
      at::linalg_eigvalsh((product + product.t()) / 2).clamp_min(0).sqrt().sum().item<double>();
  return squared_norm(a.mean - b.mean) + a.trace + b.cov.trace().item<double>() - 2 * product_root;
}

std::vector<double> frechet_without_groups(const FactoredGaussian& reference, std::span<const Moments> groups,
                                           int threads) {
  std::vector<double> distances(groups.size());
  RowPool(threads).run(static_cast<int>(groups.size()), [&](int group) {
    distances[group] = quick_frechet_distance(reference, gaussian_of(merged(groups, group)));
  });
  return distances;
}

double jackknife_error(std::span<const double> without_group) {
  const auto n = static_cast<double>(without_group.size());
  const double mean = std::accumulate(without_group.begin(), without_group.end(), 0.0) / n;
  double squares = 0;
  for (const double value : without_group) squares += (value - mean) * (value - mean);
  return std::sqrt((n - 1) / n * squares);
}

double paired_jackknife_error(std::span<const double> a, std::span<const double> b) {
  DYDIT_CHECK(a.size() == b.size() && !a.empty(), "{} and {} groups: a pair has the same ones", a.size(),
              b.size());
  std::vector<double> differences(a.size());
  std::transform(a.begin(), a.end(), b.begin(), differences.begin(), std::minus());
  return jackknife_error(differences);
}

std::vector<int64_t> fid_infinity_sizes(int64_t rows) {
  constexpr int kSizes = 15;
  constexpr int64_t kLargestFirst = 5000;
  const int64_t first = std::min(kLargestFirst, rows / 10);
  std::vector<int64_t> sizes;
  for (int k = 0; k < kSizes; ++k) sizes.push_back(first + (rows - first) * k / (kSizes - 1));
  return sizes;
}

std::vector<int64_t> fixed_permutation(int64_t n) {
  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  at::philox_engine random(/*seed=*/0, /*subsequence=*/static_cast<uint64_t>(n));
  for (int64_t i = n - 1; i > 0; --i) {
    const uint64_t bits = static_cast<uint64_t>(random()) << 32 | random();
    std::swap(order[i], order[bits % static_cast<uint64_t>(i + 1)]);
  }
  return order;
}

FidInfinity fid_infinity(const FactoredGaussian& reference, const at::Tensor& rows,
                         std::span<const int64_t> sizes, int threads) {
  DYDIT_CHECK(sizes.size() >= 2 && sizes[0] >= 2 && std::is_sorted(sizes.begin(), sizes.end()) &&
                  sizes.front() < sizes.back() && sizes.back() <= rows.size(0),
              "FID-infinity of {} images: expected two or more rising sizes from 2 on", rows.size(0));
  std::vector<Moments> pieces;  // the rows between two sizes
  int64_t begin = 0;
  for (const int64_t end : sizes) {
    pieces.push_back(moments_of(rows.slice(0, begin, end), {.first_image = begin, .threads = threads})[0]);
    begin = end;
  }
  FidInfinity result{{sizes.begin(), sizes.end()}, std::vector<double>(sizes.size())};
  RowPool(threads).run(static_cast<int>(sizes.size()), [&](int k) {
    const Moments moments = merged(std::span(pieces).first(static_cast<size_t>(k) + 1));
    result.distances[k] = quick_frechet_distance(reference, gaussian_of(moments));
  });
  const auto count = static_cast<double>(sizes.size());
  double mean_x = 0, mean_y = 0, xx = 0, xy = 0;
  for (size_t k = 0; k < sizes.size(); ++k) {
    mean_x += 1 / static_cast<double>(sizes[k]) / count;
    mean_y += result.distances[k] / count;
  }
  for (size_t k = 0; k < sizes.size(); ++k) {
    const double x = 1 / static_cast<double>(sizes[k]) - mean_x;
    xx += x * x;
    xy += x * (result.distances[k] - mean_y);
  }
  result.slope = xy / xx;
  result.intercept = mean_y - result.slope * mean_x;
  return result;
}

}  // namespace dydit
