// All numbers of a set of generated images against a reference, with their errors and with what a reader has
// to know before comparing them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "dydit/eval/frechet.h"
#include "dydit/eval/inception_score.h"
#include "dydit/eval/kid.h"
#include "dydit/eval/products.h"
#include "dydit/eval/statistics_file.h"

namespace dydit {

/// Rows in the order of the image indices.
struct GeneratedFeatures {
  at::Tensor features;          // (N, d) float32
  at::Tensor spatial;           // (N, s) float32, of sFID; undefined: no sFID
  at::Tensor logits;            // (N, classes) float32; undefined: no Inception Score
  std::vector<int64_t> labels;  // the class that was asked for; empty: unknown
};

struct MetricOptions {
  bool errors = true;              // 20 more distances for FID
  bool fid_infinity = false;       // 15 more
  bool pairs = true;               // KID, precision, recall and nearest rows, where the reference has rows
  bool torch_fidelity = false;     // its Inception Score and KID, too
  bool labels_are_logits = false;  // label c is column c of the logits: class agreement
  int threads = 1;
  ProgressFn on_progress = {};
  const CancelFlag* cancel = nullptr;
};

/// A Frechet distance.
struct Distance {
  double value = 0;                   // 0 where rounding left it within 1e-6 below
  double raw = 0;                     // as computed
  std::optional<double> error;        // jackknife over 20 groups of images
  std::vector<double> without_group;  // the 20 values; for paired_jackknife_error
};

/// Do generated rows lie closer to reference rows than those to each other?
struct NearestRows {
  double median = 0;            // distance of a generated row to the nearest reference row
  double reference_median = 0;  // of a reference row to its nearest other
  double closer_share =
      0;  // generated rows closer than 1 % of the reference rows are: .01 when nothing is copied
};

/// Absent: not asked for, or what it takes is not there.
struct Metrics {
  int64_t n = 0, reference_n = 0;  // reference_n 0: unknown
  std::optional<Distance> fid, sfid;
  std::optional<FidInfinity> fid_infinity;
  std::optional<double> kid, kid_error;
  std::optional<double> inception_score, inception_score_error;  // mean of ADM's parts of 5,000
  std::optional<double> inception_score_all;                     // all images as one part
  std::optional<double> precision, precision_error, recall, recall_error;
  std::optional<InceptionScore> torch_fidelity_score;  // of 10 images or more
  std::optional<KidOfSubsets> torch_fidelity_kid;      // of 1,000 or more on both sides
  std::optional<double> class_agreement;  // share of images that the classifier gives the asked class
  std::optional<NearestRows> nearest;
  std::vector<std::string> warnings;  // a sentence each
};

/// The reference needs features of the same dimension; sFID is measured where both sides have spatial ones,
/// and refused where only the images have. Throws Error for features that are not finite or too few,
/// Cancelled.
Metrics measure(const GeneratedFeatures& generated, const FeatureStatistics& reference,
                const MetricOptions& options = {});

}  // namespace dydit
