#include "dydit/eval/inception_score.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include <ATen/ATen.h>

#include "dydit/base/error.h"
#include "dydit/base/row_pool.h"
#include "dydit/eval/feature_moments.h"
#include "dydit/eval/frechet.h"

namespace dydit {
namespace {

// All that the score of some rows takes.
struct Sums {
  double rows = 0;
  double log_terms = 0;  // sum of p log p
  at::Tensor classes;    // (classes) float64: sum of p

  void add(const Sums& other, double sign) {
    rows += sign * other.rows;
    log_terms += sign * other.log_terms;
    classes = classes.defined() ? classes + sign * other.classes : sign * other.classes;
  }
  double score() const {
    const at::Tensor mean = classes.clamp_min(0) / rows;  // what was taken away again leaves rounding
    return std::exp(log_terms / rows - at::xlogy(mean, mean).sum().item<double>());
  }
};

// Of the rows of each group.
std::vector<Sums> sums_of(const at::Tensor& logits, int64_t first, int64_t end) {
  std::vector<Sums> groups;
  for (int64_t begin = first; begin < std::min(first + kJackknifeGroups, end); ++begin) {
    const at::Tensor log_p =
        at::log_softmax(logits.slice(0, begin, end, kJackknifeGroups).to(at::kDouble), 1);
    const at::Tensor p = log_p.exp();
    groups.push_back({static_cast<double>(p.size(0)), (p * log_p).sum().item<double>(), p.sum(0)});
  }
  return groups;
}

}  // namespace

std::vector<int64_t> parts_of_size(int64_t rows, int64_t part_rows) {
  std::vector<int64_t> bounds;
  for (int64_t begin = 0; begin < rows; begin += part_rows) bounds.push_back(begin);
  bounds.push_back(rows);
  return bounds;
}

std::vector<int64_t> parts_of_number(int64_t rows, int parts) {
  std::vector<int64_t> bounds;
  for (int64_t i = 0; i <= parts; ++i) bounds.push_back(i * rows / parts);
  return bounds;
}

InceptionScore inception_score(const at::Tensor& logits, std::span<const int64_t> bounds, int threads) {
  check_features(logits, 0, "logits");
  DYDIT_CHECK(bounds.size() >= 2 &&
                  std::adjacent_find(bounds.begin(), bounds.end(), std::greater_equal()) == bounds.end(),
              "Inception Score of {} images in {} parts: a part has none; take fewer parts", logits.size(0),
              bounds.size() - 1);
  const size_t parts = bounds.size() - 1;
  std::vector<double> scores(parts);
  std::vector<std::vector<double>> without_group(parts);  // empty for a short part
  RowPool(threads).run(static_cast<int>(parts), [&](int part) {
    const std::vector<Sums> groups = sums_of(logits, bounds[part], bounds[part + 1]);
    Sums all;
    for (const Sums& group : groups) all.add(group, 1);
    scores[part] = all.score();
    if (bounds[part + 1] - bounds[part] < 2 * kJackknifeGroups) return;
    for (const Sums& group : groups) {
      Sums rest = all;
      rest.add(group, -1);
      without_group[part].push_back(rest.score());
    }
  });
  const auto count = static_cast<double>(parts);
  InceptionScore result;
  for (const double score : scores) result.mean += score / count;
  for (const double score : scores) result.deviation += (score - result.mean) * (score - result.mean) / count;
  result.deviation = std::sqrt(result.deviation);
  std::vector<double> means(kJackknifeGroups);
  for (const std::vector<double>& values : without_group) {
    if (values.empty()) return result;
    for (int group = 0; group < kJackknifeGroups; ++group) means[group] += values[group] / count;
  }
  result.error = jackknife_error(means);
  return result;
}

bool is_class_ordered(std::span<const int64_t> labels) {
  if (labels.size() < 2) return false;
  std::map<int64_t, double> counts;
  double equal = 0, chance = 0;
  for (const int64_t label : labels) ++counts[label];
  for (const auto& [label, count] : counts) chance += std::pow(count / static_cast<double>(labels.size()), 2);
  for (size_t i = 1; i < labels.size(); ++i) equal += labels[i] == labels[i - 1] ? 1 : 0;
  return equal / static_cast<double>(labels.size() - 1) > 3 * chance;
}

}  // namespace dydit
