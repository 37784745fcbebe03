// The Inception-v3 of 2015 whose features define FID, as its PyTorch conversions name it. It differs from
// torchvision's: averages do not count padding, and the last block pools by the largest value.
#include <array>
#include <optional>
#include <utility>

#include "dydit/eval/feature_network.h"

namespace dydit::eval {
namespace {

constexpr double kEps = 1e-3;
constexpr int kFeatures = 2048, kClasses = 1008;
constexpr int kSpatialChannels = 7;  // of Mixed_6d.branch1x1: sFID's 17 x 17 x 7
constexpr const char* kSpatialBlock = "Mixed_6d";

constexpr Extent kThree = {3, 1, 1}, kThreeInside = {3, 0, 0}, kFive = {5, 2, 2}, kSeven = {7, 3, 3};

// A convolution with its BatchNorm and ReLU.
struct UnitSpec {
  const char* name;
  int out;
  Extent rows = kOneTap, columns = kOneTap;
  int stride = 1;
};
// One way through a block: a pool or none, units in a row, and at the end units beside each other, whose
// outputs are concatenated; without any the pool's output is the branch's.
struct BranchSpec {
  std::vector<UnitSpec> units, ends;
  std::optional<PoolShape> pool = {};
};
struct BlockSpec {
  const char* name;
  std::vector<BranchSpec> branches;
};

constexpr UnitSpec square(const char* name, int out, const Extent& extent, int stride = 1) {
  return {name, out, extent, extent, stride};
}
constexpr UnitSpec along_row(const char* name, int out, const Extent& extent) {
  return {name, out, kOneTap, extent};
}
constexpr UnitSpec along_column(const char* name, int out, const Extent& extent) {
  return {name, out, extent, kOneTap};
}
constexpr PoolShape kMean = {kThree, kThree, 1, false}, kLargest = {kThree, kThree, 1, true},
                    kHalving = {kThreeInside, kThreeInside, 2, true};

BlockSpec stem(const char* name, int out, const Extent& extent, int stride = 1) {
  return {name, {{{}, {square("", out, extent, stride)}}}};
}
BlockSpec halving(const char* name) { return {name, {{{}, {}, kHalving}}}; }

BlockSpec block_a(const char* name, int pooled) {
  return {name,
          {{{}, {{"branch1x1", 64}}},
           {{{"branch5x5_1", 48}}, {square("branch5x5_2", 64, kFive)}},
           {{{"branch3x3dbl_1", 64}, square("branch3x3dbl_2", 96, kThree)},
            {square("branch3x3dbl_3", 96, kThree)}},
           {{}, {{"branch_pool", pooled}}, kMean}}};
}
BlockSpec block_b(const char* name) {
  return {name,
          {{{}, {square("branch3x3", 384, kThreeInside, 2)}},
           {{{"branch3x3dbl_1", 64}, square("branch3x3dbl_2", 96, kThree)},
            {square("branch3x3dbl_3", 96, kThreeInside, 2)}},
           {{}, {}, kHalving}}};
}
BlockSpec block_c(const char* name, int c) {
  return {name,
          {{{}, {{"branch1x1", 192}}},
           {{{"branch7x7_1", c}, along_row("branch7x7_2", c, kSeven)},
            {along_column("branch7x7_3", 192, kSeven)}},
           {{{"branch7x7dbl_1", c},
             along_column("branch7x7dbl_2", c, kSeven),
             along_row("branch7x7dbl_3", c, kSeven),
             along_column("branch7x7dbl_4", c, kSeven)},
            {along_row("branch7x7dbl_5", 192, kSeven)}},
           {{}, {{"branch_pool", 192}}, kMean}}};
}
BlockSpec block_d(const char* name) {
  return {name,
          {{{{"branch3x3_1", 192}}, {square("branch3x3_2", 320, kThreeInside, 2)}},
           {{{"branch7x7x3_1", 192},
             along_row("branch7x7x3_2", 192, kSeven),
             along_column("branch7x7x3_3", 192, kSeven)},
            {square("branch7x7x3_4", 192, kThreeInside, 2)}},
           {{}, {}, kHalving}}};
}
BlockSpec block_e(const char* name, const PoolShape& pool) {
  return {name,
          {{{}, {{"branch1x1", 320}}},
           {{{"branch3x3_1", 384}},
            {along_row("branch3x3_2a", 384, kThree), along_column("branch3x3_2b", 384, kThree)}},
           {{{"branch3x3dbl_1", 448}, square("branch3x3dbl_2", 384, kThree)},
            {along_row("branch3x3dbl_3a", 384, kThree), along_column("branch3x3dbl_3b", 384, kThree)}},
           {{}, {{"branch_pool", 192}}, pool}}};
}

std::vector<BlockSpec> blocks() {
  return {stem("Conv2d_1a_3x3", 32, kThreeInside, 2),
          stem("Conv2d_2a_3x3", 32, kThreeInside),
          stem("Conv2d_2b_3x3", 64, kThree),
          halving("MaxPool_1"),
          stem("Conv2d_3b_1x1", 80, kOneTap),
          stem("Conv2d_4a_3x3", 192, kThreeInside),
          halving("MaxPool_2"),
          block_a("Mixed_5b", 32),
          block_a("Mixed_5c", 64),
          block_a("Mixed_5d", 64),
          block_b("Mixed_6a"),
          block_c("Mixed_6b", 128),
          block_c("Mixed_6c", 160),
          block_c("Mixed_6d", 160),
          block_c("Mixed_6e", 192),
          block_d("Mixed_7a"),
          block_e("Mixed_7b", kMean),
          block_e("Mixed_7c", kLargest)};
}

// fn(block, branch, unit, inputs, is an end) for every unit, in order; returns the last map's channels.
template <typename Fn>
int for_units(const std::vector<BlockSpec>& specs, const Fn& fn) {
  int channels = 3;
  for (size_t b = 0; b < specs.size(); ++b) {
    int out = 0;
    for (size_t r = 0; r < specs[b].branches.size(); ++r) {
      const BranchSpec& branch = specs[b].branches[r];
      int in = channels;
      for (const UnitSpec& unit : branch.units) {
        fn(b, r, unit, in, false);
        in = unit.out;
      }
      for (const UnitSpec& unit : branch.ends) {
        fn(b, r, unit, in, true);
        out += unit.out;
      }
      if (branch.ends.empty()) out += in;
    }
    channels = out;
  }
  return channels;
}

std::string name_of(const BlockSpec& block, const UnitSpec& unit) {
  return *unit.name ? std::string(block.name) + "." + unit.name : block.name;
}

class Inception : public FeatureNetwork {
 public:
  Inception(NetworkWeights weights, bool bf16) {
    const std::vector<BlockSpec> specs = blocks();
    for (const BlockSpec& spec : specs) {
      Block& block = blocks_.emplace_back();
      block.name = spec.name;
      for (const BranchSpec& branch : spec.branches) block.branches.push_back({branch.pool, {}, {}});
    }
    for_units(specs, [&](size_t b, size_t r, const UnitSpec& unit, int in, bool is_end) {
      const std::string name = name_of(specs[b], unit);
      Branch& branch = blocks_[b].branches[r];
      // The first layer has too few inputs for bfloat16 to pay.
      (is_end ? branch.ends : branch.units)
          .push_back(folded(weights, name + ".conv", name + ".bn",
                            {in, unit.out, unit.stride, unit.rows, unit.columns}, kEps, bf16 && b > 0));
      if (is_end) blocks_[b].out += unit.out;
    });
    fc_ = linear(weights, "fc", kFeatures, kClasses, /*bias=*/false);
    const at::Tensor bias = weights.take("fc.bias", {kClasses}).to(at::kFloat);
    logit_bias_.assign(bias.const_data_ptr<float>(), bias.const_data_ptr<float>() + kClasses);
    weights.check_all_taken();
  }

  FeatureSizes sizes() const override { return {299, kFeatures, kClasses, 17 * 17 * kSpatialChannels}; }

  void run(FeatureWorkspace& workspace, HeldMap x, const FeatureRow& row,
           const StageObserver& observe) const override {
    for (const Block& block : blocks_) {
      x = run_block(workspace, block, *x);
      if (block.name == kSpatialBlock && row.spatial != nullptr) {
        for (int i = 0; i < x->H * x->W; ++i)
          std::copy_n(x->as<const float>() + x->at(0, i), kSpatialChannels,
                      row.spatial + int64_t{i} * kSpatialChannels);
      }
      if (observe) observe(block.name, *x);
    }
    mean_of_positions(*x, row.features);
    apply_linear(workspace, fc_, row.features, row.logits);
  }

 private:
  struct Branch {
    std::optional<PoolShape> pool;
    std::vector<Conv> units, ends;
  };
  struct Block {
    std::string name;
    std::vector<Branch> branches;
    int out = 0;  // channels of the ends; those of a branch that only pools come to them
  };

  static HeldMap run_block(FeatureWorkspace& workspace, const Block& block, const Map& x) {
    int out = block.out, height = 0, width = 0;
    for (const Branch& branch : block.branches) {  // all have one size
      if (branch.ends.empty()) {
        const PoolShape& shape = *branch.pool;
        out += x.C;
        height = (x.H - shape.rows.taps) / shape.stride + 1;
        width = (x.W - shape.columns.taps) / shape.stride + 1;
      } else if (branch.units.empty()) {
        height = branch.ends[0].shape().out_height(x.H);
        width = branch.ends[0].shape().out_width(x.W);
      }
    }
    HeldMap to(workspace.maps, height, width, out);
    int channel = 0;
    for (const Branch& branch : block.branches) {
      if (branch.ends.empty()) {
        pool(workspace.team, *branch.pool, x, *to, channel);
        channel += x.C;
        continue;
      }
      std::optional<HeldMap> last;
      const auto input = [&]() -> const Map& { return last ? **last : x; };
      if (branch.pool) {
        last.emplace(workspace.maps, x.H, x.W, x.C);
        pool(workspace.team, *branch.pool, x, **last);
      }
      for (const Conv& unit : branch.units) last = apply(workspace, unit, input(), Activation::Relu);
      for (const Conv& end : branch.ends) {
        run_conv(workspace, end, input(), *to, {.after = Activation::Relu, .channel = channel});
        channel += end.shape().out;
      }
    }
    return to;
  }

  std::vector<Block> blocks_;
  Conv fc_;
};

}  // namespace

std::unique_ptr<FeatureNetwork> make_inception(NetworkWeights weights, bool bf16) {
  return std::make_unique<Inception>(std::move(weights), bf16);
}

std::vector<std::pair<std::string, std::vector<int64_t>>> inception_tensors() {
  std::vector<std::pair<std::string, std::vector<int64_t>>> all;
  const std::vector<BlockSpec> specs = blocks();
  for_units(specs, [&](size_t b, size_t, const UnitSpec& unit, int in, bool) {
    const std::string name = name_of(specs[b], unit);
    all.push_back({name + ".conv.weight", {unit.out, in, unit.rows.taps, unit.columns.taps}});
    for (const char* part : {"weight", "bias", "running_mean", "running_var"})
      all.push_back({name + ".bn." + part, {unit.out}});
  });
  all.push_back({"fc.weight", {kClasses, kFeatures}});
  all.push_back({"fc.bias", {kClasses}});
  return all;
}

}  // namespace dydit::eval
