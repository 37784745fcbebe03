// Inception Score and KID by their definitions.
#include <cmath>
#include <numeric>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "dydit/eval/frechet.h"
#include "dydit/eval/inception_score.h"
#include "dydit/eval/kid.h"
#include "tests/support/features.h"
#include "tests/support/files.h"

namespace dydit {
namespace {

using test::random_features;

InceptionScore whole_score(const at::Tensor& logits) {
  return inception_score(logits, parts_of_size(logits.size(0), logits.size(0)), 1);
}

// Certain of one class each, all classes alike.
at::Tensor certain_logits(int64_t rows, int64_t classes) {
  at::Tensor logits = at::zeros({rows, classes});
  for (int64_t i = 0; i < rows; ++i) logits[i][i % classes] = 1000;
  return logits;
}

TEST(InceptionScore, OfCertainRowsIsTheNumberOfClasses) {
  const InceptionScore score = whole_score(certain_logits(100, 5));  // probabilities underflow to 0
  EXPECT_NEAR(score.mean, 5, 1e-12);
  EXPECT_NEAR(*score.error, 0, 1e-9);
}

TEST(InceptionScore, OfRowsThatSayNothingIsOne) {
  EXPECT_NEAR(whole_score(at::ones({100, 5})).mean, 1, 1e-14);
}

TEST(InceptionScore, AShortLastPartCountsAsMuch) {
  at::Tensor logits = certain_logits(11, 5);
  EXPECT_EQ(parts_of_size(11, 10), (std::vector<int64_t>{0, 10, 11}));
  EXPECT_EQ(parts_of_size(10, 10), (std::vector<int64_t>{0, 10}));
  const InceptionScore score = inception_score(logits, parts_of_size(11, 10), 1);
  EXPECT_NEAR(score.mean, (5 + 1) / 2.0, 1e-12);
  EXPECT_NEAR(score.deviation, 2, 1e-12);  // ddof 0
  EXPECT_FALSE(score.error);               // of one row there is none
}

TEST(InceptionScore, PartsByNumberAreCutAsTorchFidelityDoes) {
  EXPECT_EQ(parts_of_number(11, 3), (std::vector<int64_t>{0, 3, 7, 11}));
  test::expect_error([] { inception_score(certain_logits(2, 5), parts_of_number(2, 3), 1); },
                     "Inception Score of 2 images in 3 parts: a part has none");
}

TEST(InceptionScore, ErrorIsThatOfLeavingGroupsOut) {
  const at::Tensor logits = random_features(200, 6, 3);
  std::vector<double> without;
  for (int group = 0; group < kJackknifeGroups; ++group) {
    std::vector<at::Tensor> rest;
    for (int64_t i = 0; i < 200; ++i) {
      if (i % kJackknifeGroups != group) rest.push_back(logits[i]);
    }
    without.push_back(whole_score(at::stack(rest)).mean);
  }
  EXPECT_NEAR(*whole_score(logits).error, jackknife_error(without), 1e-9);
}

TEST(InceptionScore, DoesNotDependOnThreads) {
  const at::Tensor logits = random_features(500, 6, 3);
  const std::vector<int64_t> bounds = parts_of_size(500, 120);
  EXPECT_EQ(inception_score(logits, bounds, 1).mean, inception_score(logits, bounds, 3).mean);
}

TEST(InceptionScore, RefusesWhatIsNotFinite) {
  at::Tensor logits = certain_logits(10, 5);
  logits[3][1] = INFINITY;
  test::expect_error([&] { whole_score(logits); }, "logits: row 3 holds a number that is not finite");
}

TEST(InceptionScore, KnowsImagesByClass) {
  std::vector<int64_t> shuffled(100), sorted(100);
  for (int64_t i = 0; i < 100; ++i) {
    shuffled[i] = i * 7 % 10;
    sorted[i] = i / 10;
  }
  EXPECT_TRUE(is_class_ordered(sorted));
  EXPECT_FALSE(is_class_ordered(shuffled));
  EXPECT_FALSE(is_class_ordered(std::vector<int64_t>(100, 3)));  // one class has no order
}

double kernel(const at::Tensor& x, const at::Tensor& y) {
  const at::Tensor a = x.to(at::kDouble), b = y.to(at::kDouble);
  return std::pow(a.dot(b).item<double>() / static_cast<double>(a.size(0)) + 1, 3);
}

double plain_mmd(const at::Tensor& x, const at::Tensor& y, bool diagonal) {
  const int64_t n = x.size(0), m = y.size(0);
  double xx = 0, yy = 0, xy = 0;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) xx += i != j || diagonal ? kernel(x[i], x[j]) : 0;
    for (int64_t j = 0; j < m; ++j) xy += kernel(x[i], y[j]);
  }
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < m; ++j) yy += i != j || diagonal ? kernel(y[i], y[j]) : 0;
  }
  const int64_t own = diagonal ? 0 : 1;
  return xx / static_cast<double>(n * (n - own)) + yy / static_cast<double>(m * (m - own)) -
         2 * xy / static_cast<double>(n * m);
}

TEST(Kid, IsTheSumOfItsDefinition) {
  const at::Tensor x = random_features(13, 6, 1), y = random_features(9, 6, 2, 0.3);
  const Kid got = kid(x, y);
  EXPECT_NEAR(got.unbiased, plain_mmd(x, y, /*diagonal=*/false), 1e-12);
  EXPECT_NEAR(got.biased, plain_mmd(x, y, /*diagonal=*/true), 1e-12);
}

TEST(Kid, ErrorIsThatOfLeavingRowsOut) {
  const at::Tensor x = random_features(13, 6, 1), y = random_features(9, 6, 2, 0.3);
  const auto without = [](const at::Tensor& rows, int64_t row) {
    return at::cat({rows.slice(0, 0, row), rows.slice(0, row + 1)});
  };
  std::vector<double> without_x, without_y;
  for (int64_t i = 0; i < 13; ++i) without_x.push_back(kid(without(x, i), y).unbiased);
  for (int64_t j = 0; j < 9; ++j) without_y.push_back(kid(x, without(y, j)).unbiased);
  EXPECT_NEAR(kid(x, y).error, std::hypot(jackknife_error(without_x), jackknife_error(without_y)), 1e-12);
}

// Several blocks a side: their sums come in one order.
TEST(Kid, DoesNotDependOnThreads) {
  const at::Tensor x = random_features(4500, 3, 1), y = random_features(2100, 3, 2);
  const Kid one = kid(x, y, {.threads = 1}), three = kid(x, y, {.threads = 3});
  EXPECT_EQ(one.unbiased, three.unbiased);
  EXPECT_EQ(one.error, three.error);
  const Kid turned = kid(y, x);
  EXPECT_NEAR(turned.unbiased, one.unbiased, 1e-12);
  EXPECT_NEAR(turned.error, one.error, 1e-12);
}

TEST(Kid, OfASetWithItselfMayBeBelowNothing) {
  const at::Tensor x = random_features(20, 6, 1);
  EXPECT_LT(kid(x, x).unbiased, 0);
  EXPECT_NEAR(kid(x, x).biased, 0, 1e-12);
}

TEST(Kid, OfSubsetsIsTheMeanOfEach) {
  const at::Tensor x = random_features(20, 6, 1), y = random_features(15, 6, 2);
  const at::Tensor x_rows = at::tensor({0, 3, 7, 11, 2, 9}, at::kLong).view({2, 3}),
                   y_rows = at::tensor({1, 2, 3, 14, 5, 6}, at::kLong).view({2, 3});
  const KidOfSubsets got = kid_of_subsets(x, y, x_rows, y_rows, 1);
  const double first = plain_mmd(at::stack({x[0], x[3], x[7]}), at::stack({y[1], y[2], y[3]}), false),
               second = plain_mmd(at::stack({x[11], x[2], x[9]}), at::stack({y[14], y[5], y[6]}), false);
  EXPECT_NEAR(got.mean, (first + second) / 2, 1e-12);
  EXPECT_NEAR(got.deviation, std::abs(first - second) / 2, 1e-12);
  EXPECT_NEAR(got.deviation_ddof1, std::abs(first - second) / std::sqrt(2), 1e-12);
}

TEST(Kid, RefusesTooFewRows) {
  test::expect_error([] { kid(random_features(2, 3, 1), random_features(9, 3, 1)); },
                     "KID of 2 rows: three or more are needed");
}

TEST(Products, StopWhereTheyAreTold) {
  const CancelFlag cancel = true;
  EXPECT_THROW(kid(random_features(9, 3, 1), random_features(9, 3, 1), {.cancel = &cancel}), Cancelled);
}

TEST(Products, TellHowFarTheyAre) {
  long last = 0, total = 0;
  for_each_product(random_features(4100, 2, 1), random_features(9, 2, 1), at::kFloat,
                   {.on_progress =
                        [&](const Progress& progress) {
                          EXPECT_GT(progress.done, last);
                          last = progress.done;
                          total = progress.total;
                        }},
                   [](const ProductBlock&) {});
  EXPECT_EQ(last, 3);
  EXPECT_EQ(total, 3);
  test::expect_error(
      [] {
        for_each_product(random_features(9, 2, 1), random_features(9, 3, 1), at::kFloat, {},
                         [](const ProductBlock&) {});
      },
      "features of 2 and of 3 numbers: a distance takes those of one extractor");
}

}  // namespace
}  // namespace dydit
