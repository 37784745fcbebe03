// Training of adapters: what rests rests bit for bit, what learns learns, and a run goes on where it stopped.
#include <filesystem>

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "dydit/io/safetensors.h"
#include "dydit/model/adapters.h"
#include "dydit/model/edit.h"
#include "dydit/train/capacity.h"
#include "dydit/train/trainer.h"
#include "tests/support/files.h"
#include "tests/support/noise_images.h"
#include "tests/support/random_model.h"

namespace dydit {
namespace {

namespace fs = std::filesystem;
using test::NoiseImages;
using test::TemporaryFolder;

DiTConfig pixels() {
  DiTConfig config = test::static_config();
  config.in_channels = 3;
  config.hidden_size = 32;
  config.mlp_hidden = 128;
  return config;
}

Checkpoint start_with(const AdapterConfig& adapter, bool routers = true) {
  Checkpoint start = test::random_checkpoint(pixels());
  start.sha256 = "base";
  if (routers) start = add_routers(start, {.width_bias = 0, .token_bias = 0}, 1);
  if (adapter.kind == AdapterKind::None) return start;
  start = add_adapters(start, adapter, 1);
  start.adapter_base = start.sha256;
  return start;
}

TrainOptions options_for(const Checkpoint& start, int64_t steps) {
  TrainOptions options;
  options.dynamic = start.config.is_dynamic();
  options.router.anneal_start = 0;
  options.router.anneal_steps = 1;
  options.total_steps = steps;
  options.global_batch = 4;
  options.lr = 1e-2;
  options.ema_decay = 0.5;
  options.adapter = start.config.adapter;
  return options;
}

// Trains in `folder`, a checkpoint every step; returns what an error said.
std::string run(const fs::path& folder, const Checkpoint& start, const TrainOptions& options,
                bool resume = false) {
  fs::create_directories(folder);
  RunOptions run_options;
  run_options.run = folder;
  run_options.resume = resume;
  run_options.checkpoint_every = 1;
  run_options.keep_last = 100;
  Communicator alone;
  const NoiseImages images;
  try {
    run_options.identity = run_identity(start, images, options);
    train(start, images, options, run_options, alone, {});
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

std::map<std::string, at::Tensor> tensors_of(const fs::path& path) {
  std::map<std::string, at::Tensor> tensors;
  const SafetensorsFile file = read_safetensors(path);
  for (const auto& [name, view] : file.tensors) tensors[name] = to_tensor(view, file.file).clone();
  return tensors;
}

constexpr AdapterConfig kLora{AdapterKind::Lora, 4, 1};
constexpr AdapterConfig kTdLora{AdapterKind::TdLora, 4, 3};
constexpr AdapterConfig kOnB{AdapterKind::TdLora, 4, 3, 1, AdapterMix::B};

// Of a run of `steps` steps: whether each tensor of its model is the start's, bit for bit.
std::map<std::string, bool> rested(const Checkpoint& start, const TrainOptions& options) {
  const TemporaryFolder folder;
  EXPECT_EQ(run(folder / "run", start, options), "");
  std::map<std::string, bool> result;
  const auto path = folder / fmt::format("run/checkpoints/{:07}.safetensors", options.total_steps);
  for (const auto& [name, tensor] : tensors_of(path))
    result[name] = at::equal(tensor, start.weights.at(name));
  EXPECT_EQ(result.size(), start.weights.size());
  return result;
}

TEST(AdapterTraining, MovesAdaptersAndRoutersAndNothingElse) {
  for (const AdapterConfig& adapter : {kLora, kTdLora, kOnB}) {
    const Checkpoint start = start_with(adapter);
    for (const auto& [name, same] : rested(start, options_for(start, 4)))
      EXPECT_EQ(same, !is_adapter_parameter(name) && !is_router_parameter(name)) << name;
  }
}

TEST(AdapterTraining, OfAStaticModelMovesItsAdapters) {
  const Checkpoint start = start_with(kTdLora, /*routers=*/false);
  for (const auto& [name, same] : rested(start, options_for(start, 4)))
    EXPECT_EQ(same, !is_adapter_parameter(name)) << name;
}

// B is zero, so in the first step nothing behind it has a gradient.
TEST(AdapterTraining, MovesBFirstAndWhatIsMixedOneStepLater) {
  const Checkpoint start = start_with(kTdLora, /*routers=*/false);
  for (const auto& [name, same] : rested(start, options_for(start, 1)))
    EXPECT_EQ(same, !name.ends_with(".lora.B")) << name;
}

TEST(RouterTraining, MovesRoutersAlone) {
  const Checkpoint start = start_with({});
  TrainOptions options = options_for(start, 3);
  options.trained = TrainedPart::Routers;
  for (const auto& [name, same] : rested(start, options)) EXPECT_EQ(same, !is_router_parameter(name)) << name;
}

TEST(AdapterTraining, GoesOnBitForBitWhereItStopped) {
  const TemporaryFolder folder;
  const Checkpoint start = start_with(kTdLora);
  TrainOptions half = options_for(start, 3);
  half.router.gate_rule = GateRule::Capacity;
  TrainOptions all = half;
  all.total_steps = 6;
  EXPECT_EQ(run(folder / "whole", start, all), "");
  EXPECT_EQ(run(folder / "run", start, half), "");
  EXPECT_EQ(run(folder / "run", start, all, /*resume=*/true), "");
  for (const char* file : {"checkpoints/0000006.state", "checkpoints/0000006.safetensors"}) {
    const auto whole = tensors_of(folder / "whole" / file), resumed = tensors_of(folder / "run" / file);
    for (const auto& [name, tensor] : whole) EXPECT_TRUE(at::equal(tensor, resumed.at(name))) << name;
  }
  // The state holds what is trained alone.
  const auto state = tensors_of(folder / "run/checkpoints/0000006.state");
  int64_t trained = 3 * start.config.depth * kQuarters;  // shares of the capacity rule
  for (const auto& [name, tensor] : start.weights)
    if (is_adapter_parameter(name) || is_router_parameter(name)) trained += tensor.numel();
  EXPECT_EQ(state.at("values").numel(), trained);
}

TEST(AdapterTraining, DoesNotGoOnFromAnotherBaseOrWithOtherAdapters) {
  const TemporaryFolder folder;
  Checkpoint start = start_with(kTdLora);
  EXPECT_EQ(run(folder / "run", start, options_for(start, 2)), "");
  start.sha256 = "other";
  std::string error = run(folder / "run", start, options_for(start, 4), /*resume=*/true);
  EXPECT_NE(error.find("start = \"base\", this run has \"other\""), std::string::npos) << error;
  start = start_with(kOnB);
  error = run(folder / "run", start, options_for(start, 4), /*resume=*/true);
  EXPECT_NE(error.find("lora-mix = \"A\", this run has \"B\""), std::string::npos) << error;
}

TEST(AdapterTraining, IsRefusedWhereModelAndOptionsDiffer) {
  const TemporaryFolder folder;
  const Checkpoint start = start_with(kLora), bare = start_with({}),
                   still = start_with({}, /*routers=*/false);
  const auto refused = [&](const Checkpoint& of, const auto& change) {
    TrainOptions options = options_for(of, 1);
    change(options);
    return run(folder / "run", of, options);
  };
  const auto expect = [](const std::string& error, const char* part) {
    EXPECT_NE(error.find(part), std::string::npos) << error;
  };
  expect(refused(start, [](TrainOptions& o) { o.adapter = kTdLora; }),
         "the model's adapters are LoRA, rank 4, scale 1, and TD-LoRA (our form), rank 4, 3 experts on A, "
         "scale 1");
  expect(refused(start, [](TrainOptions& o) { o.adapter = {}; }), "and none are to be trained");
  expect(refused(start, [](TrainOptions& o) { o.trained = TrainedPart::Routers; }),
         "leave one of the two out");
  expect(refused(still, [](TrainOptions& o) { o.trained = TrainedPart::Routers; }), "has no routers");
  expect(refused(bare,
                 [](TrainOptions& o) {
                   o.trained = TrainedPart::Routers;
                   o.router.complete_steps = 1;
                 }),
         "--complete-steps 1");
}

TEST(TrainOptions, WithoutAdaptersHaveNoKeyOfTheirs) {
  const nlohmann::json json = options_to_json({});
  for (const char* key :
       {"adapter", "lora-rank", "lora-scale", "lora-experts", "lora-mix", "adapter-lr-scale", "train"})
    EXPECT_FALSE(json.contains(key)) << key;
}

TEST(LrScale, IsByName) {
  TrainOptions options;
  options.router_lr_scale = 3;
  options.adapter_lr_scale = 7;
  for (const char* name :
       {"blocks.0.attn_rate.router.weight", "blocks.1.token_selection.mlp_head.0.bias", kKeepShareName})
    EXPECT_EQ(lr_scale(name, options), 3) << name;
  for (const char* name : {"blocks.0.attn.qkv.lora.A", "blocks.0.mlp.fc2.lora.B", "blocks.0.lora_alpha.bias"})
    EXPECT_EQ(lr_scale(name, options), 7) << name;
  EXPECT_EQ(lr_scale("blocks.0.attn.qkv.weight", options), 1);
}

TEST(AdapterTraining, LearnsAtItsOwnRate) {
  const Checkpoint start = start_with(kLora, /*routers=*/false);
  const auto step_of_B = [&](double scale) {
    const TemporaryFolder folder;
    TrainOptions options = options_for(start, 1);
    options.adapter_lr_scale = scale;
    options.ema_decay = 0;
    EXPECT_EQ(run(folder / "run", start, options), "");
    return tensors_of(folder / "run/checkpoints/0000001.safetensors")
        .at("blocks.0.attn.proj.lora.B")
        .abs()
        .max();
  };
  // Adam's first step is the learning rate.
  EXPECT_NEAR(step_of_B(1).item<double>(), 1e-2, 1e-4);
  EXPECT_NEAR(step_of_B(0.1).item<double>(), 1e-3, 1e-5);
}

}  // namespace
}  // namespace dydit
