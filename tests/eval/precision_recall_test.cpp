// Precision and recall against plain loops in float64, where distances tie, vanish or hide in rounding.
#include "dydit/eval/precision_recall.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "dydit/base/row_pool.h"
#include "dydit/eval/feature_moments.h"
#include "dydit/eval/frechet.h"
#include "tests/support/features.h"
#include "tests/support/files.h"

namespace dydit {
namespace {

using test::random_features;

// From the differences, in float64.
at::Tensor plain_distances(const at::Tensor& x, const at::Tensor& y) {
  const OneThread here;
  return at::cdist(x.to(at::kDouble), y.to(at::kDouble), /*p=*/2, /*compute_mode=*/2);
}

struct Plain {
  double precision, recall;
  at::Tensor radii;  // of the generated
};

Plain plain_precision_recall(const at::Tensor& x, const at::Tensor& y) {
  const auto radii = [](const at::Tensor& rows) {
    at::Tensor own = plain_distances(rows, rows);
    own.fill_diagonal_(INFINITY);
    return std::get<0>(own.sort(1)).select(1, kNeighbours - 1);
  };
  const at::Tensor between = plain_distances(x, y);
  const auto share = [](const at::Tensor& inside) { return inside.to(at::kDouble).mean().item<double>(); };
  return {share((between <= radii(y)).any(1)), share((between <= radii(x).unsqueeze(1)).any(0)), radii(x)};
}

void expect_plain(const at::Tensor& x, const at::Tensor& y) {
  const Plain plain = plain_precision_recall(x, y);
  const PrecisionRecall got = precision_recall(x, y, {.threads = 2});
  EXPECT_EQ(got.precision, plain.precision);
  EXPECT_EQ(got.recall, plain.recall);
  EXPECT_LE((got.generated_radii - plain.radii).abs().max().item<double>(), 1e-12);
  const at::Tensor nearest = std::get<0>(plain_distances(x, y).min(1));
  EXPECT_LE((got.generated_nearest - nearest).abs().max().item<double>(), 1e-12);
}

TEST(PrecisionRecall, IsThatOfPlainLoops) {
  expect_plain(random_features(300, 8, 1), random_features(200, 8, 2, 0.3));
  expect_plain(random_features(2100, 4, 1), random_features(2300, 4, 2, 0.3));  // more than one block
}

// Float32 products lose all digits of distances beside such a mean.
TEST(PrecisionRecall, SurvivesALargeMean) {
  expect_plain(random_features(120, 8, 1, 3000), random_features(100, 8, 2, 3000));
}

TEST(PrecisionRecall, SurvivesDuplicates) {
  const at::Tensor x = random_features(30, 8, 1), y = random_features(40, 8, 2, 0.2);
  expect_plain(at::cat({x, x, x, x, y}), at::cat({y, x.slice(0, 0, 5), y}));
  expect_plain(at::ones({50, 8}), at::ones({60, 8}));
}

TEST(PrecisionRecall, TheEdgeOfABallIsInside) {
  // Reference 0, 1, 2, 3 on a line: the ball of 0 reaches to 3, that of 3 to 0.
  const at::Tensor reference = at::arange(4, at::kFloat).view({4, 1});
  const at::Tensor generated = at::tensor({-3.0f, 6.0f, 6.0001f, 7.0f}).view({4, 1});
  const PrecisionRecall got = precision_recall(generated, reference);
  EXPECT_EQ(got.precision, 0.5);
  EXPECT_TRUE(got.is_inside_reference.equal(at::tensor({1, 1, 0, 0}) != 0));
  EXPECT_EQ(got.reference_radii[0].item<double>(), 3);
  EXPECT_EQ(got.reference_radii[1].item<double>(), 2);
  EXPECT_EQ(got.reference_nearest[1].item<double>(), 1);
}

TEST(PrecisionRecall, OfASetWithItselfIsWhole) {
  const at::Tensor x = random_features(100, 8, 1);
  const PrecisionRecall got = precision_recall(x, x);
  EXPECT_EQ(got.precision, 1);
  EXPECT_EQ(got.recall, 1);
  EXPECT_EQ(got.generated_nearest.max().item<double>(), 0);
  EXPECT_GT(got.reference_nearest.min().item<double>(), 0);
}

TEST(PrecisionRecall, ErrorIsThatOfLeavingGroupsOut) {
  const at::Tensor x = random_features(160, 4, 1), y = random_features(150, 4, 2, 0.4);
  std::vector<double> precisions, recalls;
  for (int group = 0; group < kJackknifeGroups; ++group) {
    std::vector<at::Tensor> rest;
    for (int64_t i = 0; i < 160; ++i) {
      if (i % kJackknifeGroups != group) rest.push_back(x[i]);
    }
    const Plain plain = plain_precision_recall(at::stack(rest), y);
    precisions.push_back(plain.precision);
    recalls.push_back(plain.recall);
  }
  const PrecisionRecall got = precision_recall(x, y);
  EXPECT_NEAR(*got.precision_error, jackknife_error(precisions), 1e-12);
  EXPECT_NEAR(*got.recall_error, jackknife_error(recalls), 1e-12);
  EXPECT_GT(*got.recall_error, 0);
  EXPECT_FALSE(precision_recall(x.slice(0, 0, 39), y).recall_error);
}

TEST(PrecisionRecall, DoesNotDependOnThreads) {
  const at::Tensor x = random_features(4200, 3, 1), y = random_features(2100, 3, 2, 0.3);
  const PrecisionRecall one = precision_recall(x, y, {.threads = 1}),
                        four = precision_recall(x, y, {.threads = 4});
  EXPECT_EQ(one.precision, four.precision);
  EXPECT_EQ(one.recall, four.recall);
  EXPECT_EQ(*one.recall_error, *four.recall_error);
  EXPECT_TRUE(one.generated_nearest.equal(four.generated_nearest));
}

TEST(PrecisionRecall, RefusesTooFewRows) {
  test::expect_error([] { precision_recall(random_features(3, 2, 1), random_features(9, 2, 1)); },
                     "precision and recall of 3 rows: more than 3 are needed");
}

}  // namespace
}  // namespace dydit
