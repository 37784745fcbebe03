// All metrics together: what each is made of, what is absent, and what is warned of.
#include "dydit/eval/metrics.h"

#include <algorithm>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "dydit/eval/kid.h"
#include "dydit/eval/precision_recall.h"
#include "dydit/eval/torch_fidelity.h"
#include "tests/support/features.h"
#include "tests/support/files.h"

namespace dydit {
namespace {

using test::random_features;

FeatureStatistics reference_of(const at::Tensor& rows, bool keeps_rows = true) {
  return {.features = gaussian_of(moments_of(rows)[0]),
          .spatial = {},
          .rows = keeps_rows ? rows : at::Tensor(),
          .images = rows.size(0),
          .origin = {}};
}

bool warns(const Metrics& metrics, const std::string& part) {
  return std::any_of(metrics.warnings.begin(), metrics.warnings.end(),
                     [&](const std::string& warning) { return warning.find(part) != warning.npos; });
}

const at::Tensor kRows = random_features(300, 6, 1), kReference = random_features(250, 6, 2, 0.2);

TEST(Metrics, AreThoseOfTheirFunctions) {
  const Metrics got = measure({kRows, {}, {}, {}}, reference_of(kReference));
  const std::vector<Moments> groups = moments_of(kRows, {.groups = kJackknifeGroups});
  const FactoredGaussian reference = factor(reference_of(kReference).features);
  const double fid = frechet_distance(factor(gaussian_of(merged(groups))), reference);
  EXPECT_EQ(got.fid->value, fid);
  EXPECT_EQ(got.fid->error, jackknife_error(frechet_without_groups(reference, groups, 1)));
  const Kid distance = kid(kRows, kReference);
  EXPECT_EQ(got.kid, distance.unbiased);
  EXPECT_EQ(got.kid_error, distance.error);
  const PrecisionRecall pairs = precision_recall(kRows, kReference);
  EXPECT_EQ(got.precision, pairs.precision);
  EXPECT_EQ(got.recall_error, pairs.recall_error);
  EXPECT_FALSE(got.sfid || got.inception_score || got.class_agreement || got.fid_infinity);
  EXPECT_EQ(got.n, 300);
  EXPECT_EQ(got.reference_n, 250);
}

TEST(Metrics, DoNotDependOnThreads) {
  const Metrics one = measure({kRows, {}, kRows, {}}, reference_of(kReference), {.fid_infinity = true});
  const Metrics three =
      measure({kRows, {}, kRows, {}}, reference_of(kReference), {.fid_infinity = true, .threads = 3});
  EXPECT_EQ(one.fid->without_group, three.fid->without_group);
  EXPECT_EQ(one.fid->raw, three.fid->raw);
  EXPECT_EQ(one.fid_infinity->intercept, three.fid_infinity->intercept);
  EXPECT_EQ(one.kid, three.kid);
  EXPECT_EQ(one.inception_score_error, three.inception_score_error);
}

TEST(Metrics, WithoutErrorsAreTheSame) {
  const Metrics with = measure({kRows, {}, kRows, {}}, reference_of(kReference));
  const Metrics without = measure({kRows, {}, kRows, {}}, reference_of(kReference), {.errors = false});
  EXPECT_NEAR(without.fid->value, with.fid->value, 1e-12);
  EXPECT_EQ(without.kid, with.kid);
  EXPECT_FALSE(without.fid->error || without.kid_error || without.precision_error || without.recall_error ||
               without.inception_score_error);
}

TEST(Metrics, OfStatisticsAloneHaveNoPairs) {
  const Metrics got = measure({kRows, {}, {}, {}}, reference_of(kReference, /*keeps_rows=*/false));
  EXPECT_TRUE(got.fid);
  EXPECT_FALSE(got.kid || got.precision || got.recall || got.nearest);
  EXPECT_FALSE(measure({kRows, {}, {}, {}}, reference_of(kReference), {.pairs = false}).kid);
}

TEST(Metrics, OfTheSameSetAreNothingAndCopies) {
  const Metrics got = measure({kRows, {}, {}, {}}, reference_of(kRows));
  EXPECT_NEAR(got.fid->value, 0, 1e-10);
  EXPECT_EQ(got.nearest->median, 0);
  EXPECT_GT(got.nearest->reference_median, 0);
  EXPECT_EQ(got.nearest->closer_share, 1);
}

TEST(Metrics, ADistanceJustBelowNothingIsNothing) {
  int below = 0;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const at::Tensor rows = random_features(50, 6, seed);
    const Distance fid =
        *measure({rows, {}, {}, {}}, reference_of(rows), {.errors = false, .pairs = false}).fid;
    below += fid.raw < 0 ? 1 : 0;
    EXPECT_EQ(fid.value, std::max(fid.raw, 0.0));
  }
  EXPECT_GT(below, 0);
}

TEST(Metrics, FreshImagesAreNoCopies) {
  const Metrics got =
      measure({random_features(3000, 3, 1), {}, {}, {}}, reference_of(random_features(3000, 3, 2)));
  EXPECT_NEAR(got.nearest->closer_share, 0.01, 0.01);
  EXPECT_NEAR(got.nearest->median / got.nearest->reference_median, 1, 0.05);
}

// A reference whose rows are known gives the exact distance of few images; its covariance alone loses digits.
TEST(Metrics, OfFewImagesUseTheRows) {
  const at::Tensor x = random_features(10, 64, 1), y = random_features(15, 64, 2);
  const double exact = frechet_distance(factor_rows(x), factor_rows(y));
  EXPECT_EQ(measure({x, {}, {}, {}}, reference_of(y)).fid->value, exact);
  EXPECT_NEAR(measure({x, {}, {}, {}}, reference_of(y, false)).fid->value, exact, 1e-4 * exact);
  // As does one with fewer rows than features, whatever the number of images.
  const at::Tensor many = random_features(100, 64, 1);
  const Metrics got = measure({many, {}, {}, {}}, reference_of(y));
  EXPECT_EQ(got.fid->value, frechet_distance(factor_rows(many), factor_rows(y)));
  EXPECT_TRUE(got.fid->error);
}

TEST(Metrics, SpatialFeaturesHaveADistanceOfTheirOwn) {
  const at::Tensor spatial = random_features(300, 4, 5);
  FeatureStatistics reference = reference_of(kReference);
  test::expect_error(
      [&] {
        measure({kRows, spatial, {}, {}}, reference);
      },
      "sFID: the reference holds no mu_s and sigma_s");
  reference.spatial = gaussian_of(moments_of(random_features(50, 4, 6))[0]);
  const Metrics got = measure({kRows, spatial, {}, {}}, reference);
  EXPECT_NEAR(got.sfid->value,
              frechet_distance(factor(gaussian_of(moments_of(spatial)[0])), factor(*reference.spatial)),
              1e-12);
}

TEST(Metrics, ClassAgreementIsTheShareOfLabelsThatLogitsName) {
  const at::Tensor logits = at::tensor({0.f, 1.f, 3.f, 2.f, 5.f, 4.f, 1.f, 0.f}).view({4, 2});
  const at::Tensor rows = kRows.slice(0, 0, 4);
  const GeneratedFeatures images{rows, {}, logits, {1, 0, 1, 1}};
  EXPECT_EQ(measure(images, reference_of(kReference), {.labels_are_logits = true}).class_agreement, 0.5);
  EXPECT_FALSE(measure(images, reference_of(kReference)).class_agreement);
}

TEST(Metrics, TorchFidelitysAreThoseOfItsRows) {
  const at::Tensor x = random_features(1100, 4, 1), y = random_features(1000, 4, 2);
  const Metrics got = measure({x, {}, x, {}}, reference_of(y), {.torch_fidelity = true});
  const SubsetRows rows = torch_fidelity_rows(1100, 1000, 100, 1000);
  EXPECT_EQ(got.torch_fidelity_kid->each, kid_of_subsets(x, y, rows.generated, rows.reference, 1).each);
  const std::vector<int64_t> order = NumpyPermutations(2020).next(1100);
  const at::Tensor permuted = x.index_select(0, at::tensor(at::ArrayRef<int64_t>(order), at::kLong));
  EXPECT_EQ(got.torch_fidelity_score->mean, inception_score(permuted, parts_of_number(1100, 10), 1).mean);
  // Absent where they are not asked for or cannot be.
  EXPECT_FALSE(measure({x, {}, x, {}}, reference_of(y)).torch_fidelity_kid);
  const Metrics few =
      measure({x.slice(0, 0, 9), {}, x.slice(0, 0, 9), {}}, reference_of(y), {.torch_fidelity = true});
  EXPECT_FALSE(few.torch_fidelity_kid || few.torch_fidelity_score);
  EXPECT_TRUE(warns(few, "torch-fidelity measures no Inception Score and no KID of these"));
  EXPECT_FALSE(warns(got, "torch-fidelity"));
  test::expect_error([&] { torch_fidelity_kid(x, y.slice(0, 1), 1); },
                     "torch-fidelity's KID takes subsets of 1000 images; here are 999");
}

// numpy.random.RandomState(2020).permutation(10), twice.
TEST(NumpyPermutations, AreNumpys) {
  NumpyPermutations random(2020);
  EXPECT_EQ(random.next(10), (std::vector<int64_t>{2, 4, 9, 1, 5, 7, 6, 3, 8, 0}));
  EXPECT_EQ(random.next(10), (std::vector<int64_t>{5, 7, 6, 4, 3, 1, 2, 8, 9, 0}));
}

TEST(Metrics, WarnOfWhatDoesNotCompare) {
  const Metrics few =
      measure({random_features(60, 64, 1), {}, {}, {}}, reference_of(random_features(50, 64, 2)));
  EXPECT_TRUE(warns(few, "60 images, features of 64 numbers: the covariance is singular"));
  EXPECT_TRUE(warns(few, "the reference has 50 images, features of 64 numbers: its covariance is singular"));
  EXPECT_TRUE(warns(few, "60 images against 50 of the reference: recall rises with the former"));
  const Metrics some = measure({kRows, {}, {}, {}}, reference_of(random_features(300, 6, 2)));
  EXPECT_TRUE(warns(some, "FID of 300 images is too large by a term in 1/N"));
  EXPECT_EQ(some.warnings.size(), 1u);
}

TEST(Metrics, WarnOfImagesByClass) {
  const int64_t n = 12'000;
  std::vector<int64_t> sorted(n), shuffled(n);
  at::Tensor logits = at::zeros({n, 4});
  for (int64_t i = 0; i < n; ++i) {
    sorted[i] = i / (n / 4);
    shuffled[i] = i % 4;
    logits[i][sorted[i]] = 20;
  }
  const at::Tensor rows = random_features(n, 2, 1);
  const FeatureStatistics reference = reference_of(rows, /*keeps_rows=*/false);
  EXPECT_TRUE(warns(measure({rows, {}, logits, sorted}, reference), "images come by class"));
  EXPECT_TRUE(warns(measure({rows, {}, logits, {}}, reference), "images come by class"));  // by the scores
  const at::Tensor mixed = logits.view({4, n / 4, 4}).transpose(0, 1).reshape({n, 4}).contiguous();
  const Metrics got = measure({rows, {}, mixed, shuffled}, reference);
  EXPECT_FALSE(warns(got, "images come by class"));
  EXPECT_NEAR(*got.inception_score, 4, 1e-5);
}

TEST(Metrics, RefuseWhatDoesNotFit) {
  const FeatureStatistics reference = reference_of(kReference);
  test::expect_error(
      [&] {
        measure({random_features(50, 7, 1), {}, {}, {}}, reference);
      },
      "features of the images: Float of shape (50, 7); expected contiguous float32 rows of 6");
  at::Tensor broken = kRows.clone();
  broken[299][0] = NAN;
  test::expect_error(
      [&] {
        measure({broken, {}, {}, {}}, reference);
      },
      "features of the images: row 299 holds a number that is not finite");
  test::expect_error(
      [&] {
        measure({kRows, {}, kRows.slice(0, 1), {}}, reference);
      },
      "299 rows for 300 images: each has one of every kind");
  test::expect_error(
      [&] {
        measure({kRows, {}, {}, {1, 2}}, reference);
      },
      "2 labels for 300 images: each has one, or none has");
}

}  // namespace
}  // namespace dydit
