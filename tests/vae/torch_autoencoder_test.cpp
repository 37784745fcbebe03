// Autoencoders on LibTorch's operators: the original's vectors, and what our own kernels compute.
#include <set>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "dydit/base/error.h"
#include "dydit/vae/tiling.h"
#include "tests/support/autoencoders.h"
#include "tests/support/files.h"

namespace dydit {
namespace {

using test::apart;
using test::expect_error;
using test::kl_config;
using test::random_map;
using test::RandomKl;
using test::vae_vector;

AutoencoderOptions both(at::ScalarType dtype = at::kFloat,
                        std::optional<at::Device> device = at::Device(at::kCPU)) {
  return {.dtype = dtype, .threads = 2, .encoder = true, .decoder = true, .device = device};
}

TEST(TorchAutoencoder, EncodesAndDecodesAsTheOriginal) {
  SKIP_WITHOUT(test::shared_path("golden/vae"));
  for (const std::string name : {"kl4", "kl16"}) {
    const auto vector = [&](const std::string& key) {
      return vae_vector(name + "/vectors.safetensors", key);
    };
    std::set<std::string> seen;
    AutoencoderOptions options = both();
    bool recorded = false;
    options.stages = [&](const std::string& stage, const at::Tensor& value) {
      if (!recorded) return;
      seen.insert(stage);
      EXPECT_LT(apart(value, vector("stage." + stage)), 1e-5) << name << ", " << stage;
    };
    const AutoencoderFile file = test::golden_kl(name);
    const auto autoencoder = make_autoencoder(file, options);
    const Posterior posterior = autoencoder->encode(vector("x"));
    EXPECT_LT(apart(posterior.mean, vector("mean")), 1e-5);
    EXPECT_LT(apart(posterior.logvar, vector("logvar")), 1e-5);
    EXPECT_LT(apart(autoencoder->decode(vector("z_odd")), vector("decoded_odd")), 1e-5);
    EXPECT_LT(apart(decode(*autoencoder, vector("z_tiled"), VaeTiling::Diffusers), vector("tiled_decoded")),
              1e-5);
    recorded = true;
    EXPECT_LT(apart(autoencoder->moments(vector("stage.x")), vector("stage.moments")), 1e-5);
    EXPECT_LT(apart(autoencoder->decode(vector("stage.z")), vector("stage.decoded")), 1e-5);
    EXPECT_EQ(seen.size(), 2 * (6 + file.config.channels.size()));
  }
}

TEST(TorchAutoencoder, ComputesATinyOneAsTheOriginal) {
  SKIP_WITHOUT(test::shared_path("golden/vae"));
  SKIP_WITHOUT(test::shared_path("data/taef2_encoder.pth"));
  const auto vector = [](const std::string& key) { return vae_vector("taef2.safetensors", key); };
  const auto autoencoder = make_autoencoder(test::taef2(), both());
  for (const std::string end : {"", "_odd"})
    EXPECT_LT(apart(autoencoder->encode(vector("image" + end).to(at::kFloat) / 127.5 - 1).mean,
                    vector("latents" + end)),
              1e-5);
  EXPECT_LT(apart((autoencoder->decode(vector("latents")).slice(0, 0, 1) + 1) / 2, vector("decoded")), 1e-5);
}

TEST(TorchAutoencoder, IsTheOneOfOurKernels) {
  for (const std::vector<int>& channels : {std::vector<int>{32, 64}, {16, 32, 32}}) {
    const AutoencoderFile file = RandomKl(kl_config(channels, 1, 8, 4)).file();
    const at::Tensor images = random_map({2, 3, 40, 56}, 1), z = random_map({2, 4, 11, 18}, 2);
    const auto exact = make_autoencoder(file, both(at::kFloat, std::nullopt)),
               torch = make_autoencoder(file, both()), bf16 = make_autoencoder(file, both(at::kBFloat16));
    EXPECT_LT(apart(torch->moments(images), exact->moments(images)), 2e-5);
    EXPECT_LT(apart(torch->decode(z), exact->decode(z)), 2e-5);
    const double error = apart(bf16->decode(z), exact->decode(z));
    EXPECT_LT(error, 5e-2);
    EXPECT_GT(error, 1e-5) << "was that bfloat16?";
  }
}

TEST(TorchAutoencoder, AnImageDoesNotDependOnTheBatch) {
  const auto torch = make_autoencoder(RandomKl(kl_config({32, 64}, 1, 8, 4)).file(), both());
  const at::Tensor z = random_map({3, 4, 11, 18}, 2), together = torch->decode(z);
  for (int64_t b = 0; b < 3; ++b) EXPECT_TRUE(at::equal(torch->decode(z.slice(0, b, b + 1))[0], together[b]));
}

TEST(TorchAutoencoder, NamesTheImageThatIsBroken) {
  const auto torch = make_autoencoder(RandomKl(kl_config({32, 64}, 1, 8, 4)).file(), both());
  at::Tensor z = random_map({2, 4, 8, 8}, 2);
  z[1][0][0][0] = NAN;
  expect_error([&] { torch->decode(z); }, "image 1 of the batch: NaN or infinity, which it came with");
  expect_error([&] { torch->decode(z.slice(1, 0, 3)); }, "latents: expected (B, 4, height, width)");
  expect_error([&] { decode(*torch, z, VaeTiling::Approximate); }, "take none or diffusers");
}

}  // namespace
}  // namespace dydit
