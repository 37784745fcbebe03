// The loop: what is skipped, what is counted, what stops it, and that a resumed run is the unbroken one.
#include "dydit/train/trainer.h"

#include <cmath>
#include <set>

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "dydit/io/safetensors.h"
#include "tests/support/files.h"
#include "tests/support/noise_images.h"
#include "tests/support/random_model.h"

namespace dydit {
namespace {

namespace fs = std::filesystem;
using test::NoiseImages;
using test::TemporaryFolder;

constexpr int kBatch = 4;

DiTConfig tiny_pixels() {
  DiTConfig config = test::static_config();
  config.in_channels = 3;
  config.hidden_size = 32;
  config.mlp_hidden = 128;
  return config;
}

// Everything that a test looks at after a run.
struct Outcome {
  std::string error;
  bool cancelled = false;
  std::vector<LogRow> rows;
  std::vector<std::string> texts;
};

// Trains `start` in `folder`, a row and a checkpoint every step.
Outcome run_training(const fs::path& folder, const Checkpoint& start, const TrainOptions& options,
                     bool resume = false, const CancelFlag* cancel = nullptr, ProgressFn on_progress = {}) {
  fs::create_directories(folder);
  RunOptions run_options;
  run_options.run = folder;
  run_options.resume = resume;
  run_options.checkpoint_every = 1;
  run_options.keep_last = 1000;
  run_options.log_every = 1;
  Outcome result;
  Communicator alone;
  try {
    train(start, NoiseImages(), options, run_options, alone,
          {.on_text = [&](const std::string& line) { result.texts.push_back(line); },
           .on_warning = [&](const std::string& line) { result.texts.push_back(line); },
           .on_row = [&](const LogRow& row) { result.rows.push_back(row); },
           .on_sample = {},
           .on_progress = on_progress,
           .cancel = cancel});
  } catch (const Cancelled&) {
    result.cancelled = true;
  } catch (const Error& error) {
    result.error = error.what();
  }
  return result;
}

// The state after `step` steps.
struct Saved {
  std::map<std::string, at::Tensor> buffers;
  nlohmann::json counters;
};

Saved saved_state(const fs::path& run, int step) {
  const SafetensorsFile file = read_safetensors(run / "checkpoints" / fmt::format("{:07}.state", step));
  Saved saved;
  for (const auto& [name, view] : file.tensors) saved.buffers[name] = to_tensor(view, file.file).clone();
  saved.counters = nlohmann::json::parse(file.metadata.at("counters"));
  return saved;
}

TrainOptions tiny_training(int64_t steps) {
  TrainOptions options;
  options.total_steps = steps;
  options.global_batch = kBatch;
  options.lr = 1e-3;
  options.ema_decay = 0.9;
  return options;
}

TEST(Train, StepsFollowTheGradientAndTheEmaFollowsTheWeights) {
  const TemporaryFolder folder;
  const Outcome run = run_training(folder / "run", test::random_checkpoint(tiny_pixels()), tiny_training(3));
  EXPECT_EQ(run.error, "");
  ASSERT_EQ(run.rows.size(), 3u);
  const Saved two = saved_state(folder / "run", 2), three = saved_state(folder / "run", 3);
  EXPECT_FALSE(at::equal(two.buffers.at("values"), three.buffers.at("values")));
  const at::Tensor wanted = 0.9 * two.buffers.at("ema") + 0.1 * three.buffers.at("values");
  EXPECT_TRUE(at::allclose(three.buffers.at("ema"), wanted, 1e-5, 1e-7));
  EXPECT_EQ(three.counters, (nlohmann::json{{"step", 3}, {"updates", 3}, {"skipped", 0}}));
}

TEST(Train, AnUpdateOverTheNormIsSkippedAndCountedAndTheEmaMoves) {
  const TemporaryFolder folder;
  const Checkpoint start = test::random_checkpoint(tiny_pixels());
  TrainOptions options = tiny_training(12);
  options.lr = 0.03;  // so that norms jump about
  const Outcome free = run_training(folder / "free", start, options);
  // The first step whose norm is above those of all before it; a limit between them skips it first.
  double highest = free.rows[0].grad_norm;
  size_t k = 1;
  while (k < free.rows.size() && free.rows[k].grad_norm <= highest) ++k;
  ASSERT_LT(k, free.rows.size());
  options.skip_norm = (highest + free.rows[k].grad_norm) / 2;
  options.total_steps = static_cast<int64_t>(k) + 1;
  const Outcome run = run_training(folder / "run", start, options);
  EXPECT_EQ(run.error, "");
  EXPECT_EQ(run.rows.back().skipped, 1);
  EXPECT_EQ(run.rows.back().grad_norm, free.rows[k].grad_norm);

  const int last = static_cast<int>(k) + 1;
  const Saved before = saved_state(folder / "run", last - 1), after = saved_state(folder / "run", last);
  EXPECT_EQ(after.counters, (nlohmann::json{{"step", last}, {"updates", last - 1}, {"skipped", 1}}));
  for (const char* name : {"values", "exp_avg", "exp_avg_sq"}) {
    EXPECT_TRUE(at::equal(before.buffers.at(name), after.buffers.at(name))) << name;
  }
  const at::Tensor wanted = 0.9 * before.buffers.at("ema") + 0.1 * before.buffers.at("values");
  EXPECT_FALSE(at::equal(before.buffers.at("ema"), after.buffers.at("ema")));
  EXPECT_TRUE(at::allclose(after.buffers.at("ema"), wanted, 1e-5, 1e-7));
}

TEST(Train, ANormThatIsExactlyTheLimitIsSkipped) {
  const TemporaryFolder folder;
  const Checkpoint start = test::random_checkpoint(tiny_pixels());
  TrainOptions options = tiny_training(1);
  options.skip_norm = run_training(folder / "free", start, options).rows[0].grad_norm;
  EXPECT_EQ(run_training(folder / "run", start, options).rows[0].skipped, 1);
}

// The final layer's input is modulated to zero, so that the loss is finite; its gradient meets weights of
// 1e38.
Checkpoint infinite_gradient() {
  Checkpoint checkpoint = test::random_checkpoint(tiny_pixels());
  at::Tensor& bias = checkpoint.weights.at("final_layer.adaLN_modulation.1.bias");
  checkpoint.weights.at("final_layer.adaLN_modulation.1.weight").zero_();
  bias.zero_();
  bias.slice(0, 32).fill_(-1);  // scale
  checkpoint.weights.at("final_layer.linear.weight").fill_(1e38f);
  at::Tensor& output = checkpoint.weights.at("final_layer.linear.bias");  // (p * p * 6): eps, then variance
  output.zero_();
  output.view({4, 6}).slice(1, 0, 3).fill_(1e10f);
  return checkpoint;
}

TEST(Train, AGradientThatIsNotFiniteIsSkippedAndCounted) {
  const TemporaryFolder folder;
  const Checkpoint start = infinite_gradient();
  const Outcome run = run_training(folder / "run", start, tiny_training(3));  // no limit set
  EXPECT_EQ(run.error, "");
  ASSERT_EQ(run.rows.size(), 3u);
  for (int i = 0; i < 3; ++i) {
    EXPECT_TRUE(std::isfinite(run.rows[i].terms.loss()));
    EXPECT_TRUE(std::isnan(run.rows[i].grad_norm));  // of no finite step
    EXPECT_EQ(run.rows[i].skipped, i + 1);
  }
  const Saved saved = saved_state(folder / "run", 3);
  EXPECT_EQ(saved.counters, (nlohmann::json{{"step", 3}, {"updates", 0}, {"skipped", 3}}));
  EXPECT_TRUE(at::equal(saved.buffers.at("values"), saved_state(folder / "run", 1).buffers.at("values")));
  EXPECT_TRUE(at::isfinite(saved.buffers.at("values")).all().item<bool>());
}

TEST(Train, ANaNLossStopsTheRunAndTheStateIsSavedAside) {
  const TemporaryFolder folder;
  Checkpoint start = test::random_checkpoint(tiny_pixels());
  start.weights.at("final_layer.linear.bias").fill_(NAN);
  const Outcome run = run_training(folder / "run", start, tiny_training(3));
  EXPECT_NE(run.error.find("step 0: the loss is "), std::string::npos) << run.error;
  EXPECT_NE(run.error.find((folder / "run/nan").string()), std::string::npos) << run.error;
  EXPECT_TRUE(fs::exists(folder / "run/nan/checkpoints/0000000.state"));
  EXPECT_FALSE(fs::exists(folder / "run/checkpoints/0000000.state"));
}

TEST(Train, ClippingScalesTheGradientToTheLimit) {
  const TemporaryFolder folder;
  const Checkpoint start = test::random_checkpoint(tiny_pixels());
  TrainOptions options = tiny_training(1);
  const double norm = run_training(folder / "free", start, options).rows[0].grad_norm;
  options.clip_grad = norm / 10;
  EXPECT_EQ(run_training(folder / "run", start, options).rows[0].grad_norm, norm);  // logged as it was
  // After one step exp_avg is a tenth of the gradient.
  const double clipped = saved_state(folder / "run", 1).buffers.at("exp_avg").norm().item<double>();
  EXPECT_NEAR(clipped, 0.1 * norm / 10, 1e-5 * norm);
  const double whole = saved_state(folder / "free", 1).buffers.at("exp_avg").norm().item<double>();
  EXPECT_NEAR(whole, 0.1 * norm, 1e-4 * norm);
}

TEST(Train, CancelSavesAndTheResumedRunEqualsAnUnbrokenOne) {
  const TemporaryFolder folder;
  const Checkpoint start = test::random_checkpoint(tiny_pixels());
  TrainOptions options = tiny_training(7);
  options.warmup_steps = 5;
  EXPECT_EQ(run_training(folder / "whole", start, options).error, "");

  CancelFlag cancel = false;
  const Outcome first = run_training(folder / "run", start, options, /*resume=*/false, &cancel,
                                     [&](const Progress& progress) { cancel = progress.done == 3; });
  EXPECT_TRUE(first.cancelled);
  EXPECT_TRUE(fs::exists(folder / "run/checkpoints/0000003.state"));
  EXPECT_FALSE(fs::exists(folder / "run/checkpoints/0000004.state"));
  const Outcome second = run_training(folder / "run", start, options, /*resume=*/true);
  EXPECT_EQ(second.error, "");
  EXPECT_EQ(second.rows.size(), 4u);
  ASSERT_EQ(second.texts.size(), 1u);
  EXPECT_EQ(second.texts[0], "resumed at step 3");
  const Saved whole = saved_state(folder / "whole", 7), resumed = saved_state(folder / "run", 7);
  for (const auto& [name, buffer] : whole.buffers) {
    EXPECT_TRUE(at::equal(buffer, resumed.buffers.at(name))) << name;
  }
  EXPECT_EQ(whole.counters, resumed.counters);
}

TEST(Train, ARunMayBeProlongedButNotChanged) {
  const TemporaryFolder folder;
  const Checkpoint start = test::random_checkpoint(tiny_pixels());
  run_training(folder / "run", start, tiny_training(2));
  TrainOptions options = tiny_training(4);
  EXPECT_EQ(run_training(folder / "run", start, options, /*resume=*/true).error, "");
  EXPECT_TRUE(fs::exists(folder / "run/checkpoints/0000004.state"));
  options.lr = 5e-4;
  const std::string error = run_training(folder / "run", start, options, /*resume=*/true).error;
  EXPECT_NE(error.find("lr = 0.001"), std::string::npos) << error;
}

// Every field of the options that changes the numbers is compared when a run is resumed.
TEST(OptionsToJson, EveryOptionThatMattersIsInIt) {
  TrainOptions base;
  base.dynamic = true;
  const std::vector<std::function<void(TrainOptions&)>> changes = {
      [](TrainOptions& o) { o.dynamic = false; },
      [](TrainOptions& o) { o.router.lambda = 0.7; },
      [](TrainOptions& o) { o.router.anneal_start = 1; },
      [](TrainOptions& o) { o.router.anneal_steps = 1; },
      [](TrainOptions& o) { o.router.complete_steps = 1; },
      [](TrainOptions& o) { o.router.gates = GateKind::Soft; },
      [](TrainOptions& o) { o.global_batch = 1; },
      [](TrainOptions& o) { o.accumulate = 2; },
      [](TrainOptions& o) { o.lr = 1; },
      [](TrainOptions& o) { o.warmup_steps = 1; },
      [](TrainOptions& o) { o.weight_decay = 1; },
      [](TrainOptions& o) { o.router_lr_scale = 2; },
      [](TrainOptions& o) { o.clip_grad = 1; },
      [](TrainOptions& o) { o.skip_norm = 1; },
      [](TrainOptions& o) { o.ema_decay = 0; },
      [](TrainOptions& o) { o.label_dropout = 0; },
      [](TrainOptions& o) { o.flip = false; },
      [](TrainOptions& o) { o.dtype = at::kBFloat16; },
      [](TrainOptions& o) { o.seed = 1; }};
  std::set<std::string> seen = {options_to_json(base).dump()};
  for (const auto& change : changes) {
    TrainOptions options = base;
    change(options);
    EXPECT_TRUE(seen.insert(options_to_json(options).dump()).second) << seen.size();
  }
  TrainOptions prolonged = base;
  prolonged.total_steps = 99;
  EXPECT_EQ(options_to_json(prolonged), options_to_json(base));
}

TEST(Train, ALabelBeyondTheModelsClassesIsNamed) {
  const TemporaryFolder folder;
  DiTConfig config = tiny_pixels();
  config.num_classes = 2;
  const Outcome run = run_training(folder / "run", test::random_checkpoint(config), tiny_training(1));
  EXPECT_NE(run.error.find("image 2 has label 2"), std::string::npos) << run.error;
}

TEST(Train, ImagesThatDoNotFitTheModelAreNamed) {
  const TemporaryFolder folder;
  DiTConfig config = tiny_pixels();
  config.input_size = 16;
  const Outcome run = run_training(folder / "run", test::random_checkpoint(config), tiny_training(1));
  EXPECT_NE(run.error.find("8x8 with 3 channels, the model takes 16x16"), std::string::npos) << run.error;
}

TEST(Train, ABatchThatCannotBeCutIsRefused) {
  const TemporaryFolder folder;
  TrainOptions options = tiny_training(1);
  options.accumulate = 3;
  const Outcome run = run_training(folder / "run", test::random_checkpoint(tiny_pixels()), options);
  EXPECT_NE(run.error.find("--global-batch-size 4"), std::string::npos) << run.error;
}

TEST(Train, RoutersAndOptionsMustMatch) {
  const TemporaryFolder folder;
  TrainOptions options = tiny_training(1);
  options.dynamic = true;
  EXPECT_NE(run_training(folder / "run", test::random_checkpoint(tiny_pixels()), options).error, "");
  options.dynamic = false;
  DiTConfig config = tiny_pixels();
  config.width_routers = true;
  EXPECT_NE(run_training(folder / "run", test::random_checkpoint(config), options).error, "");
}

}  // namespace
}  // namespace dydit
