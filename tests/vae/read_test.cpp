// Every layout in which autoencoders are handed round becomes the same tensors under the same names.
#include <chrono>
#include <filesystem>
#include <fstream>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "dydit/io/bytes.h"
#include "dydit/vae/autoencoder.h"
#include "tests/support/autoencoder_files.h"
#include "tests/support/checkpoint_files.h"
#include "tests/support/golden.h"
#include "tests/support/shared.h"

namespace dydit {
namespace {

namespace fs = std::filesystem;
using test::expect_error;
using test::same_weights;
using test::write_file;
using test::pickle::number;
using test::pickle::text;

bool says(const AutoencoderFile& file, const std::string& part) {
  return std::any_of(file.notes.begin(), file.notes.end(),
                     [&](const std::string& note) { return note.find(part) != note.npos; });
}

class Published : public testing::Test {
 protected:
  fs::path golden(const std::string& name) const { return test::shared_path("golden/vae") / name; }
};

TEST_F(Published, ThreeLayoutsOfOneAutoencoderAreTheSameBits) {
  SKIP_WITHOUT(golden("kl4"));
  const AutoencoderFile folder = load_autoencoder(golden("kl4/vae")),
                        bin = load_autoencoder(golden("kl4/vae_bin")),
                        ldm = load_autoencoder(golden("kl4/ldm.ckpt"),
                                               {.config = golden("kl4/vae/config.json")});
  EXPECT_EQ(folder.format, "diffusers folder, diffusers' old names");
  EXPECT_EQ(bin.format, "diffusers folder, diffusers' names");
  EXPECT_EQ(ldm.format, "torch zip, ldm's names (first_stage_model.)");
  EXPECT_TRUE(same_weights(folder.weights, bin.weights));
  EXPECT_TRUE(same_weights(folder.weights, ldm.weights));
  EXPECT_TRUE(says(ldm, "tensors of other parts ("));
  for (const AutoencoderFile* file : {&folder, &bin, &ldm}) {
    EXPECT_EQ(file->config.scale.scaling, 0.18215);
    EXPECT_EQ(file->config.norm_groups, 4);
    EXPECT_EQ(file->sha256.size(), 64u);
    EXPECT_TRUE(file->has_encoder && file->has_decoder);
  }
}

TEST_F(Published, SixteenChannelsInTwoLayouts) {
  SKIP_WITHOUT(golden("kl16"));
  const AutoencoderFile folder = load_autoencoder(golden("kl16/vae")),
                        bare = load_autoencoder(golden("kl16/ae.safetensors"),
                                                {.config = golden("kl16/vae/config.json")});
  EXPECT_TRUE(same_weights(folder.weights, bare.weights));
  EXPECT_EQ(bare.format, "safetensors, ldm's names");
  EXPECT_EQ(folder.config.latent_channels, 16);
  EXPECT_EQ(folder.config.factor(), 4);
  EXPECT_EQ(folder.config.scale.scaling, 1.5305);
  EXPECT_EQ(folder.config.scale.shift, 0.0609);
  expect_error([&] { load_autoencoder(golden("kl16/ae.safetensors")); }, "--vae-config names a config.json");
}

TEST_F(Published, TaesdsHalvesAloneTogetherAndAsAFolder) {
  const fs::path encoder = test::shared_path("data/taef2_encoder.pth"),
                 decoder = test::shared_path("data/taef2_decoder.pth");
  SKIP_WITHOUT(encoder);
  const AutoencoderFile pair = load_autoencoder(decoder.string() + "," + encoder.string());
  EXPECT_EQ(pair.config.kind, AutoencoderKind::Tiny);
  EXPECT_EQ(pair.config.latent_channels, 32);
  EXPECT_TRUE(pair.config.pool && pair.has_encoder && pair.has_decoder);
  EXPECT_EQ(pair.weights.size(), 158u);
  EXPECT_TRUE(same_weights(load_autoencoder(encoder.parent_path()).weights, pair.weights));
  const AutoencoderFile half = load_autoencoder(decoder);
  EXPECT_FALSE(half.has_encoder);
  EXPECT_TRUE(half.has_decoder && half.config.pool);
  EXPECT_EQ(half.config.latent_channels, 32);
  EXPECT_EQ(half.format, "torch zip, taesd");
  EXPECT_EQ(half.sha256, "0a44a31e1ae59eb9dbf9359d24942fd3ef5928162c1800d97a28c61d51be0ab5");
  EXPECT_NE(pair.sha256, half.sha256);
  EXPECT_TRUE(is_autoencoder(encoder) && is_autoencoder(encoder.parent_path()));
}

class Read : public testing::Test {
 protected:
  fs::path at(const std::string& name) const { return top_ / name; }
  fs::path config_file() {
    write_file(at("config/config.json"), autoencoder_config_to_json(config_).dump());
    return at("config/config.json");
  }
  int levels() const { return static_cast<int>(config_.channels.size()); }

  test::TemporaryFolder top_;
  const AutoencoderConfig config_ = test::small_kl();
  const Weights weights_ = test::recipe_weights(config_);
};

TEST_F(Read, FolderPipelineAndCacheOfTheHub) {
  test::save_autoencoder(at("vae"), config_, weights_);
  EXPECT_TRUE(same_weights(load_autoencoder(at("vae")).weights, weights_));
  test::save_autoencoder(at("pipeline/vae"), config_, weights_);
  write_file(at("pipeline/model_index.json"), "{}");
  EXPECT_TRUE(same_weights(load_autoencoder(at("pipeline")).weights, weights_));
  test::save_autoencoder(at("models--a--b/snapshots/0123"), config_, weights_);
  const AutoencoderFile cached = load_autoencoder(at("models--a--b"));
  EXPECT_TRUE(same_weights(cached.weights, weights_));
  EXPECT_TRUE(says(cached, "read snapshots/0123"));
}

TEST_F(Read, VariantOfAFolder) {
  test::save_autoencoder(at("vae"), config_, weights_);
  fs::rename(at("vae/diffusion_pytorch_model.safetensors"),
             at("vae/diffusion_pytorch_model.fp16.safetensors"));
  EXPECT_TRUE(says(load_autoencoder(at("vae")), "read the variant"));
}

TEST_F(Read, BareFilesWithAConfiguration) {
  for (const VaeNames names : {VaeNames::Diffusers, VaeNames::OldDiffusers, VaeNames::Ldm}) {
    for (const char* prefix : {"", "vae.", "first_stage_model."}) {
      test::save_weights(at("a.safetensors"), test::respelled(weights_, names, levels(), prefix));
      const AutoencoderFile file = load_autoencoder(at("a.safetensors"), {.config = config_file()});
      EXPECT_TRUE(same_weights(file.weights, weights_)) << file.format;
    }
  }
}

TEST_F(Read, AFileOfAFolderIsWhatTheFolderSays) {
  test::save_autoencoder(at("vae"), config_, weights_, {{"scaling_factor", 0.5}});
  const fs::path weights = at("vae/diffusion_pytorch_model.safetensors");
  const AutoencoderFile file = load_autoencoder(weights);
  EXPECT_EQ(file.config.scale.scaling, 0.5);
  EXPECT_TRUE(says(file, "read config.json beside it"));
  for (const fs::path& path : {weights, at("vae")})
    expect_error(
        [&] { load_autoencoder(path, {.config = config_file()}); },
        "has a configuration of its own (" + at("vae/config.json").string() + "); leave --vae-config out");
}

TEST_F(Read, OtherPartsOfACheckpointArePassedOverAndCounted) {
  Weights whole = test::respelled(weights_, VaeNames::Ldm, levels(), "first_stage_model.");
  for (const char* name : {"model.diffusion_model.out.2.bias", "first_stage_model.loss.logvar",
                           "model_ema.decay", "first_stage_model.model_ema.encoderconv_inbias"})
    whole[name] = at::zeros({2});
  test::TorchBuilder file;
  write_file(at("sd.ckpt"),
             file.build({text("global_step"), number(7), text("state_dict"), file.state_dict(whole)}));
  const AutoencoderFile read = load_autoencoder(at("sd.ckpt"), {.config = config_file()});
  EXPECT_TRUE(same_weights(read.weights, weights_));
  EXPECT_TRUE(says(read, "passed over 4 tensors of other parts (first_stage_model.loss.logvar, ...)"));
}

TEST_F(Read, TheSetThatHoldsAnAutoencoderIsTaken) {
  test::TorchBuilder file;
  write_file(at("a.ckpt"),
             file.build({text("ema"), file.state_dict({{"x", at::zeros({2})}}), text("state_dict"),
                         file.state_dict(test::respelled(weights_, VaeNames::Ldm, levels()))}));
  const AutoencoderFile read = load_autoencoder(at("a.ckpt"), {.config = config_file()});
  EXPECT_TRUE(same_weights(read.weights, weights_));
  EXPECT_TRUE(says(read, "took the weights 'state_dict' of 2 sets"));
}

TEST_F(Read, WithoutAConfigurationShapesTell) {
  AutoencoderConfig config;
  config.channels = {32, 64, 64};
  config.layers = 3;
  config.mid_attention = false;
  const Weights weights = test::recipe_weights(config);
  for (const VaeNames names : {VaeNames::Diffusers, VaeNames::Ldm}) {
    test::save_weights(at("a.safetensors"), test::respelled(weights, names, 3));
    const AutoencoderFile file = load_autoencoder(at("a.safetensors"));
    EXPECT_EQ(file.config.channels, config.channels);
    EXPECT_EQ(file.config.layers, 3);
    EXPECT_EQ(file.config.latent_channels, 4);
    EXPECT_EQ(file.config.norm_groups, 32);
    EXPECT_TRUE(file.config.quant_conv && file.config.post_quant_conv);
    EXPECT_FALSE(file.config.mid_attention);
    EXPECT_EQ(file.config.scale.scaling, 0.18215);
    EXPECT_TRUE(says(file, "taken for Stable Diffusion's, scaling factor 0.18215, 32 groups"));
    EXPECT_TRUE(same_weights(file.weights, weights));
  }
}

TEST_F(Read, LinearsThatWereSavedAsConvolutions) {
  Weights weights = weights_;
  at::Tensor& query = weights["encoder.mid_block.attentions.0.to_q.weight"];
  query = query.view({16, 16, 1, 1});
  test::save_autoencoder(at("vae"), config_, weights);
  EXPECT_TRUE(same_weights(load_autoencoder(at("vae")).weights, weights_));
}

TEST_F(Read, TinyOnesInEveryLayout) {
  const AutoencoderConfig config = tiny_config(4, false);
  const Weights weights = test::recipe_weights(config), encoder = test::half_of_taesd(weights, "encoder"),
                decoder = test::half_of_taesd(weights, "decoder");
  test::save_autoencoder(at("tiny"), config, test::respelled(weights, VaeNames::DiffusersTiny, 4));
  const AutoencoderFile diffusers = load_autoencoder(at("tiny"));
  EXPECT_TRUE(same_weights(diffusers.weights, weights));
  EXPECT_FALSE(diffusers.config.pool);
  EXPECT_EQ(diffusers.config.scale.scaling, 1);
  fs::create_directories(at("pair"));
  // Told by what lies in them.
  test::save_weights(at("pair/my_decoder.safetensors"), encoder);
  test::save_weights(at("pair/my_encoder.safetensors"), decoder);
  EXPECT_TRUE(same_weights(load_autoencoder(at("pair")).weights, weights));
  test::save_weights(at("both.safetensors"), weights);
  EXPECT_TRUE(same_weights(load_autoencoder(at("both.safetensors")).weights, weights));
  fs::remove(at("pair/my_decoder.safetensors"));
  const AutoencoderFile half = load_autoencoder(at("pair"));
  EXPECT_FALSE(half.has_encoder);
  EXPECT_TRUE(half.has_decoder && says(half, "read my_encoder.safetensors"));
  test::save_weights(at("a,b.safetensors"), decoder);
  EXPECT_TRUE(load_autoencoder(at("a,b.safetensors")).has_decoder);
}

TEST_F(Read, WhatItIsIsToldByContent) {
  test::save_autoencoder(at("vae"), config_, weights_);
  test::save_weights(at("a.bin"), test::respelled(weights_, VaeNames::Ldm, levels(), "first_stage_model."));
  EXPECT_TRUE(is_autoencoder(at("vae")) && is_autoencoder(at("a.bin")) && is_autoencoder("recipe:sd"));
  test::save_autoencoder(at("dit/vae"), config_, weights_);
  fs::create_directories(at("dit/transformer"));
  EXPECT_FALSE(is_autoencoder(at("dit")));  // a pipeline of a DiT
  EXPECT_NO_THROW(load_autoencoder(at("dit")));
  EXPECT_FALSE(is_autoencoder(test::golden_path("model.safetensors")));
  EXPECT_FALSE(is_autoencoder(test::golden_path("diffusers")));
  EXPECT_FALSE(is_autoencoder(at("missing")));
  write_file(at("text.pt"), "no weights");
  EXPECT_FALSE(is_autoencoder(at("text.pt")));
}

TEST_F(Read, FromMemory) {
  test::save_weights(at("a.safetensors"),
                     test::half_of_taesd(test::recipe_weights(tiny_config(4, false)), "decoder"));
  const std::string bytes = test::contents(at("a.safetensors"));
  const AutoencoderFile file = parse_autoencoder(test::bytes_of(bytes), "FILE");
  EXPECT_TRUE(file.has_decoder);
  EXPECT_EQ(file.sha256, load_autoencoder(at("a.safetensors")).sha256);
}

// Large enough to be mapped.
TEST_F(Read, AFileThatIsWrittenToIsNoticed) {
  test::save_autoencoder(
      at("tiny"), tiny_config(4, false),
      test::respelled(test::recipe_weights(tiny_config(4, false)), VaeNames::DiffusersTiny, 4));
  const fs::path weights = at("tiny/diffusion_pytorch_model.safetensors");
  const AutoencoderFile file = load_autoencoder(at("tiny"));
  EXPECT_NO_THROW(file.check_unchanged());
  const auto before = fs::last_write_time(weights);
  std::ofstream(weights, std::ios::binary | std::ios::in | std::ios::out)
      << test::contents(weights).substr(0, 64);
  fs::last_write_time(weights, before + std::chrono::milliseconds(1));
  expect_error([&] { file.check_unchanged(); }, weights.string() + ": changed while it was in use");
}

}  // namespace
}  // namespace dydit
