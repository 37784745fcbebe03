// Statistics of a set of images on disk: NAME.stats.safetensors, which says what they were made of, and the
// npz of other tools (mu, sigma, mu_s, sigma_s), which does not.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include <ATen/core/Tensor.h>

#include "dydit/eval/feature_moments.h"

namespace dydit {

/// Where statistics come from. Empty: unknown, as of a foreign file.
struct StatisticsOrigin {
  std::string extractor;       // its name
  std::string weights_sha256;  // of the extractor's file
  std::string resize;          // the rule by which images came to the extractor's size
  std::string source_sha256;   // of the images
  std::string labels;          // policy, e.g. "random", "balanced"
  std::string tool;            // that wrote the file
};

struct FeatureStatistics {
  Gaussian features;
  std::optional<Gaussian> spatial;  // of sFID
  at::Tensor rows;                  // (images, d) float32; undefined where they were not kept
  int64_t images = 0;               // 0: unknown
  StatisticsOrigin origin;
};

/// As npz where `path` ends in .npz: mu, sigma, mu_s, sigma_s in float64 and nothing else; as safetensors
/// otherwise.
void write_statistics(const std::filesystem::path& path, const FeatureStatistics& statistics);

/// Either form, told by its first bytes. Throws Error (names the file and the array) where sizes do not fit
/// each other, a number is not finite or a covariance is none.
FeatureStatistics read_statistics(const std::filesystem::path& path);

/// Throws Error that begins with `what` unless features of `dim` numbers, made as `wanted` says, compare with
/// `statistics`. What is unknown on either side is let pass.
void check_comparable(const FeatureStatistics& statistics, const StatisticsOrigin& wanted, int64_t dim,
                      const std::string& what);

}  // namespace dydit
