// Frechet distances: closed forms, invariances, and what is lost where covariances are singular.
#include "dydit/eval/frechet.h"

#include <cmath>
#include <numeric>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "dydit/eval/feature_moments.h"
#include "tests/support/features.h"
#include "tests/support/files.h"

namespace dydit {
namespace {

using test::random_features;

Gaussian gaussian(const at::Tensor& rows) { return gaussian_of(moments_of(rows)[0]); }

double largest_difference(const at::Tensor& a, const at::Tensor& b) {
  return (a - b).abs().max().item<double>();
}

TEST(FeatureMoments, AreMeanAndUnbiasedCovariance) {
  const at::Tensor rows = random_features(2500, 7, 1);  // three blocks
  const at::Tensor x = rows.to(at::kDouble), centred = x - x.mean(0);
  const Gaussian got = gaussian(rows);
  EXPECT_LT(largest_difference(got.mean, x.mean(0)), 1e-14);
  EXPECT_LT(largest_difference(got.cov, at::mm(centred.t(), centred) / 2499), 1e-13);
}

TEST(FeatureMoments, AreTheSameForAnyBatchAndThreads) {
  const at::Tensor rows = random_features(2500, 7, 1);
  for (const int groups : {1, kJackknifeGroups}) {
    const std::vector<Moments> whole = moments_of(rows, {.groups = groups});
    for (const int64_t batch : {1, 37, 1024}) {
      FeatureMoments streamed(7, {.groups = groups, .threads = 3});
      for (int64_t i = 0; i < rows.size(0); i += batch)
        streamed.add(rows.slice(0, i, std::min(i + batch, rows.size(0))));
      const std::vector<Moments> parts = streamed.finish();
      for (int g = 0; g < groups; ++g) {
        EXPECT_EQ(parts[g].count, whole[g].count);
        EXPECT_TRUE(parts[g].mean.equal(whole[g].mean)) << batch;
        EXPECT_TRUE(parts[g].scatter.equal(whole[g].scatter)) << batch;
      }
    }
  }
}

TEST(FeatureMoments, PartsOfProcessesMergeToTheWhole) {
  const at::Tensor rows = random_features(2500, 7, 1);
  const Moments whole = moments_of(rows)[0];
  std::vector<Moments> parts;
  for (const auto& [begin, end] : {std::pair{1700, 2500}, {0, 3}, {3, 1700}})  // in no order
    parts.push_back(moments_of(rows.slice(0, begin, end), {.first_image = begin})[0]);
  const Moments all = merged(parts);
  EXPECT_EQ(all.count, 2500);
  EXPECT_LT(largest_difference(all.mean, whole.mean), 1e-13);
  EXPECT_LT(largest_difference(all.scatter, whole.scatter), 1e-12 * whole.scatter.max().item<double>());
}

TEST(FeatureMoments, GroupsAreImagesByIndex) {
  const at::Tensor rows = random_features(50, 3, 1);
  const std::vector<Moments> groups =
      moments_of(rows.slice(0, 25), {.groups = kJackknifeGroups, .first_image = 25});
  EXPECT_EQ(groups[5].count, 2);  // images 25 and 45: rows 0 and 20
  EXPECT_EQ(groups[10].count, 1);
  const at::Tensor two = at::stack({rows[25], rows[45]}).to(at::kDouble);
  EXPECT_LT(largest_difference(groups[5].mean, two.mean(0)), 1e-15);
}

TEST(FeatureMoments, RefuseWhatIsNoFeature) {
  at::Tensor rows = random_features(30, 3, 1);
  rows[17][2] = std::nan("");
  test::expect_error([&] { moments_of(rows); }, "features: row 17 holds a number that is not finite");
  rows[17][2] = -INFINITY;
  test::expect_error([&] { moments_of(rows); }, "row 17 holds a number that is not finite");
  FeatureMoments moments(4);
  test::expect_error([&] { moments.add(random_features(2, 3, 1)); },
                     "Float of shape (2, 3); expected contiguous float32 rows of 4 numbers");
  test::expect_error([&] { gaussian(random_features(1, 3, 1)); }, "1 rows: a covariance needs two or more");
  test::expect_error([&] { factor_rows(random_features(1, 3, 1)); }, "1 rows: a covariance needs");
}

// Diagonal covariances: sum (s_a - s_b)^2 + |m_a - m_b|^2.
TEST(Frechet, HasTheClosedFormOfIndependentColumns) {
  const at::Tensor deviation_a = at::tensor({1.0, 2.0, 0.0}, at::kDouble),
                   deviation_b = at::tensor({3.0, 2.0, 0.5}, at::kDouble);
  const Gaussian a{at::zeros({3}, at::kDouble), at::diag(deviation_a.square())},
      b{at::tensor({0.0, 1.0, 2.0}, at::kDouble), at::diag(deviation_b.square())};
  EXPECT_NEAR(frechet_distance(factor(a), factor(b)), 4 + 0.25 + 5, 1e-14);
  EXPECT_NEAR(quick_frechet_distance(factor(a), b), 4 + 0.25 + 5, 1e-14);
}

TEST(Frechet, AllWaysAgreeOnFullRanks) {
  const at::Tensor x = random_features(300, 20, 1), y = random_features(200, 20, 2, 0.1);
  const Gaussian a = gaussian(x), b = gaussian(y);
  const double by_factors = frechet_distance(factor(a), factor(b));
  EXPECT_GT(by_factors, 0.1);
  EXPECT_NEAR(frechet_distance(factor_rows(x), factor_rows(y)), by_factors, 1e-12 * by_factors);
  EXPECT_NEAR(frechet_distance(factor_rows(x), factor(b)), by_factors, 1e-12 * by_factors);
  EXPECT_NEAR(quick_frechet_distance(factor(a), b), by_factors, 1e-11 * by_factors);
  EXPECT_NEAR(frechet_distance(factor(b), factor(a)), by_factors, 1e-13 * by_factors);
}

// Two sets of two rows span lines: C = s^2 u u^T, and tr (C_a C_b)^(1/2) = s_a s_b |u_a . u_b|.
TEST(Frechet, OfFewRowsIsExact) {
  at::Tensor x = at::zeros({2, 50}), y = at::zeros({2, 50});
  x[0][3] = 4;  // s^2 = 8 along column 3
  y[0][3] = 3;
  y[0][4] = 4;                                     // s^2 = 12.5 along (0.6, 0.8)
  const double means = 0.25 + 4, root = 10 * 0.6;  // (2 - 1.5)^2 + 2^2; sqrt(8 * 12.5) * 0.6
  EXPECT_NEAR(frechet_distance(factor_rows(x), factor_rows(y)), means + 8 + 12.5 - 2 * root, 1e-13);
}

TEST(Frechet, OfASetWithItselfIsNothing) {
  const at::Tensor many = random_features(300, 20, 1), few = random_features(10, 20, 1);
  EXPECT_NEAR(frechet_distance(factor(gaussian(many)), factor(gaussian(many))), 0, 1e-12);
  EXPECT_NEAR(frechet_distance(factor_rows(few), factor_rows(few)), 0, 1e-12);
}

TEST(Frechet, RefusesFeaturesOfTwoExtractors) {
  const FactoredGaussian a = factor_rows(random_features(5, 3, 1));
  test::expect_error([&] { frechet_distance(a, factor_rows(random_features(5, 4, 1))); },
                     "features of 3 and of 4 numbers: a distance takes those of one extractor");
}

TEST(Frechet, DoesNotDependOnThreads) {
  const at::Tensor x = random_features(2500, 20, 1);
  const FactoredGaussian reference = factor(gaussian(random_features(300, 20, 2)));
  const std::vector<Moments> groups = moments_of(x, {.groups = kJackknifeGroups});
  EXPECT_EQ(frechet_without_groups(reference, groups, 1), frechet_without_groups(reference, groups, 3));
  const std::vector<int64_t> sizes = {500, 1000, 2500};
  EXPECT_EQ(fid_infinity(reference, x, sizes, 1).distances, fid_infinity(reference, x, sizes, 3).distances);
}

TEST(Jackknife, OfAMeanIsItsStandardError) {
  const std::vector<double> values = {1, 4, 4, 7, 9};
  const double sum = std::accumulate(values.begin(), values.end(), 0.0);
  std::vector<double> without;
  double squares = 0;
  for (const double value : values) {
    without.push_back((sum - value) / 4);
    squares += (value - sum / 5) * (value - sum / 5);
  }
  EXPECT_NEAR(jackknife_error(without), std::sqrt(squares / 4 / 5), 1e-15);
}

TEST(Jackknife, OfAPairIsThatOfTheDifference) {
  const std::vector<double> a = {1, 2, 4}, b = {11, 12, 14};
  EXPECT_GT(jackknife_error(a), 1);
  EXPECT_EQ(paired_jackknife_error(a, b), 0);
  test::expect_error([&] { paired_jackknife_error(a, std::vector<double>{1}); },
                     "3 and 1 groups: a pair has the same ones");
}

// Leaving group g out is the distance of the rows that are not its.
TEST(Jackknife, LeavesTheRowsOfAGroupOut) {
  const at::Tensor x = random_features(200, 5, 1), y = random_features(300, 5, 2, 0.1);
  std::vector<at::Tensor> rest;
  for (int64_t i = 0; i < 200; ++i) {
    if (i % kJackknifeGroups != 7) rest.push_back(x[i]);
  }
  const double wanted = frechet_distance(factor(gaussian(at::stack(rest))), factor(gaussian(y)));
  const auto distances =
      frechet_without_groups(factor(gaussian(y)), moments_of(x, {.groups = kJackknifeGroups}), 1);
  ASSERT_EQ(distances.size(), 20u);
  EXPECT_NEAR(distances[7], wanted, 1e-11);
}

TEST(FidInfinity, TakesFifteenSizes) {
  EXPECT_EQ(fid_infinity_sizes(50'000).front(), 5000);
  EXPECT_EQ(fid_infinity_sizes(140'000).front(), 5000);
  EXPECT_EQ(fid_infinity_sizes(2000).front(), 200);
  EXPECT_EQ(fid_infinity_sizes(2000).back(), 2000);
  EXPECT_EQ(fid_infinity_sizes(2000).size(), 15u);
}

TEST(FidInfinity, OrderIsAPermutation) {
  std::vector<int64_t> order = fixed_permutation(1000);
  EXPECT_EQ(order, fixed_permutation(1000));
  EXPECT_FALSE(std::is_sorted(order.begin(), order.end()));
  std::sort(order.begin(), order.end());
  for (int64_t i = 0; i < 1000; ++i) EXPECT_EQ(order[i], i);
}

// The fitted line goes through the mean of the points, and without a bias its intercept is the distance.
TEST(FidInfinity, IsTheInterceptOfALineIn1OverN) {
  const at::Tensor x = random_features(4000, 4, 1), y = random_features(4000, 4, 2, 0.2);
  const FidInfinity fit = fid_infinity(factor(gaussian(y)), x, fid_infinity_sizes(4000), 1);
  double distance = 0, inverse = 0;
  for (size_t k = 0; k < 15; ++k) {
    distance += fit.distances[k] / 15;
    inverse += 1.0 / static_cast<double>(fit.sizes[k]) / 15;
  }
  EXPECT_NEAR(fit.intercept + fit.slope * inverse, distance, 1e-12);
  EXPECT_NEAR(fit.distances.back(), frechet_distance(factor(gaussian(x)), factor(gaussian(y))), 1e-10);
  EXPECT_NEAR(fit.intercept, 4 * 0.04, 0.03);
  test::expect_error(
      [&] {
        fid_infinity(factor(gaussian(y)), x, std::vector<int64_t>{0, 10}, 1);
      },
      "FID-infinity of 4000 images: expected two or more rising sizes from 2 on");
}

}  // namespace
}  // namespace dydit
