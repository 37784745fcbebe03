// The block of DiffCR's published pseudo-code, replayed by the modules of a block whose tokens skip it:
// attention among the tokens that are left, the MLP's update times the router's sigmoid.
#include <string>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "dydit/io/safetensors.h"
#include "dydit/model/dit.h"
#include "dydit/model/ops.h"
#include "tests/support/random_model.h"
#include "tests/support/shared.h"

namespace dydit {
namespace {

const char* const kVectors = "golden/diffcr/diffcr.safetensors";

class PublishedBlock {
 public:
  PublishedBlock() : file_(read_safetensors(test::shared_path(kVectors))) {
    const at::Tensor x = at("x");
    DiTConfig config = test::static_config();
    config.input_size = 4;  // 16 tokens
    config.patch_size = 1;
    config.hidden_size = static_cast<int>(x.size(2));
    config.num_heads = 3;
    config.mlp_hidden = static_cast<int>(at("weight.mlp.fc1.bias").numel());
    block_ = DiTBlock(config, 0);
    at::NoGradGuard no_grad;
    for (const auto& [layer, name] : {std::pair{block_->qkv, "attn.qkv"},
                                      {block_->proj, "attn.proj"},
                                      {block_->fc1, "mlp.fc1"},
                                      {block_->fc2, "mlp.fc2"}}) {
      layer->weight.copy_(at(std::string("weight.") + name + ".weight"));
      layer->bias.copy_(at(std::string("weight.") + name + ".bias"));
    }
  }

  at::Tensor at(const std::string& name) const { return to_tensor(file_.tensors.at(name), file_.file); }

  // `keep` of the tokens, those of the largest scores.
  at::Tensor forward(int64_t keep) {
    at::NoGradGuard no_grad;
    const at::Tensor x = at("x"), scores = at("scores");
    const auto ada = at("modulation").chunk(6, 1);
    const at::Tensor order = at::argsort(scores, /*stable=*/true, 1, /*descending=*/true);
    const at::Tensor on = at::zeros_like(scores).scatter(1, order.slice(1, 0, keep), 1.0);
    const auto normed = [&](const at::Tensor& of, int first) {
      return layer_norm_modulate(of, ada[first], ada[first + 1], at::kFloat, kLayerNormEps);
    };
    const at::Tensor h =
        gated_residual(x, ada[2], block_->attention(normed(x, 0), {}, at::kFloat, /*shares=*/{}, on), on);
    return gated_residual(h, ada[5], block_->mlp(normed(h, 3), {}, at::kFloat), on * at::sigmoid(scores));
  }

 private:
  SafetensorsFile file_;
  DiTBlock block_{nullptr};
};

TEST(DiffCR, TheBlockAtEachOfTheTwoNearestRatiosIsThePublishedOne) {
  SKIP_WITHOUT(test::shared_path(kVectors));
  PublishedBlock block;
  const at::Tensor keep = block.at("keep");
  for (int bin = 0; bin < 2; ++bin) {
    const int64_t count = keep[bin].item<int64_t>();
    ASSERT_LT(count, 16);
    EXPECT_LT(test::relative_difference(block.forward(count), block.at("out_bin" + std::to_string(bin))),
              1e-5);
  }
}

TEST(DiffCR, TheBlockBetweenTwoRatiosIsTheirInterpolation) {
  SKIP_WITHOUT(test::shared_path(kVectors));
  PublishedBlock block;
  const at::Tensor keep = block.at("keep"), bins = block.at("nearest_bins"), rho = block.at("rho");
  const double a = bins[0].item<double>(), b = bins[1].item<double>(), w = (b - rho.item<double>()) / (b - a);
  const at::Tensor mixed =
      w * block.forward(keep[0].item<int64_t>()) + (1 - w) * block.forward(keep[1].item<int64_t>());
  EXPECT_LT(test::relative_difference(mixed, block.at("out_train")), 1e-5);
}

}  // namespace
}  // namespace dydit
