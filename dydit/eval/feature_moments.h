// Mean and scatter of feature rows, streamed: blocks are cut by image index and merged in its order (Chan,
// Golub, LeVeque 1983), so that no bit depends on batches or threads, and what processes computed apart
// merges to 1e-12.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "dydit/base/row_pool.h"

namespace dydit {

inline constexpr int64_t kMomentRows = 1024;  // of a block
inline constexpr int kJackknifeGroups = 20;   // image i is of group i mod 20

/// Throws Error that begins with `what` unless the rows are (n, dim) finite float32, contiguous on the CPU. A
/// `dim` of 0 takes any.
void check_features(const at::Tensor& rows, int64_t dim, const std::string& what);

/// Of `count` rows of d features.
struct Moments {
  int64_t count = 0;
  at::Tensor mean;     // (d) float64
  at::Tensor scatter;  // (d, d) float64: sum of (x - mean)^T (x - mean)
};

/// `into` becomes the moments of both sets of rows.
void merge(Moments& into, const Moments& other);
/// All of them, in order; but for number `without` where it is one of them.
Moments merged(std::span<const Moments> parts, int without = -1);

/// What a Frechet distance knows of a set of rows.
struct Gaussian {
  at::Tensor mean;  // (d) float64
  at::Tensor cov;   // (d, d) float64, symmetric
};

/// With the unbiased covariance, over count - 1. Throws Error for fewer than two rows.
Gaussian gaussian_of(const Moments& moments);

struct MomentOptions {
  int groups = 1;           // image i is of group i mod groups; kJackknifeGroups where errors are wanted
  int64_t first_image = 0;  // index of the first row
  int threads = 1;
};

class FeatureMoments {
 public:
  explicit FeatureMoments(int64_t dim, const MomentOptions& options = {});
  ~FeatureMoments();
  FeatureMoments(const FeatureMoments&) = delete;
  FeatureMoments& operator=(const FeatureMoments&) = delete;

  /// rows (n, d) float32: of the images that follow those before. Throws Error where they are not finite.
  void add(const at::Tensor& rows);
  /// One a group, with what is left of blocks. Nothing is added afterwards.
  std::vector<Moments> finish();

 private:
  struct Block;
  Block& block_of(int64_t image);
  void compute_full();

  int64_t dim_, next_image_;
  RowPool pool_;
  std::vector<std::unique_ptr<Block>> open_;  // one a group; null before its first row
  std::vector<std::unique_ptr<Block>> full_;  // wait until there is one a thread
  std::vector<Moments> groups_;
};

/// All of `features` at once: one a group.
std::vector<Moments> moments_of(const at::Tensor& features, const MomentOptions& options = {});

}  // namespace dydit
