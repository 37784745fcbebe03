// Networks whose features judge images: from an image's values to features and logits, one image at a time,
// on one thread, with bits that depend on nothing but the image.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "dydit/conv/conv.h"
#include "dydit/conv/per_channel.h"
#include "dydit/io/tensor_view.h"

namespace dydit::eval {

using namespace conv;

/// Memory of one thread.
struct FeatureWorkspace {
  Team team{1};
  std::vector<cpu::Buffer> scratch{1};
  MapPool maps{MapPool::Kind::Memory};
};

/// A map that goes back to the pool.
class HeldMap {
 public:
  HeldMap(MapPool& pool, int H, int W, int C) : map_(pool.take(H, W, C, /*bf16=*/false)), pool_(&pool) {}
  HeldMap(HeldMap&& other) noexcept
      : map_(std::move(other.map_)), pool_(std::exchange(other.pool_, nullptr)) {}
  HeldMap& operator=(HeldMap&& other) noexcept {
    std::swap(map_, other.map_);
    std::swap(pool_, other.pool_);
    return *this;
  }
  ~HeldMap() {
    if (pool_) pool_->give(std::move(map_));
  }
  Map& operator*() { return map_; }
  const Map& operator*() const { return map_; }
  Map* operator->() { return &map_; }
  const Map* operator->() const { return &map_; }

 private:
  Map map_;
  MapPool* pool_;
};

/// Of one image; the pointers have room for as many values as FeatureSizes says.
struct FeatureRow {
  float *features, *logits, *spatial;
};

struct FeatureSizes {
  int side = 0;  // of the input
  int features = 0, logits = 0, spatial = 0;
};

/// Called with the output of each part of a network, by its published name.
using StageObserver = std::function<void(const std::string& stage, const Map& map)>;

/// Weights by name, whose shapes and values are checked as they are taken. Throws Error that names the file.
class NetworkWeights {
 public:
  /// `file` for messages; what: "the FID network".
  NetworkWeights(std::map<std::string, at::Tensor> tensors, std::string file, std::string what)
      : tensors_(std::move(tensors)), file_(std::move(file)), what_(std::move(what)) {}

  /// float64, as whoever folds wants it.
  at::Tensor take(const std::string& name, at::IntArrayRef shape);
  /// A convolution without bias and the BatchNorm that follows it, as one convolution.
  struct Folded {
    at::Tensor weight, bias;
  };
  Folded fold(const std::string& conv, const std::string& norm, at::IntArrayRef shape, double eps);
  /// Throws Error where a tensor was not taken; BatchNorm's counters do not count.
  void check_all_taken() const;

 private:
  std::map<std::string, at::Tensor> tensors_;
  std::string file_, what_;
};

class FeatureNetwork {
 public:
  virtual ~FeatureNetwork() = default;
  virtual FeatureSizes sizes() const = 0;
  /// image: (side, side, 3) values as the network wants them.
  virtual void run(FeatureWorkspace& workspace, HeldMap image, const FeatureRow& row,
                   const StageObserver& observe) const = 0;
  /// Added to the logits where they are those of a classifier; the Inception Score leaves it out.
  const std::vector<float>& logit_bias() const { return logit_bias_; }

 protected:
  /// A convolution without bias and the BatchNorm that follows it.
  Conv folded(NetworkWeights& weights, const std::string& conv, const std::string& norm,
              const ConvShape& shape, double eps, bool bf16);
  /// name.weight (classes, features) and, with `bias`, name.bias.
  Conv linear(NetworkWeights& weights, const std::string& name, int features, int classes, bool bias);

  std::vector<float> logit_bias_;

 private:
  cpu::Arena arena_;  // of the packed weights
  Team team_{1};      // that packs them
};

/// From each file's own names. Products in bfloat16 where asked for.
std::unique_ptr<FeatureNetwork> make_inception(NetworkWeights weights, bool bf16);
std::unique_ptr<FeatureNetwork> make_lite0(NetworkWeights weights, bool bf16);
std::unique_ptr<FeatureNetwork> make_cifar_resnet(NetworkWeights weights, int blocks, bool bf16);

/// Names and shapes of the FID network's tensors, for weights by recipe.
std::vector<std::pair<std::string, std::vector<int64_t>>> inception_tensors();

/// What all of them do. `to` has the output's size.
void run_conv(FeatureWorkspace& workspace, const Conv& conv, const Map& from, Map& to, const ConvUse& use);
HeldMap apply(FeatureWorkspace& workspace, const Conv& conv, const Map& from, Activation after);
/// Writes the mean over positions of each channel.
void mean_of_positions(const Map& map, float* out);
/// out <- a linear layer of one row.
void apply_linear(FeatureWorkspace& workspace, const Conv& linear, const float* row, float* out);

}  // namespace dydit::eval
