// SiT, U-ViT and Skip-DiT are the modules of a DiT by other values of the configuration: recorded forwards of
// the authors' code, what they cost, and what a file keeps of them.
#include "tests/support/families.h"

#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "dydit/base/error.h"
#include "dydit/model/checkpoint.h"
#include "dydit/model/dit.h"
#include "dydit/model/edit.h"
#include "dydit/model/macs.h"
#include "dydit/model/ops.h"
#include "tests/support/files.h"
#include "tests/support/random_model.h"

namespace dydit {
namespace {

using test::expect_error;
using test::Family;
using test::kSiT;
using test::kSkipDiT;
using test::kUViT;
using test::kUViTWithLabels;
using test::random_checkpoint;
using test::random_tensor;
using test::relative_difference;
using test::static_config;
using test::TemporaryFolder;
using test::tiny_config;

constexpr double kTolerance = 1e-5;  // of the largest value

class Families : public testing::TestWithParam<Family> {
 protected:
  static at::Tensor recorded(const std::string& name) { return GetParam().recorded(name); }
  at::Tensor times() const { return GetParam().times(checkpoint_.config); }
  // The first `channels` that come out.
  at::Tensor forward(int64_t channels, const Gates& gates = {}) const {
    at::NoGradGuard no_grad;
    DiT model = make_model(checkpoint_);
    const at::Tensor labels = GetParam().labels ? recorded("y") : at::Tensor();
    return model->forward(recorded("x"), model->embed_timestep(times()), labels, gates).slice(1, 0, channels);
  }

  const Checkpoint checkpoint_ = GetParam().checkpoint();
};
INSTANTIATE_TEST_SUITE_P(Recorded, Families, testing::Values(kSiT, kUViT, kUViTWithLabels, kSkipDiT),
                         [](const auto& info) { return std::string(info.param.name); });

class RoutedFamilies : public Families {};
INSTANTIATE_TEST_SUITE_P(Recorded, RoutedFamilies, testing::Values(kSiT, kUViT, kUViTWithLabels),
                         [](const auto& info) { return std::string(info.param.name); });

TEST_P(Families, StaticForwardIsTheAuthors) {
  const at::Tensor wanted = recorded(GetParam().routers ? "out_static" : "out");
  EXPECT_LT(relative_difference(forward(wanted.size(1)), wanted), kTolerance);
}

TEST_P(RoutedFamilies, EmbeddingsOfTimesAreTheAuthors) {
  at::NoGradGuard no_grad;
  EXPECT_LT(relative_difference(make_model(checkpoint_)->embed_timestep(times()), recorded("t_emb")),
            kTolerance);
}

TEST_P(RoutedFamilies, ForwardWithTheRecordedGatesIsTheRecordedOne) {
  const at::Tensor heads = recorded("attn_mask"), groups = recorded("mlp_mask"),
                   tokens = recorded("token_mask");
  Gates gates;
  for (int l = 0; l < checkpoint_.config.depth; ++l) {
    gates.heads.push_back(heads.select(1, l).contiguous());
    gates.groups.push_back(groups.select(1, l).contiguous());
  }
  // The recorded ones have the tokens in front of the patches, too; those are always on.
  const int extras = checkpoint_.config.extras();
  EXPECT_TRUE(tokens.slice(2, 0, extras).eq(1).all().item<bool>());
  gates.tokens = [&](int block, const at::Tensor&) {
    return tokens.select(1, block).slice(1, extras).contiguous();
  };
  const at::Tensor wanted = recorded(GetParam().all_channels);
  EXPECT_LT(relative_difference(forward(wanted.size(1), gates), wanted), kTolerance);
  EXPECT_GT(relative_difference(forward(wanted.size(1)), wanted), 1e-3);  // the gates matter
}

TEST_P(RoutedFamilies, RoutersDecideAsRecorded) {
  at::NoGradGuard no_grad;
  DiT model = make_model(checkpoint_);
  const at::Tensor t_emb = model->embed_timestep(times());
  for (int l = 0; l < checkpoint_.config.depth; ++l) {
    const WidthLogits logits = model->blocks[l]->width_logits(t_emb);
    EXPECT_TRUE(at::equal((logits.heads > 0).to(at::kFloat), recorded("attn_mask").select(1, l).slice(1, 1)));
    EXPECT_TRUE(at::equal((logits.groups > 0).to(at::kFloat), recorded("mlp_mask").select(1, l).slice(1, 1)));
  }
}

TEST_P(Families, ParametersAreCountedAsTheFileHasThem) {
  EXPECT_EQ(num_parameters(checkpoint_.config), checkpoint_.num_parameters());
}

// Small configurations of each family.

DiTConfig small_uvit(int num_classes, bool has_null_class = true) {
  DiTConfig config = tiny_config();
  config.depth = 3;
  config.in_channels = 3;
  config.num_classes = num_classes;
  config.has_null_class = has_null_class;
  config.learn_sigma = config.time_mlp = config.qkv_bias = false;
  config.output_conv = true;
  return with_uvit(config);
}

// All that published models do not have.
DiTConfig small_uvit_with_all() {
  DiTConfig config = small_uvit(5);
  config.time_mlp = config.qkv_bias = true;
  config.output_conv = false;
  return config;
}

DiTConfig small_skip_dit(Join join = Join::Normed) {
  DiTConfig config = static_config();
  config.depth = 4;
  config.join = join;
  return config;
}

DiTConfig small_sit(const Objective& objective) { return with_objective(tiny_config(), objective); }

std::vector<DiTConfig> small_configs() {
  return {small_sit({Path::Linear, Prediction::Velocity, ModelClock::Data}),
          small_sit({Path::Linear, Prediction::Velocity, ModelClock::Noise}),
          small_sit({Path::Gvp, Prediction::Noise, ModelClock::Data}),
          small_sit({Path::Vp, Prediction::Velocity, ModelClock::Data}),
          small_uvit(0),
          small_uvit(5),
          small_uvit(10, /*has_null_class=*/false),
          small_uvit(7, /*has_null_class=*/false),
          small_uvit_with_all(),
          small_skip_dit(),
          small_skip_dit(Join::Plain),
          small_skip_dit(Join::Residual)};
}

void expect_file_keeps(const DiTConfig& config) {
  const TemporaryFolder folder;
  save_checkpoint(folder / "m.safetensors", random_checkpoint(config), at::kFloat);
  const DiTConfig read = load_checkpoint(folder / "m.safetensors").config;
  EXPECT_EQ(read, config) << model_name(config) << ", " << objective_text(config.objective) << ", "
                          << config.num_classes << " classes: " << config_to_json(read);
}

TEST(FamilyConfigs, AreKeptInAFile) {
  for (const DiTConfig& config : small_configs()) expect_file_keeps(config);
}

// With the null class as many rows as a data set has classes.
TEST(FamilyConfigs, NullClassesOfRoundTablesAreKeptInAFile) {
  for (const int num_classes : {9, 99}) expect_file_keeps(small_uvit(num_classes));
}

TEST(FamilyConfigs, SemanticsOfDiffusersAreKeptInAFile) {
  for (const bool learn_sigma : {true, false}) {
    DiTConfig config = tiny_config();
    config.learn_sigma = learn_sigma;
    expect_file_keeps(with_objective(with_semantics(config, Semantics::Diffusers),
                                     {Path::Linear, Prediction::Velocity, ModelClock::Data}));
  }
}

TEST(FamilyConfigs, OfADiTSayNothingNew) {
  const nlohmann::json json = config_to_json(tiny_config());
  for (const char* key : {"path", "prediction", "null_class", "semantics"})
    EXPECT_FALSE(json.contains(key)) << key;
}

TEST(NumParameters, OfEveryFamilyAreThoseOfTheModule) {
  for (const DiTConfig& config : small_configs())
    EXPECT_EQ(num_parameters(config), random_checkpoint(config).num_parameters()) << model_name(config);
}

TEST(InitCheckpoint, OfEveryFamilyIsAWholeModel) {
  for (const DiTConfig& config : small_configs()) {
    const Checkpoint checkpoint = init_checkpoint(config, 1);
    EXPECT_EQ(checkpoint.num_parameters(), num_parameters(config)) << model_name(config);
    for (const auto& [name, tensor] : checkpoint.weights) {
      if (name.find("norm") == name.npos) continue;
      EXPECT_TRUE(tensor.eq(name.ends_with("weight") ? 1 : 0).all().item<bool>()) << name;
    }
  }
}

TEST(InitCheckpoint, OfAUViTIsSmallNormals) {
  const Checkpoint checkpoint = init_checkpoint(small_uvit(5), 1);
  for (const char* name : {"pos_embed", "blocks.0.attn.qkv.weight", "blocks.2.skip_linear.weight",
                           "y_embedder.embedding_table.weight", "final_layer.linear.weight"})
    EXPECT_NEAR(checkpoint.weights.at(name).std().item<double>(), 0.02, 0.004) << name;
}

TEST(RandomModel, IsOfEveryFamily) {
  for (const char* size : {"DySiT-S/8", "DyU-ViT-S/8", "Skip-DiT-S/8"}) {
    const Checkpoint checkpoint = random_model(size, 16);
    EXPECT_EQ(model_name(checkpoint.config), size);
    EXPECT_EQ(checkpoint.num_parameters(), num_parameters(checkpoint.config));
  }
}

// Names and sizes.

TEST(NamedConfig, KnowsThePublishedFamilies) {
  for (const char* name :
       {"SiT-XL/2", "SiT-S/8", "U-ViT-S/2", "U-ViT-S-Deep/2", "U-ViT-H/4", "Skip-DiT-XL/2"})
    EXPECT_EQ(model_name(named_config(name)), name);
  EXPECT_EQ(named_config("SiT-B/4").objective,
            (Objective{Path::Linear, Prediction::Velocity, ModelClock::Data}));
  EXPECT_EQ(named_config("U-ViT-L/2").depth, 21);
  EXPECT_EQ(named_config("Skip-DiT-L/2").join, Join::Normed);
}

TEST(NamedConfig, OfAnUnknownSizeIsRefused) {
  for (const char* name : {"U-ViT-XL/2", "SiT-H/2", "Skip-DiT-S/3", "PixArt-XL/2", "U-ViT"}) {
    EXPECT_THROW(named_config(name), UsageError) << name;
    expect_error([&] { named_config(name); }, "no such size; expected DiT-S");
  }
}

TEST(ModelName, SaysTheFamilyOfOtherSizes) {
  EXPECT_EQ(model_name(small_uvit(5)), "DyU-ViT (3 blocks, hidden 64, 4 heads, patch 2)");
  EXPECT_EQ(model_name(small_skip_dit()), "Skip-DiT (4 blocks, hidden 64, 4 heads, patch 2)");
  EXPECT_EQ(model_name(small_sit({Path::Gvp, Prediction::Velocity, ModelClock::Data})),
            "DySiT (2 blocks, hidden 64, 4 heads, patch 2)");
}

TEST(KnownNumHeads, AreTheFamilys) {
  const auto heads = [](DiTConfig config, int hidden_size) {
    config.hidden_size = hidden_size;
    return known_num_heads(config);
  };
  EXPECT_EQ(heads(small_uvit(0), 512), 8);
  EXPECT_EQ(heads(small_uvit(0), 1024), 16);
  EXPECT_EQ(heads({}, 384), 6);
  EXPECT_EQ(heads({}, 512), 0);
}

// Joins: the second half of the blocks takes the first half's outputs, the innermost first.

TEST(JoinSource, OfThirteenBlocksLeavesOutTheOneInTheMiddle) {
  const DiTConfig config = named_config("U-ViT-S/2");
  for (int i = 0; i <= 6; ++i) EXPECT_EQ(config.join_source(i), -1) << i;
  for (int i = 7; i < 13; ++i) EXPECT_EQ(config.join_source(i), 12 - i) << i;
  EXPECT_EQ(config.num_joins(), 6);
}

TEST(JoinSource, OfTwentyEightBlocksBeginsWithTheBlockBefore) {
  const DiTConfig config = named_config("Skip-DiT-XL/2");
  for (int i = 0; i < 14; ++i) EXPECT_EQ(config.join_source(i), -1) << i;
  EXPECT_EQ(config.join_source(14), 13);
  EXPECT_EQ(config.join_source(27), 0);
  EXPECT_EQ(config.num_joins(), 14);
}

TEST(JoinSource, OfADiTIsNone) {
  for (int i = 0; i < 28; ++i) EXPECT_EQ(DiTConfig().join_source(i), -1) << i;
  EXPECT_EQ(DiTConfig().num_joins(), 0);
}

// The stream in the first columns, the skip in the others; the result replaces the stream.
TEST(Join, TakesTheStreamFirst) {
  at::NoGradGuard no_grad;
  Checkpoint checkpoint = random_checkpoint(small_skip_dit(Join::Plain));
  const int64_t C = checkpoint.config.hidden_size;
  at::Tensor& weight = checkpoint.weights.at("blocks.2.skip_linear.weight");
  weight = at::cat({at::eye(C), at::zeros({C, C})}, 1);
  checkpoint.weights.at("blocks.2.skip_linear.bias").zero_();
  const at::Tensor x = random_tensor({2, 16, C}, 1, 0), skip = random_tensor({2, 16, C}, 1, 1);
  EXPECT_TRUE(at::allclose(make_model(checkpoint)->blocks[2]->join(x, skip), x, 0, 1e-6));
  weight = at::cat({at::zeros({C, C}), at::eye(C)}, 1);
  EXPECT_TRUE(at::allclose(make_model(checkpoint)->blocks[2]->join(x, skip), skip, 0, 1e-6));
}

TEST(Join, NormsBothTogether) {
  at::NoGradGuard no_grad;
  Checkpoint checkpoint = random_checkpoint(small_skip_dit());
  const int64_t C = checkpoint.config.hidden_size;
  checkpoint.weights.at("blocks.2.skip_linear.weight") = at::cat({at::eye(C), at::zeros({C, C})}, 1);
  checkpoint.weights.at("blocks.2.skip_linear.bias").zero_();
  checkpoint.weights.at("blocks.2.skip_norm.weight").fill_(1);
  checkpoint.weights.at("blocks.2.skip_norm.bias").zero_();
  const at::Tensor x = random_tensor({2, 16, C}, 1, 0), skip = random_tensor({2, 16, C}, 1, 1, 10);
  const at::Tensor both = at::cat({x, skip}, 2), mean = both.mean({2}, true),
                   variance = (both - mean).square().mean({2}, true);
  EXPECT_TRUE(at::allclose(make_model(checkpoint)->blocks[2]->join(x, skip),
                           (x - mean) / (variance + 1e-6).sqrt(), 1e-4, 1e-5));
}

// Tokens in front of the patches: where the label and the time come in.

at::Tensor static_forward(const Checkpoint& checkpoint, const at::Tensor& x, double time, int64_t label) {
  at::NoGradGuard no_grad;
  DiT model = make_model(checkpoint);
  return model->forward(x, model->embed_timestep(at::full({x.size(0)}, time, at::kDouble)),
                        at::full({x.size(0)}, label, at::kLong));
}

TEST(UViT, LabelAndTimeMatter) {
  const Checkpoint checkpoint = random_checkpoint(small_uvit(5));
  const at::Tensor x = random_tensor({1, 3, 8, 8}, 1, 0), out = static_forward(checkpoint, x, 500, 1);
  EXPECT_GT(relative_difference(static_forward(checkpoint, x, 500, 2), out), 1e-3);
  EXPECT_GT(relative_difference(static_forward(checkpoint, x, 700.5, 1), out), 1e-3);
}

TEST(UViT, WithoutClassesReadsNoLabel) {
  const Checkpoint checkpoint = random_checkpoint(small_uvit(0));
  const at::Tensor x = random_tensor({1, 3, 8, 8}, 1, 0);
  EXPECT_TRUE(at::equal(static_forward(checkpoint, x, 500, 3), static_forward(checkpoint, x, 500, 0)));
}

// An image of one value: at its edge the convolution sees zeros outside.
TEST(UViT, ConvolvesTheAssembledImage) {
  at::NoGradGuard no_grad;
  Checkpoint checkpoint = random_checkpoint(small_uvit(0));
  checkpoint.weights.at("final_layer.linear.weight").zero_();
  checkpoint.weights.at("final_layer.linear.bias").fill_(1);
  checkpoint.weights.at("final_conv.weight").fill_(1);
  checkpoint.weights.at("final_conv.bias").zero_();
  const at::Tensor out = static_forward(checkpoint, random_tensor({1, 3, 8, 8}, 1, 0), 500, 0)[0][0];
  EXPECT_NEAR(out[4][3].item<double>(), 27, 1e-4);  // 9 of 3 channels, over the borders of patches
  EXPECT_NEAR(out[0][3].item<double>(), 18, 1e-4);
  EXPECT_NEAR(out[0][0].item<double>(), 12, 1e-4);
}

TEST(GatedGelu, OfTheExactFormIsErf) {
  at::NoGradGuard no_grad;
  const at::Tensor h = at::linspace(-9, 9, 4001).view({1, 1, 4001});
  const at::Tensor exact = at::gelu(h.to(at::kDouble), "none");
  const auto distance = [&](const at::Tensor& got) { return (got - exact).abs().max().item<double>(); };
  EXPECT_LT(distance(gated_gelu(h, {}, GeluForm::Erf)), 2e-6);
  EXPECT_GT(distance(gated_gelu(h)), 1e-4);  // the approximation is another function
}

// What they cost.

// Attention, MLPs and joins of all blocks, without what makes their modulation.
int64_t block_macs(const DiTConfig& config) {
  int64_t macs = 0;
  for (int block = 0; block < config.depth; ++block) macs += join_macs(config, block);
  return macs + config.depth * (attention_macs(config, config.num_heads) +
                                mlp_macs(config, config.num_heads, config.num_tokens()));
}
double giga(int64_t macs) { return 1e-9 * static_cast<double>(macs); }

TEST(Macs, OfUViTS2AreItsFormula) {
  DiTConfig config = named_config("U-ViT-S/2");
  config.input_size = 32;
  config.in_channels = 3;
  config.num_classes = 0;
  config = with_uvit(config);
  const int64_t T = 257, N = 256, C = 512, L = 13;
  const int64_t blocks = L * (12 * T * C * C + 2 * T * T * C), skips = 6 * 2 * T * C * C;
  const int64_t ends = N * C * 12 + N * C * 12 + 9 * 3 * 3 * 32 * 32;  // patches, decoder, convolution
  EXPECT_NEAR(giga(blocks), 11.39, 0.005);
  EXPECT_NEAR(giga(skips), 0.81, 0.005);
  EXPECT_EQ(block_macs(config), blocks + skips);
  EXPECT_EQ(static_macs(config), blocks + skips + ends);
  EXPECT_NEAR(1e-6 * static_cast<double>(num_parameters(config)), 44, 1);
}

TEST(Macs, OfUViTL2AreItsTables) {
  const DiTConfig config = named_config("U-ViT-L/2");  // 258 tokens, of a label, too
  EXPECT_EQ(config.sequence(), 258);
  EXPECT_NEAR(giga(block_macs(config)), 71.0 + 5.4, 0.1);
  EXPECT_NEAR(1e-6 * static_cast<double>(num_parameters(config)), 287, 1.5);
}

TEST(Macs, OfSkipDiTXL2AreItsPapers) {
  const DiTConfig config = named_config("Skip-DiT-XL/2");
  EXPECT_NEAR(giga(block_macs(named_config("DiT-XL/2"))), 118.38, 0.01);
  EXPECT_NEAR(giga(block_macs(config)), 127.89, 0.01);
  EXPECT_EQ(static_macs(config), static_macs(named_config("DiT-XL/2")) + 14 * 2 * 256 * int64_t{1152} * 1152);
}

TEST(Macs, OfSiTXL2AreThoseOfDiTXL2) {
  EXPECT_EQ(static_macs(named_config("SiT-XL/2")), static_macs(named_config("DiT-XL/2")));
  EXPECT_EQ(num_parameters(named_config("SiT-XL/2")), num_parameters(named_config("DiT-XL/2")));
  EXPECT_NEAR(giga(static_macs(named_config("SiT-XL/2"))), 118.69, 0.002 * 118.69);
}

TEST(Macs, OfAnMlpCountTheTokensInFrontWhateverIsKept) {
  const DiTConfig config = small_uvit(5);
  const int64_t C = config.hidden_size, F = config.mlp_hidden;
  EXPECT_EQ(mlp_macs(config, config.num_heads, 0), 2 * 2 * C * F);
  EXPECT_EQ(mlp_macs(config, config.num_heads, 7), 2 * (7 + 2) * C * F);
}

TEST(Macs, WithoutAModulationOfTheTimeCountNone) {
  EXPECT_EQ(adaLN_macs(small_uvit(0)), 0);
  EXPECT_EQ(adaLN_macs(small_skip_dit()), 3 * 64 * 64);
}

TEST(EnteringShare, CountsTheTokensInFront) {
  const DiTConfig config = small_uvit(5);  // 2 in front of 16
  EXPECT_DOUBLE_EQ(config.entering_share(1), 1);
  EXPECT_DOUBLE_EQ(config.entering_share(0), 2.0 / 18);
  EXPECT_DOUBLE_EQ(config.entering_share(0.5), 10.0 / 18);
  EXPECT_EQ(tiny_config().entering_share(0.5), 0.5);
}

}  // namespace
}  // namespace dydit
