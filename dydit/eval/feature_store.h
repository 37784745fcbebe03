// What is known of each image of an evaluation: features, logits, its class and what it cost. In memory, and
// where a folder is given in a file of every process, so that a run that was stopped at any moment goes on
// and several processes share one.
#pragma once

#include <cstdint>
#include <filesystem>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <nlohmann/json.hpp>

#include "dydit/eval/extractor.h"

namespace dydit {

/// Of one image; a sum over steps for those that were sampled.
struct ImageCost {
  double seconds = 0, required_gmacs = 0, executed_gmacs = 0;
};

/// What is known of an image beside its features.
struct ImageNote {
  int64_t index = 0, label = 0;  // kNoLabel: unknown
  int32_t height = 0, width = 0;
  ImageCost cost;
};

/// Images [0, n), in order.
struct StoredFeatures {
  ImageFeatures values;
  std::vector<int64_t> labels;
  std::set<std::pair<int, int>> sizes;  // heights and widths that there are
  ImageCost mean_cost;
};

class FeatureStore {
 public:
  /// folder: empty, or what is created where it is missing; key: all that the features depend on. Throws
  /// Error for a folder that holds another evaluation, naming what differs. process: of those that share the
  /// folder.
  FeatureStore(const FeatureSizes& sizes, std::filesystem::path folder, nlohmann::json key, int process = 0);
  ~FeatureStore();
  FeatureStore(const FeatureStore&) = delete;
  FeatureStore& operator=(const FeatureStore&) = delete;

  /// Of [0, n), those that are in no process's file.
  std::vector<int64_t> missing(int64_t n) const;
  /// The image is row `row` of `rows`. On its way to the disk when this returns.
  void add(const ImageNote& image, const ImageFeatures& rows, int64_t row);
  /// All of [0, n) from all files; what was kept in memory is given up. Throws Error where one is missing.
  StoredFeatures collect(int64_t n);

 private:
  struct Head;
  size_t record_bytes() const;
  void check_key(const nlohmann::json& key) const;
  void open_own();
  template <typename Fn>
  static void visit(std::span<const std::byte> record, const Fn& fn);
  template <typename Fn>
  void for_records(const Fn& fn) const;

  const FeatureSizes sizes_;
  const std::filesystem::path folder_;
  const int process_;
  int file_ = -1;
  std::vector<std::vector<std::byte>> memory_;  // records, without a folder
};

}  // namespace dydit
