// Folders of diffusers: the model that tools/make_diffusers_model.py recorded, read, computed and written.
#include "dydit/io/diffusers.h"

#include <fstream>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "dydit/engine/engine.h"
#include "dydit/io/safetensors.h"
#include "dydit/model/checkpoint.h"
#include "dydit/model/dit.h"
#include "dydit/pipeline/generate.h"
#include "tests/support/engines.h"
#include "tests/support/files.h"
#include "tests/support/golden.h"
#include "tests/support/random_model.h"

namespace dydit {
namespace {

namespace fs = std::filesystem;
using test::expect_error;
using test::golden;
using test::golden_path;
using test::relative_difference;

// A copy of the recorded folder that a test may spoil.
class DiffusersFolder : public testing::Test {
 protected:
  void SetUp() override { fs::copy(golden_path("diffusers"), folder(), fs::copy_options::recursive); }

  fs::path folder() const { return top_ / "pipeline"; }
  fs::path weights() const { return folder() / "transformer/diffusion_pytorch_model.safetensors"; }
  fs::path config() const { return folder() / "transformer/config.json"; }

  void replace(const fs::path& path, const std::string& from, const std::string& to) {
    std::ifstream in(path);
    std::string text((std::istreambuf_iterator<char>(in)), {});
    ASSERT_NE(text.find(from), text.npos) << text;
    text.replace(text.find(from), from.size(), to);
    std::ofstream(path) << text;
  }

  // Rewrites the weights after `change` has seen their views.
  template <typename Change>
  void change_weights(const Change& change) {
    SafetensorsFile file = read_safetensors(weights());
    std::vector<std::byte> spare;
    change(file.tensors, spare);
    write_safetensors(top_ / "changed", file.tensors, file.metadata);
    fs::rename(top_ / "changed", weights());
  }

  test::TemporaryFolder top_;
};

// Less than what an eps of 1e-6 changes.
constexpr double kTolerance = 3e-6;

at::Tensor forward(const Checkpoint& checkpoint) {
  at::NoGradGuard no_grad;
  DiT model = make_model(checkpoint);
  return model->forward(golden("diffusers/forward", "x"),
                        model->embed_timestep(golden("diffusers/forward", "t")),
                        golden("diffusers/forward", "y"));
}

TEST(Diffusers, ForwardIsThatOfDiffusers) {
  EXPECT_LT(relative_difference(forward(load_checkpoint(golden_path("diffusers"))),
                                golden("diffusers/forward", "out")),
            kTolerance);
}

TEST(Diffusers, ForwardOfTheCpuEngineIsThatOfDiffusers) {
  const Checkpoint checkpoint = load_checkpoint(golden_path("diffusers"));
  const at::Tensor x = golden("diffusers/forward", "x"), t = golden("diffusers/forward", "t"),
                   y = golden("diffusers/forward", "y"), out = golden("diffusers/forward", "out");
  for (int64_t row = 0; row < x.size(0); ++row) {
    const std::vector<double> timestep = {static_cast<double>(t[row].item<int64_t>())};
    const test::EngineOf engine(EngineKind::Cpu, checkpoint, {.threads = 2}, Mode::Static, timestep);
    const at::Tensor got = engine.forward(x.slice(0, row, row + 1), 0, {y[row].item<int64_t>()}).out;
    EXPECT_LT(relative_difference(got, out.slice(0, row, row + 1)), kTolerance) << row;
  }
}

// Without this the two tests above would not see that an eps is wrong.
TEST(Diffusers, EachDifferenceOfTheSemanticsShows) {
  Checkpoint original = load_checkpoint(golden_path("diffusers"));
  original.config = with_semantics(original.config, Semantics::Original);
  at::NoGradGuard no_grad;
  DiT model = make_model(original);
  DiT diffusers = make_model(load_checkpoint(golden_path("diffusers")));
  const at::Tensor t = golden("diffusers/forward", "t"), x = golden("diffusers/forward", "x"),
                   y = golden("diffusers/forward", "y"), out = golden("diffusers/forward", "out");
  EXPECT_GT(relative_difference(diffusers->forward(x, model->embed_timestep(t), y), out), 1e-3);  // i/128
  EXPECT_GT(relative_difference(model->forward(x, diffusers->embed_timestep(t), y), out),
            2 * kTolerance);  // eps 1e-6
}

TEST(Diffusers, FolderSaysWhatTheModelIs) {
  const Checkpoint checkpoint = load_checkpoint(golden_path("diffusers"));
  EXPECT_EQ(checkpoint.config, with_semantics({.input_size = 8,
                                               .patch_size = 2,
                                               .in_channels = 4,
                                               .hidden_size = 24,
                                               .depth = 2,
                                               .num_heads = 3,
                                               .mlp_hidden = 96,
                                               .num_classes = 5,
                                               .learn_sigma = true},
                                              Semantics::Diffusers));
  ASSERT_EQ(checkpoint.class_names.size(), 5u);
  EXPECT_EQ(checkpoint.class_names[3], "class 3");
}

TEST(Diffusers, GuidesAllChannelsAndDropsTheVariance) {
  const Checkpoint checkpoint = load_checkpoint(golden_path("diffusers"));
  GenerateOptions options;
  EXPECT_EQ(options.channels_guided(checkpoint.config), 4);
  options.guided_channels = 2;
  EXPECT_EQ(options.channels_guided(checkpoint.config), 2);

  // DDPM takes its variance from the betas then: the learned half of the output may say anything.
  options.num_steps = 3;
  options.cfg_scale = 1;
  const auto sample_of = [&](const Checkpoint& model) {
    at::Tensor sample;
    GenerateCallbacks callbacks;
    callbacks.on_sample = [&](GeneratedSample&& made) { sample = made.sample; };
    generate(model, options, callbacks);
    return sample;
  };
  Checkpoint other = checkpoint;
  at::Tensor bias = other.weights.at("final_layer.linear.bias").clone();
  bias.view({4, 8}).slice(1, 4).add_(5);
  other.weights["final_layer.linear.bias"] = bias;
  EXPECT_EQ(relative_difference(sample_of(checkpoint), sample_of(other)), 0);
}

TEST_F(DiffusersFolder, ComesBackAsItWas) {
  save_diffusers_folder(top_ / "back", load_checkpoint(folder()), at::kFloat);
  const SafetensorsFile before = read_safetensors(weights()),
                        after = read_safetensors(top_ / "back/diffusion_pytorch_model.safetensors");
  ASSERT_EQ(before.tensors.size(), after.tensors.size());
  for (const auto& [name, view] : before.tensors) {
    const auto found = after.tensors.find(name);
    ASSERT_NE(found, after.tensors.end()) << name;
    EXPECT_TRUE(at::equal(to_tensor(view, before.file), to_tensor(found->second, after.file))) << name;
  }
  EXPECT_EQ(load_checkpoint(top_ / "back").config, load_checkpoint(folder()).config);
}

TEST_F(DiffusersFolder, SemanticsGoWithTheFile) {
  Checkpoint checkpoint = load_checkpoint(folder());
  save_checkpoint(top_ / "a.safetensors", checkpoint, at::kFloat);
  EXPECT_EQ(semantics_of(load_checkpoint(top_ / "a.safetensors").config), Semantics::Diffusers);
  save_torch_checkpoint(top_ / "a.pt", checkpoint, at::kFloat);
  EXPECT_EQ(semantics_of(load_checkpoint(top_ / "a.pt").config), Semantics::Diffusers);
  checkpoint.config = with_semantics(checkpoint.config, Semantics::Original);
  save_checkpoint(top_ / "b.safetensors", checkpoint, at::kFloat);
  EXPECT_EQ(semantics_of(load_checkpoint(top_ / "b.safetensors").config), Semantics::Original);
}

TEST_F(DiffusersFolder, TransformerAloneIsEnough) {
  EXPECT_TRUE(
      at::equal(forward(load_checkpoint(folder() / "transformer")), forward(load_checkpoint(folder()))));
}

TEST_F(DiffusersFolder, EmbeddersThatDifferAreNamed) {
  const std::string name = "transformer_blocks.1.norm1.emb.timestep_embedder.linear_2.bias";
  change_weights([&](TensorViews& tensors, std::vector<std::byte>& spare) {
    TensorView& view = tensors.at(name);
    spare.assign(view.data, view.data + 24 * sizeof(float));
    spare[7] ^= std::byte{1};
    view.data = spare.data();
  });
  expect_error([&] { load_checkpoint(folder()); }, name + " differs from the first block's");
}

TEST_F(DiffusersFolder, MissingAndUnknownTensorsAreNamed) {
  change_weights([](TensorViews& tensors, auto&) { tensors.erase("transformer_blocks.1.attn1.to_k.bias"); });
  expect_error([&] { load_checkpoint(folder()); }, "transformer_blocks.1.attn1.to_k.bias is missing");
  fs::copy(golden_path("diffusers/transformer/diffusion_pytorch_model.safetensors"), weights(),
           fs::copy_options::overwrite_existing);
  change_weights([](TensorViews& tensors, auto&) {
    tensors["scale_shift_table"] = tensors.at("transformer_blocks.1.attn1.to_k.bias");
  });
  expect_error([&] { load_checkpoint(folder()); }, "\"scale_shift_table\" belongs to no part of a DiT");
}

TEST_F(DiffusersFolder, OtherModelsAreRefused) {
  replace(config(), "DiTTransformer2DModel", "PixArtTransformer2DModel");
  expect_error([&] { load_checkpoint(folder()); }, "holds \"PixArtTransformer2DModel\"; a DiT is wanted");
}

TEST_F(DiffusersFolder, OtherSettingsAreRefused) {
  replace(config(), "\"norm_eps\": 1e-05", "\"norm_eps\": 1e-04");
  expect_error([&] { load_checkpoint(folder()); }, "norm_eps is 0.0001, but a DiT has 1e-05");
}

TEST_F(DiffusersFolder, MoreBlocksThanTensorsAreRefused) {
  replace(config(), "\"num_layers\": 2", "\"num_layers\": 4000000");
  expect_error([&] { load_checkpoint(folder()); }, "speaks of 4000000 blocks");
}

TEST_F(DiffusersFolder, ClaimedSizesAreJudgedBeforeATableIsMade) {
  replace(config(), "\"sample_size\": 8", "\"sample_size\": 4194302");
  expect_error([&] { load_checkpoint(folder()); }, "2097151 x 2097151 patches of hidden size 24");
  replace(config(), "\"attention_head_dim\": 8", "\"attention_head_dim\": 4194302");
  replace(config(), "\"num_attention_heads\": 3", "\"num_attention_heads\": 4194302");
  expect_error([&] { load_checkpoint(folder()); }, "no model is that large");  // 2^86 does not fit 64 bits
}

TEST_F(DiffusersFolder, ConfigBesideOtherWeightsIsNotOfDiffusers) {
  EXPECT_TRUE(is_diffusers_folder(folder() / "transformer"));
  fs::rename(weights(), folder() / "transformer/model.safetensors");
  EXPECT_FALSE(is_diffusers_folder(folder() / "transformer"));
}

TEST_F(DiffusersFolder, MissingWeightsAreNamed) {
  fs::remove(weights());
  expect_error([&] { load_checkpoint(folder()); }, "has neither diffusion_pytorch_model.safetensors nor");
}

TEST_F(DiffusersFolder, BrokenConfigIsRefused) {
  std::ofstream(config()) << "{";
  expect_error([&] { load_checkpoint(folder()); }, "config.json: is not a JSON object");
}

TEST(Diffusers, HasNoPlaceForRoutersOrOtherTables) {
  expect_error(
      [] { save_diffusers_folder("/nowhere/x", test::random_checkpoint(test::tiny_config()), at::kFloat); },
      "--to static drops them");
  Checkpoint other = load_checkpoint(golden_path("diffusers"));
  other.weights["pos_embed"] = other.weights["pos_embed"] + 0.1;
  expect_error([&] { save_diffusers_folder("/nowhere/x", other, at::kFloat); }, "is not the sin-cos table");
}

}  // namespace
}  // namespace dydit
