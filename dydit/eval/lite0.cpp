// EfficientNet-Lite0 for ImageNet: blocks that expand, filter each channel and project, without squeeze and
// excitation; ReLU6 everywhere; TensorFlow's "same" padding, which has the odd zero at the bottom and right.
#include <array>
#include <optional>
#include <string>

#include <ATen/ATen.h>

#include "dydit/eval/feature_network.h"

namespace dydit::eval {
namespace {

constexpr double kEps = 1e-3;
constexpr int kSide = 224, kStem = 32, kFeatures = 1280, kClasses = 1000;

struct BlockSpec {
  int kernel, stride, expand, out;
};
constexpr std::array<BlockSpec, 16> kBlocks = {{{3, 1, 1, 16},
                                                {3, 2, 6, 24},
                                                {3, 1, 6, 24},
                                                {5, 2, 6, 40},
                                                {5, 1, 6, 40},
                                                {3, 2, 6, 80},
                                                {3, 1, 6, 80},
                                                {3, 1, 6, 80},
                                                {5, 1, 6, 112},
                                                {5, 1, 6, 112},
                                                {5, 1, 6, 112},
                                                {5, 2, 6, 192},
                                                {5, 1, 6, 192},
                                                {5, 1, 6, 192},
                                                {5, 1, 6, 192},
                                                {3, 1, 6, 320}}};

// Every map that is halved has an even side.
Extent same(int kernel, int stride) {
  const int zeros = kernel - stride;
  return {kernel, zeros / 2, zeros - zeros / 2};
}

class Lite0 : public FeatureNetwork {
 public:
  Lite0(NetworkWeights weights, bool bf16) {
    stem_ =
        folded(weights, "_conv_stem", "_bn0", {3, kStem, 2, same(3, 2), same(3, 2)}, kEps, /*bf16=*/false);
    int in = kStem;
    for (size_t i = 0; i < kBlocks.size(); ++i) {
      const BlockSpec& spec = kBlocks[i];
      const std::string at = "_blocks." + std::to_string(i) + ".";
      const int wide = in * spec.expand;
      std::optional<Conv> expand;
      if (spec.expand > 1) expand = pixelwise(weights, at + "_expand_conv", at + "_bn0", in, wide, bf16);
      const Extent extent = same(spec.kernel, spec.stride);
      const auto [weight, bias] =
          weights.fold(at + "_depthwise_conv", at + "_bn1", {wide, 1, spec.kernel, spec.kernel}, kEps);
      blocks_.push_back({std::move(expand), DepthwiseConv(weight, bias, extent, extent, spec.stride),
                         pixelwise(weights, at + "_project_conv", at + "_bn2", wide, spec.out, bf16),
                         spec.stride == 1 && in == spec.out});
      in = spec.out;
    }
    head_ = pixelwise(weights, "_conv_head", "_bn1", in, kFeatures, bf16);
    fc_ = linear(weights, "_fc", kFeatures, kClasses, /*bias=*/true);
    weights.check_all_taken();
  }

  FeatureSizes sizes() const override { return {kSide, kFeatures, kClasses, 0}; }

  void run(FeatureWorkspace& workspace, HeldMap x, const FeatureRow& row,
           const StageObserver& observe) const override {
    x = apply(workspace, stem_, *x, Activation::Relu6);
    for (const Block& block : blocks_) {
      const DepthwiseConv& depthwise = block.depthwise;
      HeldMap wide = block.expand ? apply(workspace, *block.expand, *x, Activation::Relu6) : std::move(x);
      HeldMap filtered(workspace.maps, depthwise.out_height(wide->H), depthwise.out_width(wide->W), wide->C);
      depthwise.run(workspace.team, *wide, *filtered);
      if (block.adds) {
        run_conv(workspace, block.project, *filtered, *x, {.add = true});
      } else {
        x = apply(workspace, block.project, *filtered, Activation::None);
      }
    }
    x = apply(workspace, head_, *x, Activation::Relu6);
    if (observe) observe("_conv_head", *x);
    mean_of_positions(*x, row.features);
    apply_linear(workspace, fc_, row.features, row.logits);
  }

 private:
  struct Block {
    std::optional<Conv> expand;  // none: the block does not widen
    DepthwiseConv depthwise;
    Conv project;
    bool adds;  // its input
  };

  Conv pixelwise(NetworkWeights& weights, const std::string& name, const std::string& norm, int in, int out,
                 bool bf16) {
    return folded(weights, name, norm, {.in = in, .out = out, .rows = kOneTap, .columns = kOneTap}, kEps,
                  bf16);
  }

  Conv stem_, head_, fc_;
  std::vector<Block> blocks_;
};

}  // namespace

std::unique_ptr<FeatureNetwork> make_lite0(NetworkWeights weights, bool bf16) {
  return std::make_unique<Lite0>(std::move(weights), bf16);
}

}  // namespace dydit::eval
