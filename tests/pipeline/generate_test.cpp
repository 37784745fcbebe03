// generate(): a sample is a function of its own inputs; work, order, cancelling and refusals.
#include "dydit/pipeline/generate.h"

#include <array>
#include <atomic>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "dydit/base/error.h"
#include "dydit/base/noise.h"
#include "dydit/base/torch_noise.h"
#include "dydit/model/macs.h"
#include "tests/support/engines.h"
#include "tests/support/files.h"
#include "tests/support/random_model.h"
#include "tests/support/sampling.h"

namespace dydit {
namespace {

using test::expect_error;
using test::odd_config;
using test::random_checkpoint;
using test::tiny_config;

GenerateOptions few_steps() {
  GenerateOptions options;
  options.classes = {3, 0, 4};
  options.num_images = 4;
  options.num_steps = 3;
  options.seed = 17;
  return options;
}

std::vector<GeneratedSample> samples_of(const DiTConfig& config, const GenerateOptions& options) {
  std::vector<GeneratedSample> samples;
  GenerateCallbacks callbacks;
  callbacks.on_sample = [&](GeneratedSample&& sample) { samples.push_back(std::move(sample)); };
  generate(random_checkpoint(config), options, callbacks);
  return samples;
}

GeneratedSample one_sample(const DiTConfig& config, GenerateOptions options) {
  options.num_images = 1;
  return std::move(samples_of(config, options)[0]);
}

void expect_usage_error(const GenerateOptions& options, const std::string& part) {
  EXPECT_THROW(samples_of(tiny_config(), options), UsageError);
  expect_error([&] { samples_of(tiny_config(), options); }, part);
}

// A model of a size that is mapped, in a file that another program writes to.
class GenerateFromAFileThatChanges : public ::testing::TestWithParam<EngineKind> {
 protected:
  GenerateFromAFileThatChanges() : path_(folder_ / "m.safetensors") {
    DiTConfig config = tiny_config();
    config.hidden_size = 128;
    config.mlp_hidden = 512;
    save_checkpoint(path_, random_checkpoint(config), at::kFloat);
    EXPECT_GT(std::filesystem::file_size(path_), MappedFile::kCopiedBytes);
    options_ = few_steps();
    options_.num_images = 2;
    options_.batch = 1;
    options_.engine = GetParam();
  }
  // As torch.save and cp do it: into the file itself, here zeros.
  void overwrite() {
    const auto size = static_cast<size_t>(std::filesystem::file_size(path_));
    std::ofstream(path_, std::ios::binary | std::ios::in | std::ios::out) << std::string(size, '\0');
  }
  std::vector<at::Tensor> run(const Checkpoint& checkpoint, const std::function<void()>& after_an_image) {
    std::vector<at::Tensor> samples;
    generate(checkpoint, options_, {.on_sample = [&](GeneratedSample&& sample) {
               samples.push_back(sample.sample);
               after_an_image();
             }});
    return samples;
  }

  test::TemporaryFolder folder_;
  const std::filesystem::path path_;
  GenerateOptions options_;
};

TEST_P(GenerateFromAFileThatChanges, ImagesAreThoseOfTheWeightsThatWereRead) {
  const auto wanted = run(load_checkpoint(path_), [] {});
  EXPECT_FALSE(at::equal(wanted[0], wanted[1]));
  const auto written = run(load_checkpoint(path_), [&] { overwrite(); });
  for (int i = 0; i < 2; ++i) EXPECT_TRUE(at::equal(wanted[i], written[i])) << i;
}

TEST_P(GenerateFromAFileThatChanges, CutShortWhileImagesAreMadeItIsNotMissed) {
  const auto wanted = run(load_checkpoint(path_), [] {});
  const auto cut = run(load_checkpoint(path_), [&] { std::filesystem::resize_file(path_, 0); });
  for (int i = 0; i < 2; ++i) EXPECT_TRUE(at::equal(wanted[i], cut[i])) << i;
}

TEST_P(GenerateFromAFileThatChanges, IsRefusedWhenItChangedBeforeTheEngineTookIt) {
  const Checkpoint checkpoint = load_checkpoint(path_);
  overwrite();
  expect_error([&] { run(checkpoint, [] {}); }, "m.safetensors: changed while it was in use");
}

INSTANTIATE_TEST_SUITE_P(Engines, GenerateFromAFileThatChanges,
                         ::testing::Values(EngineKind::Cpu, EngineKind::Reference));

TEST(Generate, ImageDependsNeitherOnBatchNorThreads) {
  for (const DiTConfig& config : {tiny_config(), odd_config()}) {
    GenerateOptions options = few_steps();
    options.num_images = 8;
    options.batch = 8;
    const std::vector<GeneratedSample> wanted = samples_of(config, options);
    for (int batch : {1, 3, 8}) {
      for (int threads : {1, 2}) {
        options.batch = batch;
        options.threads = threads;
        const std::vector<GeneratedSample> got = samples_of(config, options);
        ASSERT_EQ(got.size(), 8u);
        for (int i = 0; i < 8; ++i) {
          EXPECT_TRUE(at::equal(got[i].sample, wanted[i].sample)) << "image " << i << ", batch " << batch;
          EXPECT_EQ(got[i].work.required, wanted[i].work.required);
        }
      }
    }
  }
}

TEST(Generate, ImageDoesNotDependOnHowManyAreMade) {
  EXPECT_TRUE(at::equal(one_sample(tiny_config(), few_steps()).sample,
                        samples_of(tiny_config(), few_steps())[0].sample));
}

TEST(Generate, DeliversInOrderOfIndexWithCycledLabels) {
  GenerateOptions options = few_steps();
  options.batch = 3;
  const std::vector<GeneratedSample> samples = samples_of(tiny_config(), options);
  const std::vector<int> labels = {3, 0, 4, 3};
  ASSERT_EQ(samples.size(), 4u);
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(samples[i].index, i);
    EXPECT_EQ(samples[i].label, labels[i]);
  }
}

TEST(Generate, SampleHasTheChannelsOfTheInput) {
  EXPECT_EQ(one_sample(tiny_config(), few_steps()).sample.sizes(), (at::IntArrayRef{4, 8, 8}));
}

TEST(Generate, SamplesAreFinite) {
  for (const DiTConfig& config : {tiny_config(), odd_config()}) {
    for (const GeneratedSample& sample : samples_of(config, few_steps())) {
      EXPECT_TRUE(at::isfinite(sample.sample).all().item<bool>());
    }
  }
}

// One class's weights are finite, but overflow in the forward: the images of the others are whole.
TEST(Generate, AnImageThatIsNoNumberIsNamed) {
  for (const EngineKind engine : {EngineKind::Cpu, EngineKind::Reference}) {
    Checkpoint checkpoint = random_checkpoint(tiny_config());
    checkpoint.weights.at("y_embedder.embedding_table.weight")[4].fill_(3e38f);
    GenerateOptions options = few_steps();  // classes 3, 0, 4, 3
    options.engine = engine;
    int delivered = 0;
    GenerateCallbacks callbacks;
    callbacks.on_sample = [&](GeneratedSample&&) { ++delivered; };
    expect_error([&] { generate(checkpoint, options, callbacks); },
                 "image 2: sampling gave NaN or infinity; try float32, less guidance or more steps");
    EXPECT_EQ(delivered, 0);
    options.batch = 2;  // the first batch is whole
    expect_error([&] { generate(checkpoint, options, callbacks); }, "image 2: ");
    EXPECT_EQ(delivered, 2);
  }
}

TEST(Generate, AnImageThatIsInfiniteIsNamed) {
  Checkpoint checkpoint = random_checkpoint(tiny_config());
  checkpoint.weights.at("final_layer.linear.bias").fill_(3e38f);
  GenerateOptions options = few_steps();
  options.sampler.kind = SamplerKind::Ddim;
  expect_error(
      [&] {
        generate(checkpoint, options, {[](GeneratedSample&&) {}, {}});
      },
      "image 0: sampling gave NaN or infinity");
}

TEST(Generate, OtherSeedGivesAnotherImage) {
  GenerateOptions other = few_steps();
  other.seed = 18;
  EXPECT_FALSE(
      at::equal(one_sample(tiny_config(), few_steps()).sample, one_sample(tiny_config(), other).sample));
}

TEST(Generate, OtherClassGivesAnotherImage) {
  GenerateOptions other = few_steps();
  other.classes = {1};
  EXPECT_FALSE(
      at::equal(one_sample(tiny_config(), few_steps()).sample, one_sample(tiny_config(), other).sample));
}

TEST(Generate, ImagesOfOneClassDiffer) {
  const std::vector<GeneratedSample> samples = samples_of(tiny_config(), few_steps());
  ASSERT_EQ(samples[0].label, samples[3].label);
  EXPECT_FALSE(at::equal(samples[0].sample, samples[3].sample));
}

TEST(Generate, DdimWithoutEtaIsReproducible) {
  GenerateOptions options = few_steps();
  options.sampler.kind = SamplerKind::Ddim;
  EXPECT_TRUE(
      at::equal(one_sample(tiny_config(), options).sample, one_sample(tiny_config(), options).sample));
}

TEST(Generate, OneStepRunIsFinite) {
  GenerateOptions options = few_steps();
  options.num_steps = 1;
  EXPECT_TRUE(at::isfinite(one_sample(tiny_config(), options).sample).all().item<bool>());
}

TEST(Generate, GuidanceChangesTheImage) {
  GenerateOptions off = few_steps();
  off.cfg_scale = 1.0f;
  EXPECT_FALSE(
      at::equal(one_sample(tiny_config(), few_steps()).sample, one_sample(tiny_config(), off).sample));
}

TEST(Generate, GuidedChannelsBeyondTheLastMeanAll) {
  GenerateOptions all = few_steps(), beyond = few_steps();
  all.guided_channels = 4;
  beyond.guided_channels = 99;
  EXPECT_TRUE(at::equal(one_sample(tiny_config(), all).sample, one_sample(tiny_config(), beyond).sample));
  EXPECT_FALSE(
      at::equal(one_sample(tiny_config(), all).sample, one_sample(tiny_config(), few_steps()).sample));
}

TEST(Generate, GuidanceOffUsesOneRowAnImage) {
  GenerateOptions guided = few_steps(), off = few_steps();
  guided.mode = off.mode = Mode::Static;
  off.cfg_scale = 1.0f;
  const Work twice = one_sample(tiny_config(), guided).work, once = one_sample(tiny_config(), off).work;
  EXPECT_EQ(twice.required, 2 * once.required);
  EXPECT_EQ(twice.executed, 2 * once.executed);
}

TEST(Generate, StaticWorkIsTheStaticModelsAtEveryStep) {
  GenerateOptions options = few_steps();
  options.mode = Mode::Static;
  EXPECT_EQ(one_sample(tiny_config(), options).work.required, 3 * 2 * static_macs(tiny_config()));
  EXPECT_EQ(static_macs_per_sample(tiny_config(), options), 3 * 2 * static_macs(tiny_config()));
}

TEST(Generate, DynamicModeRequiresLess) {
  EXPECT_LT(one_sample(tiny_config(), few_steps()).work.required,
            static_macs_per_sample(tiny_config(), few_steps()));
}

TEST(Generate, DpmDependsNeitherOnBatchNorThreads) {
  GenerateOptions options = few_steps();
  options.sampler.kind = SamplerKind::Dpm;
  const std::vector<GeneratedSample> wanted = samples_of(tiny_config(), options);
  options.batch = 3;
  options.threads = 2;
  const std::vector<GeneratedSample> got = samples_of(tiny_config(), options);
  for (int i = 0; i < 4; ++i) EXPECT_TRUE(at::equal(got[i].sample, wanted[i].sample)) << i;
}

TEST(Generate, TimestepsByHandTakeThePlaceOfChosenOnes) {
  for (const SamplerKind kind : {SamplerKind::Ddpm, SamplerKind::Ddim, SamplerKind::Dpm}) {
    GenerateOptions chosen = few_steps(), by_hand = few_steps(), other = few_steps();
    chosen.sampler.kind = by_hand.sampler.kind = other.sampler.kind = kind;
    const std::vector<double> same = choose_timesteps(kind, 3).timesteps;
    by_hand.timesteps = {same[1], same[2], same[0]};  // the order does not matter
    by_hand.num_steps = 250;                          // nor does this
    other.timesteps = {same[1] + 1, same[2], same[0]};
    const GeneratedSample wanted = one_sample(tiny_config(), chosen),
                          got = one_sample(tiny_config(), by_hand);
    EXPECT_TRUE(at::equal(got.sample, wanted.sample));
    EXPECT_EQ(got.work.required, wanted.work.required);
    EXPECT_EQ(static_macs_per_sample(tiny_config(), by_hand), static_macs_per_sample(tiny_config(), chosen));
    EXPECT_FALSE(at::equal(one_sample(tiny_config(), other).sample, wanted.sample));
  }
}

TEST(Generate, TimestepsOutOfRangeAreAUsageError) {
  GenerateOptions options = few_steps();
  options.timesteps = {1000, 3};
  expect_usage_error(options, "--timesteps: 1000 is outside 0 to 999");
}

// The original's p_sample_loop on the CPU: z for the images, then randn_like of all 2n rows in every step.
TEST(Generate, TorchNoiseIsDrawnAsTheOriginalScriptDraws) {
  GenerateOptions options = few_steps();
  options.noise = NoiseKind::Torch;
  const std::vector<GeneratedSample> got = samples_of(tiny_config(), options);

  const Checkpoint checkpoint = random_checkpoint(tiny_config());
  const std::vector<double> timesteps = choose_timesteps(SamplerKind::Ddpm, 3).timesteps;
  const test::EngineOf engine(options.engine, checkpoint, {}, Mode::Dynamic, timesteps);
  const std::vector<int64_t> labels = {3, 0, 4, 3, 5, 5, 5, 5};  // 5 is the null class
  TorchNoise stream(options.seed);
  const auto randn = [&](int64_t rows) {
    at::Tensor values = at::empty({rows, 4, 8, 8});
    stream.fill({values.data_ptr<float>(), static_cast<size_t>(values.numel())});
    return values;
  };
  at::Tensor x = randn(4);
  const auto denoise = [&](const at::Tensor& state, int step) {
    at::Tensor out = engine.forward(at::cat({state, state}), step, labels).out;
    apply_guidance(out, options.cfg_scale, 3);
    return out.slice(0, 0, 4);
  };
  const auto draw = [&](at::Tensor& noise, int) { noise.copy_(randn(8).slice(0, 0, 4)); };
  test::sample(make_diffusion_tables(test::steps_of_table(timesteps)), {SamplerKind::Ddpm, 0}, x, denoise,
               draw);
  for (int i = 0; i < 4; ++i) EXPECT_TRUE(at::equal(got[i].sample, x[i])) << i;
}

TEST(Generate, TorchNoiseOverTwoBatchesIsAUsageError) {
  GenerateOptions options = few_steps();
  options.noise = NoiseKind::Torch;
  options.batch = 3;
  expect_usage_error(options, "4 images need --batch 4, got 3");
}

TEST(Generate, PreviewsComeEveryNStepsOfEveryBatchButNotAtTheEnd) {
  GenerateOptions options = few_steps();
  options.num_steps = 6;
  options.batch = 3;
  options.preview_every = 2;
  std::vector<std::array<int, 3>> seen;  // first image, step, images
  GenerateCallbacks callbacks;
  callbacks.on_sample = [](GeneratedSample&&) {};
  callbacks.on_preview = [&](const Preview& preview) {
    EXPECT_TRUE(at::isfinite(preview.x0).all().item<bool>());
    seen.push_back({preview.first, preview.step, static_cast<int>(preview.x0.size(0))});
  };
  generate(random_checkpoint(tiny_config()), options, callbacks);
  EXPECT_EQ(seen, (std::vector<std::array<int, 3>>{{0, 2, 3}, {0, 4, 3}, {3, 2, 1}, {3, 4, 1}}));
}

TEST(Generate, PreviewsChangeNoImage) {
  GenerateOptions options = few_steps();
  options.preview_every = 1;
  EXPECT_TRUE(
      at::equal(one_sample(tiny_config(), options).sample, one_sample(tiny_config(), few_steps()).sample));
}

TEST(Generate, PreviewsThatNeverComeAreAUsageError) {
  GenerateOptions options = few_steps();
  options.preview_every = 3;
  expect_usage_error(options, "--preview-every 3: with 3 steps expected 1 to 2");
}

GenerateOptions with_token_map() {
  GenerateOptions options = few_steps();
  options.token_map = true;
  return options;
}

// The same from the engine's traces: a guided DDIM run of image 0 by hand, (N).
at::Tensor share_of_traces(const DiTConfig& config, const GenerateOptions& options) {
  const Checkpoint checkpoint = random_checkpoint(config);
  const std::vector<double> timesteps = choose_timesteps(SamplerKind::Ddim, options.num_steps).timesteps;
  const test::EngineOf engine(options.engine, checkpoint, {}, Mode::Dynamic, timesteps);
  const std::vector<int64_t> labels = {options.classes[0], config.null_class()};
  at::Tensor x = at::empty({1, config.in_channels, config.input_size, config.input_size});
  fill_normal({x.data_ptr<float>(), static_cast<size_t>(x.numel())}, options.seed, 0, 0);
  std::vector<at::Tensor> masks;
  const auto denoise = [&](const at::Tensor& state, int step) {
    const test::Forward forward = engine.forward(at::cat({state, state}), step, labels);
    at::Tensor out = forward.out;
    masks.push_back(forward.trace.masks);
    apply_guidance(out, options.cfg_scale, 3);
    return out.slice(0, 0, 1);
  };
  test::sample(make_diffusion_tables(test::steps_of_table(timesteps)), {SamplerKind::Ddim, 0}, x, denoise,
               nullptr);
  return at::stack(masks).mean(at::IntArrayRef{0, 1, 2});
}

TEST(Generate, TokenShareIsTheMeanOfTheEnginesMasks) {
  GenerateOptions options = with_token_map();
  options.sampler.kind = SamplerKind::Ddim;
  options.num_steps = 5;
  for (const DiTConfig& config : {tiny_config(), odd_config()}) {
    const at::Tensor got = one_sample(config, options).token_share, wanted = share_of_traces(config, options);
    EXPECT_TRUE(at::allclose(got, wanted, 0, 1e-6)) << got << wanted;
    EXPECT_GT((got.max() - got.min()).item<float>(), 0.1);  // some tokens are routed past
  }
}

TEST(Generate, TokenShareIsAMeanOverSteps) {
  for (const GeneratedSample& sample : samples_of(tiny_config(), with_token_map())) {
    const at::Tensor entries = sample.token_share * (3 * 2 * 2);  // steps, blocks, halves
    EXPECT_TRUE(at::allclose(entries, entries.round(), 0, 1e-4)) << entries;
    EXPECT_LE(sample.token_share.max().item<float>(), 1.0f);
  }
}

TEST(Generate, TokenShareDoesNotDependOnTheBatch) {
  GenerateOptions options = with_token_map();
  const std::vector<GeneratedSample> wanted = samples_of(tiny_config(), options);
  options.batch = 3;
  const std::vector<GeneratedSample> got = samples_of(tiny_config(), options);
  for (int i = 0; i < 4; ++i) EXPECT_TRUE(at::equal(got[i].token_share, wanted[i].token_share)) << i;
}

TEST(Generate, TokenMapChangesNoImage) {
  EXPECT_TRUE(at::equal(one_sample(tiny_config(), with_token_map()).sample,
                        one_sample(tiny_config(), few_steps()).sample));
}

TEST(Generate, EveryStepShowsTheSamplesOfItsBatchAndWhatTheirTokensDid) {
  GenerateOptions options = with_token_map();
  options.batch = 3;
  std::map<int, std::vector<double>> entries;  // by image, after each step
  std::vector<std::pair<int, size_t>> seen;    // steps done, samples
  GenerateCallbacks callbacks;
  callbacks.on_sample = [&](GeneratedSample&& sample) {
    EXPECT_NEAR(sample.token_share.sum().item<double>(), entries[sample.index].back() / (3 * 2 * 2), 1e-4);
  };
  callbacks.on_step = [&](std::span<const Sample> samples) {
    seen.emplace_back(samples[0].steps_done(), samples.size());
    for (const Sample& sample : samples) entries[sample.index].push_back(sample.entries.sum().item<double>());
  };
  generate(random_checkpoint(tiny_config()), options, callbacks);
  EXPECT_EQ(seen, (std::vector<std::pair<int, size_t>>{{1, 3}, {2, 3}, {3, 3}, {1, 1}, {2, 1}, {3, 1}}));
  for (const auto& [index, counts] : entries) {
    EXPECT_EQ(counts.size(), 3u) << index;
    EXPECT_TRUE(std::is_sorted(counts.begin(), counts.end())) << index;
  }
}

TEST(Generate, NoTokenShareUnlessAskedForAndRouted) {
  EXPECT_FALSE(one_sample(tiny_config(), few_steps()).token_share.defined());
  EXPECT_FALSE(one_sample(test::static_config(), with_token_map()).token_share.defined());
  GenerateOptions complete = with_token_map();
  complete.mode = Mode::Static;
  EXPECT_FALSE(one_sample(tiny_config(), complete).token_share.defined());
}

TEST(Generate, ReportsEveryStepOfEveryBatch) {
  GenerateOptions options = few_steps();
  options.batch = 3;
  std::vector<long> done;
  GenerateCallbacks callbacks;
  callbacks.on_sample = [](GeneratedSample&&) {};
  callbacks.on_progress = [&](const Progress& progress) {
    EXPECT_EQ(progress.total, 6);
    done.push_back(progress.done);
  };
  generate(random_checkpoint(tiny_config()), options, callbacks);
  EXPECT_EQ(done, (std::vector<long>{1, 2, 3, 4, 5, 6}));
}

TEST(Generate, CountsTheStepsOfMoreImagesThanAnIntHolds) {
  GenerateOptions options = few_steps();
  options.num_images = std::numeric_limits<int>::max();
  options.num_steps = 2;
  for (const int batch : {1, 2}) {
    options.batch = batch;
    struct Stop {};
    long total = 0;
    GenerateCallbacks callbacks;
    callbacks.on_progress = [&](const Progress& progress) {
      total = progress.total;
      throw Stop();
    };
    EXPECT_THROW(generate(random_checkpoint(tiny_config()), options, callbacks), Stop);
    EXPECT_EQ(total, batch == 1 ? 4294967294L : 2147483648L);
  }
}

TEST(Generate, ABatchThatCannotFitIsRefusedBeforeItIsAllocated) {
  for (const EngineKind engine : {EngineKind::Cpu, EngineKind::Reference}) {
    GenerateOptions options = few_steps();
    options.engine = engine;
    options.num_images = options.batch = std::numeric_limits<int>::max();
    const std::string message = test::error_of([&] { samples_of(tiny_config(), options); });
    EXPECT_TRUE(message.starts_with("a batch of 2147483647 images: needs at least ")) << message;
    EXPECT_TRUE(message.ends_with("; take a smaller --batch")) << message;
  }
}

TEST(Generate, MemoryGrowsWithTheBatchAndTheTokenMap) {
  const Checkpoint checkpoint = random_checkpoint(tiny_config());
  const auto bytes = [&](const GenerateOptions& options, int count) {
    return least_generate_bytes(checkpoint, options, count);
  };
  GenerateOptions plain = few_steps(), map = few_steps(), unguided = few_steps();
  map.token_map = true;
  unguided.cfg_scale = 1;
  const double rows = 2 * 1000;
  EXPECT_GE(bytes(plain, 1000) - bytes(plain, 0), rows * (4 + 8) * 8 * 8 * sizeof(float));
  EXPECT_EQ(bytes(map, 1000) - bytes(plain, 1000), (rows * 2 * 2 + 1000) * 16 * sizeof(float));
  EXPECT_LT(bytes(unguided, 1000), bytes(plain, 1000));
  EXPECT_GT(least_generate_bytes(checkpoint, plain, 1000, /*ranges=*/2), bytes(plain, 1000));
}

// Sets the flag after `stop_at` steps of two batches of two images; returns (delivered, steps done).
std::pair<int, long> cancelled_after(long stop_at) {
  GenerateOptions options = few_steps();
  options.batch = 2;
  CancelFlag cancel = false;
  int delivered = 0;
  long done = 0;
  GenerateCallbacks callbacks;
  callbacks.on_sample = [&](GeneratedSample&&) { ++delivered; };
  callbacks.on_progress = [&](const Progress& progress) {
    done = progress.done;
    cancel = done >= stop_at;
  };
  callbacks.cancel = &cancel;
  EXPECT_THROW(generate(random_checkpoint(tiny_config()), options, callbacks), Cancelled);
  return {delivered, done};
}

TEST(Generate, CancelStopsBeforeTheNextStep) { EXPECT_EQ(cancelled_after(1), (std::pair{0, 1L})); }
TEST(Generate, CancelKeepsFinishedBatches) { EXPECT_EQ(cancelled_after(4), (std::pair{2, 4L})); }

TEST(Generate, CancelAtTheEndOfABatchDeliversItAndStops) {
  EXPECT_EQ(cancelled_after(3), (std::pair{2, 3L}));
}

TEST(Generate, ClassOutOfRangeIsAUsageError) {
  for (int label : {-1, 5}) {
    GenerateOptions options = few_steps();
    options.classes = {0, label};
    expect_usage_error(options, fmt::format("class {}: this model has classes 0 to 4", label));
  }
}

TEST(Generate, NumbersThatCannotBeMeantAreUsageErrors) {
  GenerateOptions options = few_steps();
  for (const float eta : {-0.1f, 1.1f, std::numeric_limits<float>::quiet_NaN()}) {
    options.sampler.eta = eta;
    expect_usage_error(options, "expected 0 to 1");
  }
  options = few_steps();
  for (const float scale :
       {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    options.cfg_scale = scale;
    expect_usage_error(options, "expected a number");
  }
  options = few_steps();
  options.guided_channels = 0;
  expect_usage_error(options, "0 guided channels: expected 1 or more");
}

TEST(Generate, NoClassIsAUsageError) {
  GenerateOptions options = few_steps();
  options.classes = {};
  expect_usage_error(options, "no class given");
}

TEST(Generate, CountsBelowOneAreUsageErrors) {
  GenerateOptions options = few_steps();
  options.num_images = 0;
  expect_usage_error(options, "0 images");
  options = few_steps();
  options.batch = 0;
  expect_usage_error(options, "batch 0");
  options = few_steps();
  options.threads = 0;
  expect_usage_error(options, "0 threads");
  options = few_steps();
  options.num_steps = 0;
  expect_usage_error(options, "--steps 0");
}

}  // namespace
}  // namespace dydit
