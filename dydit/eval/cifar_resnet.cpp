// Residual networks for CIFAR-10 (He et al. 2016, section 4.2) whose shortcuts have no weights: every second
// pixel, and channels of zeros on both sides.
#include <string>

#include <ATen/ATen.h>

#include "dydit/eval/feature_network.h"

namespace dydit::eval {
namespace {

constexpr double kEps = 1e-5;
constexpr int kSide = 32, kFeatures = 64, kClasses = 10;

HeldMap shortcut(FeatureWorkspace& workspace, const Map& x, int out) {
  HeldMap to(workspace.maps, (x.H + 1) / 2, (x.W + 1) / 2, out);
  const int before = (out - x.C) / 2;
  for (int y = 0; y < to->H; ++y) {
    for (int column = 0; column < to->W; ++column) {
      float* pixel = to->as<float>() + to->at(y, column);
      std::fill_n(pixel, before, 0.0f);
      std::copy_n(x.as<const float>() + x.at(2 * y, 2 * column), x.C, pixel + before);
      std::fill_n(pixel + before + x.C, out - x.C - before, 0.0f);
    }
  }
  return to;
}

class CifarResnet : public FeatureNetwork {
 public:
  CifarResnet(NetworkWeights weights, int blocks, bool bf16) {
    conv1_ = conv(weights, "conv1", "bn1", 3, 16, 1, /*bf16=*/false);
    int in = 16;
    for (int layer = 1; layer <= 3; ++layer) {
      for (int j = 0; j < blocks; ++j) {
        const std::string at = "layer" + std::to_string(layer) + "." + std::to_string(j) + ".";
        const int out = 8 << layer;
        Conv first = conv(weights, at + "conv1", at + "bn1", in, out, out / in, bf16);
        blocks_.push_back({std::move(first), conv(weights, at + "conv2", at + "bn2", out, out, 1, bf16)});
        in = out;
      }
    }
    linear_ = linear(weights, "linear", kFeatures, kClasses, /*bias=*/true);
    weights.check_all_taken();
  }

  FeatureSizes sizes() const override { return {kSide, kFeatures, kClasses, 0}; }

  void run(FeatureWorkspace& workspace, HeldMap x, const FeatureRow& row,
           const StageObserver& observe) const override {
    x = apply(workspace, conv1_, *x, Activation::Relu);
    for (const Block& block : blocks_) {
      const HeldMap h = apply(workspace, block.first, *x, Activation::Relu);
      if (h->C != x->C) x = shortcut(workspace, *x, h->C);
      run_conv(workspace, block.second, *h, *x, {.after = Activation::Relu, .add = true});
    }
    if (observe) observe("layer3", *x);
    mean_of_positions(*x, row.features);
    apply_linear(workspace, linear_, row.features, row.logits);
  }

 private:
  struct Block {
    Conv first, second;
  };

  Conv conv(NetworkWeights& weights, const std::string& name, const std::string& norm, int in, int out,
            int stride, bool bf16) {
    return folded(weights, name, norm, {.in = in, .out = out, .stride = stride}, kEps, bf16);
  }

  Conv conv1_, linear_;
  std::vector<Block> blocks_;
};

}  // namespace

std::unique_ptr<FeatureNetwork> make_cifar_resnet(NetworkWeights weights, int blocks, bool bf16) {
  return std::make_unique<CifarResnet>(std::move(weights), blocks, bf16);
}

}  // namespace dydit::eval
