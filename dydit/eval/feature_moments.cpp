#include "dydit/eval/feature_moments.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include "dydit/base/error.h"

namespace dydit {

void check_features(const at::Tensor& rows, int64_t dim, const std::string& what) {
  DYDIT_CHECK(rows.dim() == 2 && rows.size(1) >= 1 && (dim == 0 || rows.size(1) == dim) &&
                  rows.scalar_type() == at::kFloat && rows.is_contiguous(),
              "{}: {} of shape ({}); expected contiguous float32 rows of {} numbers", what,
              c10::toString(rows.scalar_type()), fmt::join(rows.sizes(), ", "),
              dim == 0 ? "one or more" : std::to_string(dim));
  const int64_t d = rows.size(1);
  const float* values = rows.data_ptr<float>();
  for (int64_t i = 0; i < rows.size(0); ++i, values += d) {
    float sum = 0;  // 0 x is NaN for an infinite x
    for (int64_t c = 0; c < d; ++c) sum += 0 * values[c];
    DYDIT_CHECK(sum == 0, "{}: row {} holds a number that is not finite; its image or the network is broken",
                what, i);
  }
}

void merge(Moments& into, const Moments& other) {
  if (other.count == 0) return;
  if (into.count == 0) {
    into = {other.count, other.mean.clone(), other.scatter.clone()};
    return;
  }
  const auto n = static_cast<double>(into.count), m = static_cast<double>(other.count);
  const at::Tensor apart = other.mean - into.mean;
  into.mean.add_(apart, m / (n + m));
  into.scatter.add_(other.scatter).addr_(apart, apart, /*beta=*/1, /*alpha=*/n * m / (n + m));
  into.count += other.count;
}

Moments merged(std::span<const Moments> parts, int without) {
  Moments all;
  for (int p = 0; p < static_cast<int>(parts.size()); ++p) {
    if (p != without) merge(all, parts[p]);
  }
  return all;
}

Gaussian gaussian_of(const Moments& moments) {
  DYDIT_CHECK(moments.count >= 2, "{} rows: a covariance needs two or more", moments.count);
  // A product of a matrix with itself is symmetric but for rounding.
  return {moments.mean,
          (moments.scatter + moments.scatter.t()) / (2 * static_cast<double>(moments.count - 1))};
}

struct FeatureMoments::Block {
  int group;
  int64_t number;   // of the group's blocks
  at::Tensor rows;  // (kMomentRows, d) float32, of which `count` are filled
  int64_t count = 0;
};

FeatureMoments::FeatureMoments(int64_t dim, const MomentOptions& options)
    : dim_(dim),
      next_image_(options.first_image),
      pool_(options.threads),
      open_(static_cast<size_t>(options.groups)),
      groups_(static_cast<size_t>(options.groups)) {}

FeatureMoments::~FeatureMoments() = default;

void FeatureMoments::add(const at::Tensor& rows) {
  check_features(rows, dim_, "features");
  const float* row = rows.data_ptr<float>();
  for (int64_t i = 0; i < rows.size(0); ++i, row += dim_) {
    Block& block = block_of(next_image_++);
    std::memcpy(block.rows.data_ptr<float>() + block.count++ * dim_, row, dim_ * sizeof(float));
  }
}

// The block in which an image lies: the group's `number`-th, by the image's index alone.
FeatureMoments::Block& FeatureMoments::block_of(int64_t image) {
  const auto groups = static_cast<int64_t>(groups_.size());
  const int64_t group = image % groups, number = image / groups / kMomentRows;
  std::unique_ptr<Block>& open = open_[group];
  if (open && open->number != number) {
    full_.push_back(std::move(open));
    if (static_cast<int>(full_.size()) >= pool_.threads()) compute_full();
  }
  if (!open) {
    open = std::make_unique<Block>(
        Block{static_cast<int>(group), number, at::empty({kMomentRows, dim_}, at::kFloat)});
  }
  return *open;
}

// Each block on one thread; then merged in their order.
void FeatureMoments::compute_full() {
  std::vector<Moments> parts(full_.size());
  pool_.run(static_cast<int>(full_.size()), [&](int b) {
    at::Tensor x = full_[b]->rows.narrow(0, 0, full_[b]->count).to(at::kDouble);
    const at::Tensor mean = x.mean(0);
    x -= mean;
    parts[b] = {full_[b]->count, mean, at::mm(x.t(), x)};
  });
  for (size_t b = 0; b < parts.size(); ++b) merge(groups_[full_[b]->group], parts[b]);
  full_.clear();
}

std::vector<Moments> FeatureMoments::finish() {
  for (std::unique_ptr<Block>& open : open_) {
    if (open) full_.push_back(std::move(open));
    if (static_cast<int>(full_.size()) >= pool_.threads()) compute_full();
  }
  compute_full();
  return std::move(groups_);
}

std::vector<Moments> moments_of(const at::Tensor& features, const MomentOptions& options) {
  FeatureMoments moments(features.size(1), options);
  moments.add(features);
  return moments.finish();
}

}  // namespace dydit
