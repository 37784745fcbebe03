// Features of images: which network, which weights, which resize, and the networks' work on all threads.
#pragma once

#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "dydit/base/enum_names.h"
#include "dydit/eval/feature_network.h"
#include "dydit/eval/resize.h"
#include "dydit/io/image.h"

namespace dydit {

using eval::FeatureSizes;

enum class ExtractorKind { Inception, Lite0, Resnet56, Resnet20 };
inline constexpr EnumNames<ExtractorKind, 4> kExtractorNames = {"extractor",
                                                                {{"inception", ExtractorKind::Inception},
                                                                 {"lite0", ExtractorKind::Lite0},
                                                                 {"resnet56", ExtractorKind::Resnet56},
                                                                 {"resnet20", ExtractorKind::Resnet20}}};

/// Of any number of images: (images, values) float32. spatial is undefined where the network has none.
struct ImageFeatures {
  at::Tensor features, logits, spatial;
};

class Extractor {
 public:
  /// weights: the published file of the kind (torch or safetensors), or for tests and measurements
  /// "recipe:inception". rule: of the inception kind; others have their own. bf16: products of bfloat16.
  /// Throws Error where the file is another network's.
  Extractor(ExtractorKind kind, const std::filesystem::path& weights, ResizeRule rule, bool bf16,
            int threads);

  ExtractorKind kind() const { return kind_; }
  ResizeRule rule() const { return rule_; }
  const std::string& weights_sha256() const { return sha256_; }
  FeatureSizes sizes() const { return sizes_; }
  /// The Inception Score is taken of logits without it.
  const std::vector<float>& logit_bias() const { return network_->logit_bias(); }

  /// Each image's features depend on nothing but the image. Not for several threads at once.
  ImageFeatures extract(std::span<const Image> images);
  /// The same of images that its threads fetch themselves: image(i) for i = 0..count-1, of each once. Throws
  /// what that throws.
  ImageFeatures extract(int count, const std::function<Image(int)>& image);
  /// What RGB images of the network's own side, (B, 3, side, side) float32 in [-1, 1] on the CPU, are at the
  /// stage of this published name: (B, H W, C), row by row. A value counts as the pixel nearest to it.
  at::Tensor stage(std::string_view name, const at::Tensor& images);
  /// Of one image, telling its stages.
  ImageFeatures extract(const Image& image, const eval::StageObserver& observe);

 private:
  ImageFeatures make_room(int64_t images) const;
  void run(const Image& image, const ImageFeatures& into, int64_t row, eval::FeatureWorkspace& workspace,
           const eval::StageObserver& observe) const;

  const ExtractorKind kind_;
  ResizeRule rule_;
  std::string sha256_;
  std::unique_ptr<eval::FeatureNetwork> network_;
  FeatureSizes sizes_;
  Team team_;
  std::vector<std::unique_ptr<eval::FeatureWorkspace>> workspaces_;  // of each thread
};

}  // namespace dydit
