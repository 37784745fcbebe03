#include "dydit/eval/metrics.h"

#include <algorithm>
#include <limits>

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include "dydit/base/error.h"
#include "dydit/base/row_pool.h"
#include "dydit/eval/precision_recall.h"
#include "dydit/eval/torch_fidelity.h"

namespace dydit {
namespace {

constexpr double kNothingBelow = 1e-6;  // a distance that rounding left below 0
constexpr int64_t kFewImages = 10000;   // fewer: the bias of FID is larger than differences that matter
constexpr double kOrderedScore = 1.5;   // one part's score over the mean of parts': parts see few classes
constexpr double kNearShare = 0.01;     // of the reference's own nearest distances

// What is compared: rows, or what is known of the reference's.
struct Reference {
  const Gaussian& gaussian;
  at::Tensor rows;  // undefined: not kept
};

bool fits_errors(int64_t rows, bool errors) { return errors && rows >= 2 * kJackknifeGroups; }

Distance distance_of(const at::Tensor& rows, const Reference& reference, const MetricOptions& options) {
  const int64_t n = rows.size(0), d = rows.size(1);
  const bool errors = fits_errors(n, options.errors);
  const bool few = n <= d || (reference.rows.defined() && reference.rows.size(0) <= d);
  const bool reference_rows = few && reference.rows.defined();
  const std::vector<Moments> groups =
      moments_of(rows, {.groups = errors ? kJackknifeGroups : 1, .threads = options.threads});
  FactoredGaussian ours, theirs;
  RowPool(std::min(options.threads, 2)).run(2, [&](int side) {
    if (side == 0) {
      ours = few ? factor_rows(rows) : factor(gaussian_of(merged(groups)));
    } else {
      theirs = reference_rows ? factor_rows(reference.rows) : factor(reference.gaussian);
    }
  });
  Distance distance;
  distance.raw = frechet_distance(ours, theirs);
  distance.value = distance.raw < 0 && distance.raw > -kNothingBelow ? 0 : distance.raw;
  if (!errors) return distance;
  if (theirs.root.size(0) > d) theirs = factor(reference.gaussian);  // a smaller root serves 20 times
  distance.without_group = frechet_without_groups(theirs, groups, options.threads);
  distance.error = jackknife_error(distance.without_group);
  return distance;
}

FidInfinity infinity_of(const at::Tensor& rows, const Gaussian& reference, int threads) {
  const std::vector<int64_t> order = fixed_permutation(rows.size(0));
  const at::Tensor index = at::empty({rows.size(0)}, at::kLong);
  std::copy(order.begin(), order.end(), index.data_ptr<int64_t>());
  return fid_infinity(factor(reference), rows.index_select(0, index), fid_infinity_sizes(rows.size(0)),
                      threads);
}

double class_agreement(const at::Tensor& logits, const std::vector<int64_t>& labels) {
  const at::Tensor best = logits.argmax(1);
  int64_t equal = 0;
  for (size_t i = 0; i < labels.size(); ++i) equal += best.data_ptr<int64_t>()[i] == labels[i] ? 1 : 0;
  return static_cast<double>(equal) / static_cast<double>(labels.size());
}

// The value below which `share` of the others lie.
double value_at(const at::Tensor& values, double share) {
  std::vector<double> sorted(values.data_ptr<double>(), values.data_ptr<double>() + values.numel());
  const auto place = sorted.begin() + static_cast<int64_t>(share * static_cast<double>(sorted.size()));
  std::nth_element(sorted.begin(), place, sorted.end());
  return *place;
}

NearestRows nearest_of(const PrecisionRecall& found) {
  const double near = value_at(found.reference_nearest, kNearShare);
  return {value_at(found.generated_nearest, 0.5), value_at(found.reference_nearest, 0.5),
          (found.generated_nearest < near).to(at::kDouble).mean().item<double>()};
}

void add_pairs(Metrics& metrics, const at::Tensor& generated, const at::Tensor& reference,
               const MetricOptions& options) {
  const ProductOptions products{options.threads, options.on_progress, options.cancel};
  const Kid distance = kid(generated, reference, products);
  metrics.kid = distance.unbiased;
  const PrecisionRecall found = precision_recall(generated, reference, products);
  metrics.precision = found.precision;
  metrics.recall = found.recall;
  metrics.nearest = nearest_of(found);
  if (!options.errors) return;
  metrics.kid_error = distance.error;
  metrics.precision_error = found.precision_error;
  metrics.recall_error = found.recall_error;
}

void add_logits(Metrics& metrics, const GeneratedFeatures& generated, const MetricOptions& options) {
  const int64_t n = generated.logits.size(0);
  const InceptionScore parts =
      inception_score(generated.logits, parts_of_size(n, kAdmPartRows), options.threads);
  const InceptionScore all = inception_score(generated.logits, parts_of_size(n, n), options.threads);
  metrics.inception_score = parts.mean;
  if (options.errors) metrics.inception_score_error = parts.error;
  metrics.inception_score_all = all.mean;
  if (is_class_ordered(generated.labels) || all.mean > kOrderedScore * parts.mean)
    metrics.warnings.push_back(
        "images come by class: a part of the Inception Score sees few classes and scores far too low; "
        "shuffle them");
  if (options.labels_are_logits && !generated.labels.empty())
    metrics.class_agreement = class_agreement(generated.logits, generated.labels);
}

void add_torch_fidelity(Metrics& metrics, const GeneratedFeatures& generated, const at::Tensor& reference,
                        const MetricOptions& options) {
  if (generated.logits.defined() && metrics.n >= kTorchFidelityParts)
    metrics.torch_fidelity_score = torch_fidelity_inception_score(generated.logits, options.threads);
  if (options.pairs && reference.defined() &&
      std::min(generated.features.size(0), reference.size(0)) >= kTorchFidelityRows)
    metrics.torch_fidelity_kid = torch_fidelity_kid(generated.features, reference, options.threads);
  if (!metrics.torch_fidelity_score || !metrics.torch_fidelity_kid)
    metrics.warnings.push_back(
        fmt::format("torch-fidelity measures no {}{}{} of these: its Inception Score takes logits of {} "
                    "images, its KID the features "
                    "of {} on both sides",
                    metrics.torch_fidelity_score ? "" : "Inception Score",
                    metrics.torch_fidelity_score || metrics.torch_fidelity_kid ? "" : " and no ",
                    metrics.torch_fidelity_kid ? "" : "KID", kTorchFidelityParts, kTorchFidelityRows));
}

void add_warnings(Metrics& metrics, int64_t d) {
  const int64_t n = metrics.n, m = metrics.reference_n;
  if (n <= d)
    metrics.warnings.push_back(
        fmt::format("{} images, features of {} numbers: the covariance is singular, and FID says nothing "
                    "beside another N; use KID",
                    n, d));
  else if (n < kFewImages)
    metrics.warnings.push_back(
        fmt::format("FID of {} images is too large by a term in 1/N: compare it with that of as many images "
                    "only, or use KID",
                    n));
  if (m > 0 && m <= d)
    metrics.warnings.push_back(
        fmt::format("the reference has {} images, features of {} numbers: its covariance is singular", m, d));
  if (m > 0 && m != n)
    metrics.warnings.push_back(
        fmt::format("{} images against {} of the reference: recall rises with the former, FID falls with "
                    "either; compare runs of "
                    "the same two numbers",
                    n, m));
}

}  // namespace

Metrics measure(const GeneratedFeatures& generated, const FeatureStatistics& reference,
                const MetricOptions& options) {
  const at::Tensor& features = generated.features;
  check_features(features, reference.features.mean.size(0), "features of the images");
  const int64_t n = features.size(0);
  for (const at::Tensor* other : {&generated.spatial, &generated.logits}) {
    DYDIT_CHECK(!other->defined() || other->size(0) == n, "{} rows for {} images: each has one of every kind",
                other->size(0), n);
  }
  DYDIT_CHECK(generated.labels.empty() || static_cast<int64_t>(generated.labels.size()) == n,
              "{} labels for {} images: each has one, or none has", generated.labels.size(), n);
  DYDIT_CHECK(
      !generated.spatial.defined() || reference.spatial,
      "sFID: the reference holds no mu_s and sigma_s, the statistics of spatial features; take one that has "
      "them, or leave sFID out");
  c10::InferenceMode guard;
  Metrics metrics;
  metrics.n = n;
  metrics.reference_n = reference.images;
  metrics.fid = distance_of(features, {reference.features, reference.rows}, options);
  if (generated.spatial.defined()) {
    check_features(generated.spatial, reference.spatial->mean.size(0), "spatial features of the images");
    metrics.sfid = distance_of(generated.spatial, {*reference.spatial, {}}, options);
  }
  if (options.fid_infinity) metrics.fid_infinity = infinity_of(features, reference.features, options.threads);
  if (generated.logits.defined()) add_logits(metrics, generated, options);
  if (options.pairs && reference.rows.defined()) add_pairs(metrics, features, reference.rows, options);
  if (options.torch_fidelity) add_torch_fidelity(metrics, generated, reference.rows, options);
  add_warnings(metrics, features.size(1));
  return metrics;
}

}  // namespace dydit
