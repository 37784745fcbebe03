// Networks of features, on weights by recipe: what an image's features depend on, and what is refused.
#include "dydit/eval/extractor.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

#include "tests/support/archives.h"
#include "tests/support/autoencoder_files.h"
#include "tests/support/files.h"

namespace dydit {
namespace {

Image noise_image(int height, int width, int channels, uint32_t seed) {
  Image image{height, width, channels, {}};
  for (int i = 0; i < height * width * channels; ++i)
    image.pixels.push_back(static_cast<uint8_t>((seed = seed * 1664525 + 1013904223) >> 24));
  return image;
}

Extractor by_recipe(int threads, ResizeRule rule = ResizeRule::Adm, bool bf16 = false) {
  return {ExtractorKind::Inception, "recipe:inception", rule, bf16, threads};
}

TEST(Extractor, FeaturesDependNeitherOnBatchNorOnThreads) {
  std::vector<Image> images;
  for (uint32_t i = 0; i < 3; ++i) images.push_back(noise_image(32, 40, 3, i));
  Extractor two = by_recipe(2), one = by_recipe(1);
  const ImageFeatures all = two.extract(images);
  for (size_t i = 0; i < images.size(); ++i) {
    const ImageFeatures alone = one.extract(std::span(images).subspan(i, 1));
    EXPECT_TRUE(alone.features[0].equal(all.features[static_cast<int64_t>(i)]));
    EXPECT_TRUE(alone.spatial[0].equal(all.spatial[static_cast<int64_t>(i)]));
    EXPECT_TRUE(alone.logits[0].equal(all.logits[static_cast<int64_t>(i)]));
  }
}

TEST(Extractor, GrayIsThreeEqualChannels) {
  const Image gray = noise_image(20, 20, 1, 5), rgb = with_channels(gray, 3);
  Extractor extractor = by_recipe(1);
  EXPECT_TRUE(
      extractor.extract(std::span(&gray, 1)).features.equal(extractor.extract(std::span(&rgb, 1)).features));
}

TEST(Extractor, Bfloat16StaysNear) {
  const Image image = noise_image(64, 64, 3, 6);
  const at::Tensor exact = by_recipe(1).extract(std::span(&image, 1)).features,
                   rounded = by_recipe(1, ResizeRule::Adm, true).extract(std::span(&image, 1)).features;
  const double apart = (exact - rounded).norm().item<double>() / exact.norm().item<double>();
  EXPECT_GT(apart, 1e-5);
  EXPECT_LT(apart, 2e-2);
}

TEST(Resize, RulesDiffer) {
  const Image image = noise_image(16, 24, 3, 7);
  std::vector<std::vector<float>> all;
  for (const ResizeRule rule : {ResizeRule::Adm, ResizeRule::PytorchFid, ResizeRule::CleanFid}) {
    all.emplace_back(30 * 30 * 3);
    to_network(image, rule, 30, all.back().data());
  }
  EXPECT_NE(all[0], all[1]);
  EXPECT_NE(all[1], all[2]);
}

// Without half-pixel centres the first pixel stays where it is, and every second one of a doubled image.
TEST(Resize, TensorFlowsBilinearKeepsTheFirstPixel) {
  const Image image = noise_image(4, 4, 3, 8);
  std::vector<float> out(8 * 8 * 3);
  resize_float(image, ResizeRule::Adm, 8, out.data());
  for (int y = 0; y < 4; ++y)
    for (int x = 0; x < 4; ++x)
      EXPECT_EQ(out[(2 * y * 8 + 2 * x) * 3], static_cast<float>(image.pixels[(y * 4 + x) * 3]));
}

TEST(Resize, SameSizeChangesNothing) {
  const Image image = noise_image(9, 9, 3, 9);
  for (const ResizeRule rule :
       {ResizeRule::Adm, ResizeRule::PytorchFid, ResizeRule::CleanFid, ResizeRule::Lite0}) {
    std::vector<float> out(9 * 9 * 3);
    resize_float(image, rule, 9, out.data());
    for (size_t i = 0; i < out.size(); ++i) ASSERT_NEAR(out[i], image.pixels[i], 1e-5) << kResizeNames[rule];
  }
}

class ExtractorFiles : public testing::Test {
 protected:
  // The ResNet-20 of zeros, but for what `change` does.
  std::string resnet(const std::function<void(Weights&)>& change) {
    Weights all;
    const auto unit = [&](const std::string& conv, const std::string& norm, int in, int out) {
      all["module." + conv + ".weight"] = at::zeros({out, in, 3, 3});
      for (const char* part : {"weight", "bias", "running_mean", "running_var"})
        all["module." + norm + "." + part] = at::ones({out});
    };
    unit("conv1", "bn1", 3, 16);
    int in = 16;
    for (int layer = 1; layer <= 3; ++layer) {
      for (int j = 0; j < 3; ++j) {
        const std::string at = "layer" + std::to_string(layer) + "." + std::to_string(j) + ".";
        unit(at + "conv1", at + "bn1", in, 8 << layer);
        unit(at + "conv2", at + "bn2", 8 << layer, 8 << layer);
        in = 8 << layer;
      }
    }
    all["module.linear.weight"] = at::zeros({10, 64});
    all["module.linear.bias"] = at::arange(10, at::kFloat);
    change(all);
    return write(all);
  }
  void expect_refused(const std::string& file, const std::string& message) {
    test::expect_error([&] { Extractor(ExtractorKind::Resnet20, file, ResizeRule::Adm, false, 1); }, message);
  }

  std::string write(const Weights& tensors) {
    test::save_weights(folder_ / "resnet.safetensors", tensors);
    return (folder_ / "resnet.safetensors").string();
  }
  test::TemporaryFolder folder_;
};

TEST_F(ExtractorFiles, ReadsNamesBelowModule) {
  Extractor extractor(ExtractorKind::Resnet20, resnet([](auto&) {}), ResizeRule::Adm, false, 1);
  const Image image = noise_image(32, 32, 3, 1);
  const ImageFeatures features = extractor.extract(std::span(&image, 1));
  EXPECT_EQ(features.logits[0][7].item<float>(), 7);
  EXPECT_EQ(extractor.rule(), ResizeRule::Resnet);
}

// The map that is averaged to features, of values in [-1, 1] as training has them.
TEST_F(ExtractorFiles, AStageIsWhatTheFeaturesAreMadeOf) {
  const std::string file = resnet([](auto& all) {
    const auto generator = at::detail::createCPUGenerator(3);
    for (auto& [name, tensor] : all) {
      if (name.ends_with("conv1.weight") || name.ends_with("conv2.weight")) tensor.normal_(0, 0.1, generator);
    }
  });
  Extractor one(ExtractorKind::Resnet20, file, ResizeRule::Adm, false, 1),
      two(ExtractorKind::Resnet20, file, ResizeRule::Adm, false, 2);
  std::vector<Image> images;
  std::vector<at::Tensor> values;
  for (uint32_t i = 0; i < 3; ++i) {
    images.push_back(noise_image(32, 32, 3, i));
    const at::Tensor pixels = at::tensor(at::ArrayRef<uint8_t>(images.back().pixels)).view({32, 32, 3});
    values.push_back(pixels.permute({2, 0, 1}).to(at::kFloat) / 127.5 - 1);
  }
  const at::Tensor stage = two.stage("layer3", at::stack(values));
  ASSERT_EQ(stage.sizes(), (std::vector<int64_t>{3, 64, 64}));
  EXPECT_TRUE(stage.equal(one.stage("layer3", at::stack(values))));
  const at::Tensor features = one.extract(images).features;
  EXPECT_GT(features.std().item<double>(), 1e-3);
  EXPECT_TRUE(at::allclose(stage.to(at::kDouble).mean(1), features.to(at::kDouble), 1e-6));
  test::expect_error([&] { one.stage("layer3", at::zeros({1, 3, 16, 16})); }, "takes RGB images of 32x32");
}

TEST_F(ExtractorFiles, RefusesWhatIsNoSuchNetwork) {
  expect_refused(resnet([](auto& all) { all.erase("module.bn1.bias"); }),
                 "no tensor bn1.bias; these are no weights of ResNet-20 of CIFAR-10");
  expect_refused(resnet([](auto& all) {
                   all["module.linear.weight"] = at::zeros({100, 64});
                 }),
                 "linear.weight has shape [100, 64]; ResNet-20 of CIFAR-10 has [10, 64]");
  expect_refused(resnet([](auto& all) { all["module.bn1.bias"].fill_(NAN); }),
                 "bn1.bias holds values that are not finite");
  expect_refused(resnet([](auto& all) { all["module.bn1.bias"] = at::ones({16}, at::kInt); }),
                 "bn1.bias is not floating point");
  expect_refused(resnet([](auto& all) { all["module.more"] = at::ones({1}); }),
                 "holds more, which ResNet-20 of CIFAR-10 has not");
  const std::string other = (folder_ / "x.bin").string();
  test::write_file(other, "hello");
  expect_refused(other, "not the weights of ResNet-20 of CIFAR-10; wanted a torch file or safetensors");
}

}  // namespace
}  // namespace dydit
