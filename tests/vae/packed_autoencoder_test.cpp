// What an autoencoder computes: the vectors of the original code, any size, batch and number of threads.
#include <set>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "dydit/vae/networks.h"
#include "dydit/vae/tiling.h"
#include "tests/support/autoencoders.h"
#include "tests/support/files.h"

namespace dydit {
namespace {

using test::apart;
using test::golden_kl;
using test::kl_config;
using test::random_map;
using test::RandomKl;
using test::vae_vector;

AutoencoderOptions both(int threads, at::ScalarType dtype = at::kFloat) {
  return {.dtype = dtype, .threads = threads, .encoder = true, .decoder = true};
}

class GoldenKl : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override { SKIP_WITHOUT(test::shared_path("golden/vae")); }
  at::Tensor vector(const std::string& name) const {
    return vae_vector(GetParam() + "/vectors.safetensors", name);
  }
};
INSTANTIATE_TEST_SUITE_P(Files, GoldenKl, testing::Values("kl4", "kl16"),
                         [](const auto& info) { return info.param; });

TEST_P(GoldenKl, EncodesAndDecodesAsTheOriginal) {
  const auto autoencoder = make_autoencoder(golden_kl(GetParam()), both(2));
  const Posterior posterior = autoencoder->encode(vector("x"));
  EXPECT_LT(apart(posterior.mean, vector("mean")), 1e-5);
  EXPECT_LT(apart(posterior.logvar, vector("logvar")), 1e-5);
  EXPECT_LT(apart(autoencoder->decode(vector("z")), vector("decoded")), 1e-5);
}

TEST_P(GoldenKl, TakesOddSizes) {
  const auto autoencoder = make_autoencoder(golden_kl(GetParam()), both(2));
  const at::Tensor moments = vector("moments_odd");
  const Posterior posterior = autoencoder->encode(vector("x_odd"));
  const int64_t z = moments.size(1) / 2;
  EXPECT_LT(apart(posterior.mean, moments.slice(1, 0, z)), 1e-5);
  EXPECT_LT(apart(posterior.logvar, moments.slice(1, z).clamp(-30, 20)), 1e-5);
  EXPECT_LT(apart(autoencoder->decode(vector("z_odd")), vector("decoded_odd")), 1e-5);
}

TEST_P(GoldenKl, Bfloat16KeepsOnePercent) {
  const auto autoencoder = make_autoencoder(golden_kl(GetParam()), both(2, at::kBFloat16));
  const at::Tensor wanted = vector("decoded"), got = autoencoder->decode(vector("z"));
  EXPECT_LT(apart(got, wanted), 2e-2);
  EXPECT_LT(((got - wanted).square().mean().sqrt() / wanted.square().mean().sqrt()).item<double>(), 1e-2);
  EXPECT_LT(apart(autoencoder->encode(vector("x")).mean, vector("mean")), 2e-2);
}

// As processors with tile registers do it.
TEST_P(GoldenKl, ProductsOfBfloat16KeepTwoPercent) {
  const AutoencoderFile file = golden_kl(GetParam());
  cpu::Arena arena;
  Team team(2);
  const vae::Network network =
      vae::make_decoder(file, {.bf16_maps = true, .bf16_products = true}, arena, team);
  const at::Tensor wanted = vector("decoded")[0], z = vector("z")[0].permute({1, 2, 0}).contiguous();
  vae::Workspace workspace(2);
  vae::Map latent = workspace.maps.take(int(z.size(0)), int(z.size(1)), int(z.size(2)), false);
  std::memcpy(latent.as<char>(), z.const_data_ptr(), z.nbytes());
  const vae::Map image = network.run(workspace, std::move(latent));
  const at::Tensor got =
      at::from_blob(image.as<float>(), {image.H, image.W, image.C}).permute({2, 0, 1}).contiguous();
  EXPECT_LT(apart(got, wanted), 3e-2);
}

TEST_P(GoldenKl, TilesAsDiffusersDoes) {
  const auto autoencoder = make_autoencoder(golden_kl(GetParam()), both(2));
  EXPECT_LT(apart(decode(*autoencoder, vector("z_tiled"), VaeTiling::None), vector("untiled_decoded")), 1e-5);
  EXPECT_LT(apart(decode(*autoencoder, vector("z_tiled"), VaeTiling::Diffusers), vector("tiled_decoded")),
            1e-5);
  const at::Tensor images = vector("x_tiled");
  EXPECT_LT(apart(moments(*autoencoder, images, VaeTiling::None), vector("untiled_moments")), 1e-5);
  EXPECT_LT(apart(moments(*autoencoder, images, VaeTiling::Diffusers), vector("tiled_moments")), 1e-5);
  // What a tile holds whole is not touched.
  EXPECT_TRUE(at::equal(decode(*autoencoder, vector("stage.z"), VaeTiling::Diffusers),
                        autoencoder->decode(vector("stage.z"))));
}

// Every stage by itself: a wrong one is named.
TEST_P(GoldenKl, StagesAreThoseOfTheOriginal) {
  const AutoencoderFile file = golden_kl(GetParam());
  std::set<std::string> seen;
  AutoencoderOptions options = both(2);
  options.stages = [&](const std::string& stage, const at::Tensor& value) {
    seen.insert(stage);
    EXPECT_LT(apart(value, vector("stage." + stage)), 1e-5) << stage;
  };
  const auto autoencoder = make_autoencoder(file, options);
  EXPECT_LT(apart(autoencoder->moments(vector("stage.x")), vector("stage.moments")), 1e-5);
  EXPECT_LT(apart(autoencoder->decode(vector("stage.z")), vector("stage.decoded")), 1e-5);
  EXPECT_EQ(seen.size(), 2 * (6 + file.config.channels.size()));
}

class Taef2 : public testing::Test {
 protected:
  void SetUp() override {
    SKIP_WITHOUT(test::shared_path("golden/vae"));
    SKIP_WITHOUT(test::shared_path("data/taef2_encoder.pth"));
  }
  static at::Tensor vector(const std::string& name) { return vae_vector("taef2.safetensors", name); }
  static at::Tensor images(const std::string& name) { return vector(name).to(at::kFloat) / 127.5 - 1; }
};

TEST_F(Taef2, EncodesAndDecodesAsTheOriginal) {
  const auto autoencoder = make_autoencoder(test::taef2(), both(2));
  const Posterior posterior = autoencoder->encode(images("image"));
  EXPECT_FALSE(posterior.logvar.defined());
  EXPECT_LT(apart(posterior.mean, vector("latents")), 1e-5);
  EXPECT_LT(apart(autoencoder->encode(images("image_odd")).mean, vector("latents_odd")), 1e-5);
  const at::Tensor decoded = autoencoder->decode(vector("latents"));
  EXPECT_LT(apart((decoded.slice(0, 0, 1) + 1) / 2, vector("decoded")), 1e-5);
  test::expect_error([&] { decode(*autoencoder, vector("latents"), VaeTiling::Diffusers); },
                     "tiling diffusers is AutoencoderKL's; a tiny autoencoder needs none");
}

class RandomAutoencoder : public testing::TestWithParam<at::ScalarType> {
 protected:
  static AutoencoderFile file() { return RandomKl(kl_config({32, 64}, 1, 8, 4)).file(); }
};
INSTANTIATE_TEST_SUITE_P(Types, RandomAutoencoder, testing::Values(at::kFloat, at::kBFloat16),
                         [](const auto& info) { return std::string(c10::toString(info.param)); });

TEST_P(RandomAutoencoder, AnImageDependsNeitherOnTheBatchNorOnThreads) {
  const at::Tensor images = random_map({3, 3, 50, 70}, 1), z = random_map({3, 4, 21, 30}, 2);
  at::Tensor means, decoded;
  for (const int threads : {1, 2, 3}) {
    const auto autoencoder = make_autoencoder(file(), both(threads, GetParam()));
    for (const int batch : {1, 2, 3}) {
      const at::Tensor mean = autoencoder->encode(images.slice(0, 3 - batch)).mean,
                       image = autoencoder->decode(z.slice(0, 3 - batch));
      if (!means.defined()) {
        means = mean[0];
        decoded = image[0];
      }
      EXPECT_TRUE(at::equal(mean[batch - 1], means)) << threads << " threads, batch " << batch;
      EXPECT_TRUE(at::equal(image[batch - 1], decoded)) << threads << " threads, batch " << batch;
    }
  }
}

TEST(Autoencoder, NamesTheImageAndTheStageOfANan) {
  AutoencoderFile file = RandomKl(kl_config({32, 64}, 1, 8, 4)).file();
  const auto autoencoder = make_autoencoder(file, both(2));
  at::Tensor z = random_map({2, 4, 8, 8}, 1);
  z[1][2][3][4] = std::numeric_limits<float>::quiet_NaN();
  test::expect_error([&] { autoencoder->decode(z); }, "latent 1 of the batch holds a NaN or infinity");
  file.weights["decoder.up_blocks.0.resnets.1.conv1.bias"] =
      at::full({64}, std::numeric_limits<float>::infinity());
  test::expect_error(
      [&] {
        make_autoencoder(file, both(2))->decode(random_map({2, 4, 8, 8}, 1));
      },
      "latent 0 of the batch: NaN or infinity, first in decoder.up_blocks.0.resnets.1.conv1");
}

// A mosaic that holds the whole image gives exact moments: what is left would be a halo that is too narrow.
TEST(DecodeInTiles, HaloIsAsWideAsTheLevelsLook) {
  const auto autoencoder = make_autoencoder(RandomKl(kl_config({16, 16, 32, 32}, 2, 8, 4)).file(), both(2));
  const at::Tensor z = random_map({1, 4, 40, 33}, 1);
  EXPECT_LT(apart(autoencoder->decode_in_tiles(z, 12), autoencoder->decode(z)), 1e-5);
}

// Seams: what is left is the difference of the moments of a part to those of all.
TEST(DecodeInTiles, IsNearTheWholeDecode) {
  const auto autoencoder = make_autoencoder(RandomKl(kl_config({16, 16, 32, 32}, 2, 8, 4)).file(), both(2));
  at::Tensor z = random_map({1, 4, 100, 120}, 1);
  for (int x = 0; x < 120; ++x) z.select(3, x) += (x - 60) / 60.0;  // an image is not everywhere alike
  const at::Tensor whole = autoencoder->decode(z);
  const double tiled = apart(autoencoder->decode_in_tiles(z, 24), whole);
  EXPECT_LT(tiled, .1);
  RecordProperty("largest_difference", std::to_string(tiled));
}

TEST_F(Taef2, TilesEqualTheWhole) {
  const auto autoencoder = make_autoencoder(test::taef2(), {.threads = 2});
  const at::Tensor z = at::cat({vector("latents").slice(0, 0, 1), vector("latents").slice(0, 1, 2)}, 3);
  EXPECT_LT(apart(autoencoder->decode_in_tiles(z, 10), autoencoder->decode(z)), 1e-5);
}

TEST(Autoencoder, RefusesWhatItCannotTake) {
  AutoencoderFile file = RandomKl(kl_config({32, 64}, 1, 8, 4)).file();
  const auto autoencoder = make_autoencoder(file, both(1));
  test::expect_error(
      [&] {
        autoencoder->decode(at::zeros({1, 16, 8, 8}));
      },
      "latents: expected (B, 4, height, width) in float32 on the CPU, got (1, 16, 8, 8) in Float");
  test::expect_error(
      [&] {
        autoencoder->encode(at::zeros({1, 3, 8, 1}));
      },
      "images of 1 pixels: an autoencoder of factor 2 takes 2 and more");
  test::expect_error(
      [&] {
        autoencoder->decode(at::zeros({1, 4, 1 << 20, 1}).expand({1, 4, 1 << 20, 1 << 12}));
      },
      "take a smaller one");
  file.has_encoder = false;
  test::expect_error([&] { make_autoencoder(file, both(1)); }, "random: holds no encoder");
}

// vae.md, section 4.5.
TEST(Autoencoder, NeedsLittleMemory) {
  const auto autoencoder =
      make_autoencoder(RandomKl(kl_config({128, 256, 512, 512}, 2, 32, 4)).file(), both(2));
  EXPECT_LT(autoencoder->decode_bytes(32, 32), .2e9);
  EXPECT_LT(autoencoder->encode_bytes(256, 256), .2e9);
}

}  // namespace
}  // namespace dydit
