// The loss by decile of t: what it is a mean of, and what changes none of it.
#include "dydit/eval/loss.h"

#include <cmath>
#include <string>

#include <gtest/gtest.h>
#include <torch/torch.h>

#include "dydit/base/error.h"
#include "dydit/base/noise.h"
#include "dydit/diffusion/losses.h"
#include "tests/support/files.h"
#include "tests/support/noise_images.h"
#include "tests/support/random_model.h"

namespace dydit {
namespace {

using test::NoiseImages;

DiTConfig pixels(bool dynamic) {
  DiTConfig config = dynamic ? test::tiny_config() : test::static_config();
  config.in_channels = 3;
  return config;
}

Checkpoint model(bool dynamic) { return test::random_checkpoint(pixels(dynamic)); }

// Decile 4, image by image through the module itself.
TEST(EvaluateLoss, ADecileIsTheMeanOfItsImagesLosses) {
  const Checkpoint checkpoint = model(false);
  const NoiseImages images;
  DiT module = make_model(checkpoint);
  torch::NoGradGuard no_grad;
  double mse = 0, vb = 0;
  for (int64_t i = 0; i < images.size(); ++i) {
    const int t = 400 + 10 * static_cast<int>(i % 10) + 5;
    std::vector<uint8_t> bytes(3 * 8 * 8);
    images.read(i, bytes);
    at::Tensor x0 = at::empty({1, 3, 8, 8}), noise = at::empty_like(x0);
    for (size_t p = 0; p < bytes.size(); ++p) x0.data_ptr<float>()[p] = bytes[p] / 127.5f - 1.0f;
    fill_normal({noise.data_ptr<float>(), bytes.size()}, /*seed=*/7, i, t);
    const at::Tensor ts = at::full({1}, t, at::kLong), x_t = q_sample(x0, ts, noise);
    const at::Tensor y = at::full({1}, images.label(i), at::kLong);
    const DiffusionLoss loss =
        diffusion_loss(module->forward(x_t, module->embed_timestep(ts), y), x0, x_t, ts, noise);
    mse += loss.mse.item<double>() / images.size();
    vb += loss.vb.item<double>() / images.size();
  }
  const LossReport report = evaluate_loss(checkpoint, images, {.seeds = {7}});
  EXPECT_NEAR(report[4].mse[0], mse, 1e-5 * mse);
  EXPECT_NEAR(report[4].vb[0], vb, 1e-5 * vb);
}

TEST(EvaluateLoss, TheLastRowIsTheMeanOfTheDeciles) {
  const LossReport report = evaluate_loss(model(true), NoiseImages(), {.seeds = {1, 2}});
  for (size_t s = 0; s < 2; ++s) {
    double mean = 0;
    for (int d = 0; d < kDeciles; ++d) mean += report[d].mse[s] / kDeciles;
    EXPECT_NEAR(report[kDeciles].mse[s], mean, 1e-9);
  }
}

TEST(EvaluateLoss, BatchSizeChangesNothing) {
  const LossReport one = evaluate_loss(model(true), NoiseImages(), {.batch = 1});
  const LossReport many = evaluate_loss(model(true), NoiseImages(), {.batch = 64, .threads = 3});
  for (int d = 0; d < kDeciles; ++d) EXPECT_NEAR(one[d].mse[0], many[d].mse[0], 1e-6 * one[d].mse[0]) << d;
}

TEST(EvaluateLoss, EnginesAgree) {
  const LossReport cpu = evaluate_loss(model(true), NoiseImages(), {});
  const LossReport reference = evaluate_loss(model(true), NoiseImages(), {.engine = EngineKind::Reference});
  for (int d = 0; d < kDeciles; ++d) {
    EXPECT_NEAR(cpu[d].mse[0], reference[d].mse[0], 1e-4 * reference[d].mse[0]) << d;
    EXPECT_EQ(cpu[d].tokens, reference[d].tokens) << d;
    EXPECT_EQ(cpu[d].required_share, reference[d].required_share) << d;
  }
}

TEST(EvaluateLoss, GatesAreThoseOfInference) {
  const LossReport report = evaluate_loss(model(true), NoiseImages(), {});
  const DecileLoss& all = report[kDeciles];
  for (const double kept : {all.heads, all.groups, all.tokens}) {
    EXPECT_GT(kept, 0);
    EXPECT_LT(kept, 1);
  }
  EXPECT_LT(all.required_share, 1);
}

TEST(EvaluateLoss, StaticModeExecutesTheCompleteModel) {
  const DecileLoss all = evaluate_loss(model(true), NoiseImages(), {.mode = Mode::Static})[kDeciles];
  EXPECT_EQ(all.tokens, 1);
  EXPECT_EQ(all.heads, 1);
  EXPECT_NEAR(all.required_share, 1, 1e-12);
}

TEST(EvaluateLoss, ASeedIsTheSameAloneAndAmongOthers) {
  const LossReport alone = evaluate_loss(model(true), NoiseImages(), {.seeds = {5}});
  const LossReport among = evaluate_loss(model(true), NoiseImages(), {.seeds = {4, 5}});
  EXPECT_EQ(alone[3].mse[0], among[3].mse[1]);
  EXPECT_NE(among[3].mse[0], among[3].mse[1]);
}

void expect_refused(const Checkpoint& checkpoint, const NoiseImages& images, const LossOptions& options,
                    const std::string& message) {
  EXPECT_THROW(evaluate_loss(checkpoint, images, options), UsageError) << message;
  test::expect_error([&] { evaluate_loss(checkpoint, images, options); }, message);
}

TEST(EvaluateLoss, RefusesDataOfOtherShapeOrClasses) {
  expect_refused(test::random_checkpoint(test::tiny_config()), NoiseImages(), {},
                 "images 3x8x8: this model takes 4x8x8");
  expect_refused(model(true), NoiseImages(/*classes=*/9), {},
                 "image 5 has label 5: this model has classes 0 to 4");
}

TEST(EvaluateLoss, RefusesToMeasureNothing) {
  expect_refused(model(true), NoiseImages(), {.num_images = 0},
                 "0 images, batch 64, 1 seeds: expected 1 or more");
  expect_refused(model(true), NoiseImages(), {.seeds = {}}, "1000 images, batch 64, 0 seeds");
  expect_refused(model(true), NoiseImages(), {.batch = 0}, "1000 images, batch 0, 1 seeds");
}

// Ten groups of images have timesteps of their own; of these, seven have none.
TEST(EvaluateLoss, OfFewImagesIsTheirMean) {
  const LossReport few = evaluate_loss(model(true), NoiseImages(), {.num_images = 3});
  for (const DecileLoss& decile : few) EXPECT_TRUE(std::isfinite(decile.mse[0]));
}

TEST(EvaluateLoss, RefusesAModelThatCannotFit) {
  Checkpoint huge = model(false);
  // No memory of its own: one float, 2^50 times.
  huge.weights["blocks.0.mlp.fc1.weight"] = at::zeros({1}, at::kFloat).expand({int64_t{1} << 50});
  const std::string message = test::error_of([&] { evaluate_loss(huge, NoiseImages(), {}); });
  EXPECT_NE(message.find("needs at least 4504 TB of memory"), std::string::npos) << message;
  EXPECT_TRUE(message.ends_with("; take a smaller model")) << message;
}

}  // namespace
}  // namespace dydit
