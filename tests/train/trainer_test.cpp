// The loop: what is skipped, what is counted, what stops it, and that a resumed run is the unbroken one.
#include "dydit/train/trainer.h"

#include <atomic>
#include <cmath>
#include <fstream>
#include <new>
#include <set>
#include <sstream>

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "dydit/io/safetensors.h"
#include "dydit/model/edit.h"
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
  int64_t done = -1;
  std::vector<LogRow> rows;
  std::vector<std::string> texts;
};

// Trains `start` in `folder`, a row and a checkpoint every step.
Outcome run_training(const fs::path& folder, const Checkpoint& start, const TrainOptions& options,
                     bool resume = false, const CancelFlag* cancel = nullptr, ProgressFn on_progress = {},
                     const Dataset& data = NoiseImages(),
                     const std::function<void(RunOptions&)>& change = {}) {
  fs::create_directories(folder);
  RunOptions run_options;
  run_options.run = folder;
  run_options.resume = resume;
  run_options.checkpoint_every = 1;
  run_options.keep_last = 1000;
  run_options.log_every = 1;
  if (change) change(run_options);
  Outcome result;
  Communicator alone;
  try {
    run_options.identity = run_identity(start, data, options);
    result.done = train(start, data, options, run_options, alone,
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

// Both ways to draw the level, with routers by either rule.
TEST(Train, ARunOfLevelsThatIsResumedEqualsAnUnbrokenOne) {
  for (const int from : {0, 500}) {
    for (const GateRule rule : {GateRule::Threshold, GateRule::Capacity}) {
      const TemporaryFolder folder;
      const Checkpoint start = add_levels(
          add_routers(test::random_checkpoint(tiny_pixels()), {.width_bias = 0, .token_bias = 0}, 5), {from});
      TrainOptions options = tiny_training(6);
      options.dynamic = true;
      options.router = {.lambda = 0.5, .anneal_start = 0, .anneal_steps = 1, .gate_rule = rule};
      EXPECT_EQ(run_training(folder / "whole", start, options).error, "");
      options.total_steps = 3;
      EXPECT_EQ(run_training(folder / "cut", start, options).error, "");
      options.total_steps = 6;
      EXPECT_EQ(run_training(folder / "cut", start, options, /*resume=*/true).error, "");
      const Saved whole = saved_state(folder / "whole", 6), cut = saved_state(folder / "cut", 6);
      for (const auto& [name, buffer] : whole.buffers)
        EXPECT_TRUE(at::equal(cut.buffers.at(name), buffer)) << name;
      const Checkpoint trained = load_checkpoint(model_path(folder / "whole", 6));
      EXPECT_EQ(trained.config.level_from, std::vector<int>{from});
      EXPECT_FALSE(
          at::equal(trained.weights.at("levels.1.embedding"), start.weights.at("levels.1.embedding")));
      if (rule == GateRule::Capacity) {
        EXPECT_EQ(trained.keep_counts->tokens.size(), 2u * start.config.depth);
      }
    }
  }
}

TEST(Train, ARunOfRegionsAndBlocksThatIsResumedEqualsAnUnbrokenOne) {
  const TemporaryFolder folder;
  const Checkpoint start = add_routers(test::random_checkpoint(tiny_pixels()),
                                       {.width_bias = 0, .token_bias = 0, .scope = TokenScope::Block}, 5);
  TrainOptions options = tiny_training(6);
  options.dynamic = true;
  options.router = {.lambda = 0.5,
                    .anneal_start = 0,
                    .anneal_steps = 1,
                    .gate_rule = GateRule::Capacity,
                    .share_gradient = ShareGradient::Interval,
                    .regions = 10};
  options.timesteps.strata = 10;
  EXPECT_EQ(run_training(folder / "whole", start, options).error, "");
  options.total_steps = 3;
  EXPECT_EQ(run_training(folder / "cut", start, options).error, "");
  options.total_steps = 6;
  EXPECT_EQ(run_training(folder / "cut", start, options, /*resume=*/true).error, "");
  const Saved whole = saved_state(folder / "whole", 6), cut = saved_state(folder / "cut", 6);
  for (const auto& [name, buffer] : whole.buffers)
    EXPECT_TRUE(at::equal(cut.buffers.at(name), buffer)) << name;
  const Checkpoint trained = load_checkpoint(model_path(folder / "whole", 6));
  EXPECT_EQ(trained.keep_counts->regions(), 10);
  EXPECT_EQ(trained.config.token_scope, TokenScope::Block);
  options.router.share_gradient = ShareGradient::Boundary;
  const std::string error = run_training(folder / "cut", start, options, /*resume=*/true).error;
  EXPECT_NE(error.find("share-gradient"), std::string::npos) << error;
}

TEST(Train, LevelsThatSeeSomeOfTNeedItStratified) {
  const TemporaryFolder folder;
  const Checkpoint start = add_levels(test::random_checkpoint(tiny_pixels()), {500});
  TrainOptions options = tiny_training(1);
  options.timesteps.draw = TimestepDraw::Uniform;
  EXPECT_NE(
      run_training(folder / "run", start, options).error.find("needs --timesteps stratified, got uniform"),
      std::string::npos);
}

TEST(Train, LevelsOfTheCapacityRuleBeginAtAQuarter) {
  const TemporaryFolder folder;
  const Checkpoint start = add_levels(add_routers(test::random_checkpoint(tiny_pixels()), {}, 5), {600});
  TrainOptions options = tiny_training(1);
  options.dynamic = true;
  options.router.gate_rule = GateRule::Capacity;
  EXPECT_NE(run_training(folder / "run", start, options).error.find("take a multiple of 250"),
            std::string::npos);
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

// Resumes a run of two steps with something else; returns why it is refused.
std::string refused_with(const Checkpoint& start, const Dataset& data) {
  const TemporaryFolder folder;
  Checkpoint first = test::random_checkpoint(tiny_pixels());
  first.sha256 = "first";
  first.class_names = {"a", "b", "c", "d", "e"};
  EXPECT_EQ(run_training(folder / "run", first, tiny_training(2)).error, "");
  return run_training(folder / "run", start, tiny_training(4), /*resume=*/true, nullptr, {}, data).error;
}

TEST(Train, AnotherStartOrOtherClassesOrImagesAreNoResumption) {
  Checkpoint start = test::random_checkpoint(tiny_pixels());
  start.sha256 = "first";
  start.class_names = {"a", "b", "c", "d", "e"};
  EXPECT_EQ(refused_with(start, NoiseImages()), "");
  start.sha256 = "second";
  EXPECT_NE(refused_with(start, NoiseImages()).find("start = \"first\", this run has \"second\""),
            std::string::npos);
  start.sha256 = "first";
  start.class_names[2] = "z";
  EXPECT_NE(refused_with(start, NoiseImages()).find("class-names[2] = \"c\", this run has \"z\""),
            std::string::npos);
  start.class_names[2] = "c";
  EXPECT_NE(refused_with(start, NoiseImages(3)).find("data-classes"), std::string::npos);
}

TEST(Train, OtherSurroundingsAreToldAndTheRunGoesOn) {
  const TemporaryFolder folder;
  const Checkpoint start = test::random_checkpoint(tiny_pixels());
  const auto with_threads = [&](int threads, int64_t steps, bool resume) {
    return run_training(folder / "run", start, tiny_training(steps), resume, nullptr, {}, NoiseImages(),
                        [&](RunOptions& run) {
                          run.surroundings = {{"threads", threads}};
                        });
  };
  with_threads(2, 2, /*resume=*/false);
  const Outcome other = with_threads(1, 4, /*resume=*/true);
  EXPECT_EQ(other.done, 4);
  ASSERT_EQ(other.texts.size(), 2u);
  EXPECT_NE(other.texts[0].find("was saved with threads = 2 (now 1)"), std::string::npos) << other.texts[0];
  EXPECT_EQ(with_threads(1, 6, /*resume=*/true).texts.size(), 1u);  // the run is one of one thread now
}

TEST(Train, FewerStepsThanAreDoneTrainNothingAndSaySo) {
  const TemporaryFolder folder;
  const Checkpoint start = test::random_checkpoint(tiny_pixels());
  EXPECT_EQ(run_training(folder / "run", start, tiny_training(4)).done, 4);
  const Outcome fewer = run_training(folder / "run", start, tiny_training(3), /*resume=*/true);
  EXPECT_EQ(fewer.error, "");
  EXPECT_EQ(fewer.done, 4);
  EXPECT_TRUE(fewer.rows.empty());
}

TEST(Train, AModelThatIsGoneIsWrittenAgainFromItsState) {
  const TemporaryFolder folder;
  const Checkpoint start = test::random_checkpoint(tiny_pixels());
  run_training(folder / "run", start, tiny_training(2));
  const fs::path model = folder / "run/checkpoints/0000002.safetensors";
  const std::string before = test::contents(model);
  fs::remove(model);
  EXPECT_EQ(run_training(folder / "run", start, tiny_training(2), /*resume=*/true).done, 2);
  EXPECT_EQ(test::contents(model), before);
}

// Runs to step 5, where `damage` is done after step 2; checkpoints are due at multiples of `every`.
Outcome disturbed(const fs::path& run, const std::function<void()>& damage, int64_t every) {
  return run_training(
      run, test::random_checkpoint(tiny_pixels()), tiny_training(5), /*resume=*/false, nullptr,
      [&](const Progress& progress) {
        if (progress.done == 2) damage();
      },
      NoiseImages(), [&](RunOptions& options) { options.checkpoint_every = every; });
}

void expect_saved(const Outcome& run, const fs::path& folder, int step, const std::string& reason) {
  EXPECT_NE(run.error.find(reason), std::string::npos) << run.error;
  EXPECT_NE(run.error.find(fmt::format("the state of step {} is saved in {}", step, folder.string())),
            std::string::npos)
      << run.error;
  EXPECT_EQ(saved_state(folder, step).counters.at("step"), step);
}

TEST(Train, ALogThatCannotBeWrittenSavesTheStateFirst) {
  for (const char* log : {"log.csv", "log.txt"}) {
    const TemporaryFolder folder;
    const auto damage = [&] {
      fs::remove(folder / "run" / log);
      fs::create_directory(folder / "run" / log);
    };
    expect_saved(disturbed(folder / "run", damage, 100), folder / "run", 3,
                 "cannot append to it: Is a directory");
  }
}

TEST(Train, ARunFolderThatIsGoneIsMadeAgainForTheState) {
  const TemporaryFolder folder;
  expect_saved(disturbed(
                   folder / "run", [&] { fs::remove_all(folder / "run"); }, 100),
               folder / "run", 3, "log.csv: cannot append to it: No such file");
}

TEST(Train, ACheckpointThatCannotBeWrittenLeavesTheOneBefore) {
  const TemporaryFolder folder;
  const Outcome run = disturbed(
      folder / "run",
      [&] {
        fs::rename(folder / "run/checkpoints", folder / "run/moved");
        std::ofstream(folder / "run/checkpoints") << "a file";
      },
      1);
  EXPECT_NE(run.error.find("0000002.safetensors"), std::string::npos) << run.error;
  EXPECT_NE(run.error.find("the newest checkpoint is that of step 1"), std::string::npos) << run.error;
  EXPECT_TRUE(fs::exists(folder / "run/moved/0000001.state"));
}

TEST(Train, AnythingThatASampleMeetsSavesTheStateFirst) {
  const TemporaryFolder folder;
  fs::create_directories(folder / "run");
  RunOptions run;
  run.run = folder / "run";
  run.sample_every = 2;
  Communicator alone;
  const std::string error = test::error_of([&] {
    train(
        test::random_checkpoint(tiny_pixels()), NoiseImages(), tiny_training(5), run, alone,
        {.on_sample = [](const Checkpoint&, int64_t, Watch&) { throw std::bad_alloc(); }, .on_progress = {}});
  });
  EXPECT_NE(error.find("out of memory"), std::string::npos) << error;
  EXPECT_NE(error.find("the state of step 2 is saved"), std::string::npos) << error;
}

// The sixth image is there at first and then is not.
class VanishingImages final : public Dataset {
 public:
  VanishingImages() {
    side_ = images_.side();
    channels_ = images_.channels();
    class_names_ = images_.class_names();
  }
  int64_t size() const override { return images_.size(); }
  int label(int64_t index) const override { return images_.label(index); }
  void read(int64_t index, std::span<uint8_t> out) const override {
    DYDIT_CHECK(index != 5 || ++reads_ < 4, "five.png: is gone");
    images_.read(index, out);
  }

 private:
  NoiseImages images_;
  mutable std::atomic<int> reads_ = 0;
};

TEST(Train, AnImageThatIsGoneIsNamedAndTheStateSaved) {
  const TemporaryFolder folder;
  const Outcome run = run_training(folder / "run", test::random_checkpoint(tiny_pixels()), tiny_training(50),
                                   /*resume=*/false, nullptr, {}, VanishingImages(),
                                   [](RunOptions& options) { options.checkpoint_every = 100; });
  // 12 images in batches of 4. The first reading is the digest's, the fourth is in steps 6 to 8.
  const int step = static_cast<int>(run.rows.back().step);
  EXPECT_TRUE(step >= 6 && step <= 8) << step;
  expect_saved(run, folder / "run", step, "five.png: is gone");
}

// A decay factor that is infinite: the update's gradient is sound, its result is not.
TrainOptions infinite_update(int64_t steps) {
  TrainOptions options = tiny_training(steps);
  options.lr = 1e38;
  options.weight_decay = 10;
  return options;
}

TEST(Train, WeightsThatAreNotFiniteAreNeverSaved) {
  const TemporaryFolder folder;
  const Checkpoint start = test::random_checkpoint(tiny_pixels());
  const Outcome at_once = run_training(folder / "run", start, infinite_update(3));
  EXPECT_NE(at_once.error.find("step 1: the weights are no longer finite"), std::string::npos)
      << at_once.error;
  EXPECT_NE(at_once.error.find("there is no checkpoint yet"), std::string::npos) << at_once.error;
  const Outcome later = run_training(folder / "later", start, infinite_update(3), /*resume=*/false, nullptr,
                                     {}, NoiseImages(), [](RunOptions& run) { run.checkpoint_every = 100; });
  EXPECT_NE(later.error.find("step 1: the loss is "), std::string::npos) << later.error;
  EXPECT_NE(later.error.find("its weights are not finite either: there is no checkpoint yet"),
            std::string::npos)
      << later.error;
  for (const char* run : {"run", "later"})
    EXPECT_FALSE(fs::exists(folder / run / "checkpoints/0000001.state"));
}

// A finite update that no forward survives: the state before the loss is sound.
TEST(Train, OfAFiniteStateThatIsSavedAsideNothingElseIsSaid) {
  const TemporaryFolder folder;
  TrainOptions options = tiny_training(5);
  options.lr = 1e30;
  const Outcome run = run_training(folder / "run", test::random_checkpoint(tiny_pixels()), options);
  EXPECT_TRUE(run.error.ends_with((folder / "run/nan").string())) << run.error;
}

TEST(Train, ALogIsCutAtTheResumedStep) {
  const TemporaryFolder folder;
  const Checkpoint start = test::random_checkpoint(tiny_pixels());
  run_training(folder / "whole", start, tiny_training(5));
  run_training(folder / "run", start, tiny_training(4));
  for (const int step : {3, 4}) fs::remove(folder / "run" / fmt::format("checkpoints/{:07}.state", step));
  std::ofstream(folder / "run/log.txt", std::ios::app) << "a line of no step\n(step=0000005) Train Lo";
  run_training(folder / "run", start, tiny_training(5), /*resume=*/true);
  std::istringstream log(test::contents(folder / "run/log.txt"));
  std::vector<std::string> steps;
  for (std::string line; std::getline(log, line);) steps.push_back(line.substr(0, line.find(')')));
  EXPECT_EQ(steps, (std::vector<std::string>{"(step=0000001", "(step=0000002", "a line of no step",
                                             "(step=0000003", "(step=0000004", "(step=0000005"}));
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
      [](TrainOptions& o) { o.preparation["importance"] = "none"; },
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
  EXPECT_EQ(run_training(folder / "run", test::random_checkpoint(tiny_pixels()), options).error,
            "a model with routers is needed to fine-tune dynamically");
  options.dynamic = false;
  DiTConfig config = tiny_pixels();
  config.width_routers = true;
  EXPECT_EQ(run_training(folder / "run", test::random_checkpoint(config), options).error,
            "a static model is needed here, this one has routers");
}

TEST(CheckTraining, RefusesWhatCannotFitBeforeItIsAllocated) {
  const auto refuse = [](const DiTConfig& config, int batch, int accumulate, const std::string& what,
                         const std::string& way_out) {
    TrainOptions options;
    options.global_batch = batch;
    options.accumulate = accumulate;
    const std::string message =
        test::error_of([&] { check_training(NoiseImages(), config, options, /*processes=*/1); });
    EXPECT_TRUE(message.starts_with(what + ": needs at least ")) << message;
    EXPECT_TRUE(message.ends_with("; " + way_out)) << message;
  };
  DiTConfig wide = tiny_pixels();
  wide.hidden_size = 1 << 16;
  wide.depth = 1024;
  refuse(wide, 4, 1, model_name(wide), "take a smaller model");
  const char* way_out = "raise --accumulate or take a smaller --global-batch-size";
  refuse(tiny_pixels(), 1 << 30, 1, "a micro-batch of 1073741824 images", way_out);
  refuse(tiny_pixels(), 1 << 30, 2, "a micro-batch of 536870912 images", way_out);
}

// Of a GPU's memory this machine's says nothing.
TEST(CheckTraining, LeavesAGpuItsMemory) {
  TrainOptions options;
  options.global_batch = 1 << 30;
  options.device = at::kCUDA;
  check_training(NoiseImages(), tiny_pixels(), options, /*processes=*/1);
}

}  // namespace
}  // namespace dydit
