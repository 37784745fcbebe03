// Frechet distance of two Gaussians without the square root of a matrix that is not symmetric: for R_a^T R_a
// = C_a, R_b^T R_b = C_b, tr (C_a C_b)^(1/2) is the sum of the singular values of R_a R_b^T. In float64, on
// one thread each: no bit depends on how many there are.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include <ATen/core/Tensor.h>

#include "dydit/eval/feature_moments.h"

namespace dydit {

/// A Gaussian whose covariance is root^T root.
struct FactoredGaussian {
  at::Tensor mean;   // (d) float64
  at::Tensor root;   // (r, d) float64
  double trace = 0;  // of the covariance
};

/// By its eigenvalues (those below 0 count as 0): r = d.
FactoredGaussian factor(const Gaussian& gaussian);
/// The centred rows themselves, over sqrt(n - 1): r = n. The way for n <= d, where a covariance is singular
/// and its eigenvalues have lost their digits. rows (n, d) float32.
FactoredGaussian factor_rows(const at::Tensor& rows);

/// |m_a - m_b|^2 + tr C_a + tr C_b - 2 tr (C_a C_b)^(1/2); rounding may leave it a little below 0.
double frechet_distance(const FactoredGaussian& a, const FactoredGaussian& b);

/// The same from the eigenvalues of root C root^T, several times cheaper. Of eigenvalues that vanish half the
/// digits are lost: good enough for error bars.
double quick_frechet_distance(const FactoredGaussian& a, const Gaussian& b);

/// The distance with each group of the rows left out. groups: moments_of(.., {.groups = kJackknifeGroups}).
std::vector<double> frechet_without_groups(const FactoredGaussian& reference, std::span<const Moments> groups,
                                           int threads);

/// sqrt((n - 1) / n sum (t_g - mean)^2) of n values that each leave a group out.
double jackknife_error(std::span<const double> without_group);
/// The error of the difference of two models that made the same images (seeds and labels).
double paired_jackknife_error(std::span<const double> a, std::span<const double> b);

/// FID = intercept + slope / N, fitted to the distances of the first N rows (Chong & Forsyth 2020).
struct FidInfinity {
  std::vector<int64_t> sizes;
  std::vector<double> distances;
  double intercept = 0, slope = 0;
};

/// 15 sizes from `rows` / 10, at most 5,000, to `rows`.
std::vector<int64_t> fid_infinity_sizes(int64_t rows);
/// 0..n-1 in an order that is a function of n.
std::vector<int64_t> fixed_permutation(int64_t n);
/// rows (n, d) float32 in the order in which they are taken: that of fixed_permutation, unless images come in
/// no order.
FidInfinity fid_infinity(const FactoredGaussian& reference, const at::Tensor& rows,
                         std::span<const int64_t> sizes, int threads);

}  // namespace dydit
