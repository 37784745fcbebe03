// What a file says of its model, and what is refused with one line that names the fault.
#include "dydit/model/checkpoint.h"

#include <fstream>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "dydit/io/safetensors.h"
#include "tests/support/checkpoint_files.h"
#include "tests/support/files.h"
#include "tests/support/golden.h"
#include "tests/support/random_model.h"

namespace dydit {
namespace {

using test::expect_error;
using test::golden_path;
using test::load;
using test::Metadata;
using test::odd_config;
using test::one_head_config;
using test::random_checkpoint;
using test::static_config;
using test::TemporaryFolder;
using test::tiny_config;
using test::torch_archive;

Checkpoint round_trip(const Checkpoint& checkpoint, at::ScalarType dtype = at::kFloat) {
  TemporaryFolder folder;
  save_checkpoint(folder / "m.safetensors", checkpoint, dtype);
  return load_checkpoint(folder / "m.safetensors");
}

Metadata heads_metadata(int heads) { return {{"config", nlohmann::json{{"num_heads", heads}}.dump()}}; }

TEST(CheckpointConfig, OfADynamicModelComesFromItsTensors) {
  EXPECT_EQ(load(random_checkpoint(tiny_config()).weights).config, tiny_config());
}

TEST(CheckpointConfig, OfOddSizesComesFromItsTensors) {
  EXPECT_EQ(load(random_checkpoint(odd_config()).weights).config, odd_config());
}

TEST(CheckpointConfig, OfAOneHeadDynamicModelComesFromItsTensors) {
  EXPECT_EQ(load(random_checkpoint(one_head_config()).weights).config, one_head_config());
}

TEST(CheckpointConfig, OfAStaticModelComesFromItsTensorsAndHeads) {
  EXPECT_EQ(load(random_checkpoint(static_config()).weights, heads_metadata(4)).config, static_config());
}

TEST(CheckpointConfig, WidthRoutersAloneLoad) {
  DiTConfig config = tiny_config();
  config.token_routers = false;
  EXPECT_EQ(load(random_checkpoint(config).weights).config, config);
}

TEST(CheckpointConfig, TokenRoutersAloneLoad) {
  DiTConfig config = tiny_config();
  config.width_routers = false;
  EXPECT_EQ(load(random_checkpoint(config).weights, heads_metadata(4)).config, config);
}

TEST(CheckpointHeads, ComeFromTheFlag) {
  EXPECT_EQ(load(random_checkpoint(static_config()).weights, {}, {.num_heads = 8}).config.num_heads, 8);
}

TEST(CheckpointHeads, ComeFromTheArgsOfATorchFile) {
  TemporaryFolder folder;
  const std::string args = test::pickle::dict({test::pickle::text("num_heads"), test::pickle::number(8)});
  std::ofstream(folder / "m.pt", std::ios::binary)
      << torch_archive(random_checkpoint(static_config()).weights, args);
  const Checkpoint checkpoint = load_checkpoint(folder / "m.pt");
  EXPECT_EQ(checkpoint.config.num_heads, 8);
  EXPECT_EQ(checkpoint.format, "torch zip");
}

TEST(CheckpointHeads, OfAPublishedWidthAreKnown) {
  DiTConfig config = static_config();
  config.hidden_size = 384;
  config.mlp_hidden = 96;
  config.depth = 1;
  EXPECT_EQ(load(random_checkpoint(config).weights).config.num_heads, 6);
}

TEST(CheckpointHeads, OfTheRoutersConflictWithAnotherFlag) {
  expect_error([] { load(random_checkpoint(tiny_config()).weights, {}, {.num_heads = 8}); },
               "4 heads by its tensors or metadata, but 8 were asked for");
}

TEST(CheckpointHeads, OfTheRoutersConflictWithOtherMetadata) {
  expect_error([] { load(random_checkpoint(tiny_config()).weights, heads_metadata(2)); }, "but 2 were");
}

TEST(CheckpointHeads, OfTheMetadataConflictWithAnotherFlag) {
  expect_error([] { load(random_checkpoint(static_config()).weights, heads_metadata(4), {.num_heads = 2}); },
               "but 2 were");
}

TEST(CheckpointHeads, UnknownAskForTheFlag) {
  expect_error([] { load(random_checkpoint(static_config()).weights); }, "pass --num-heads");
}

TEST(CheckpointHeads, ThatDoNotDivideTheHiddenSizeAreRefused) {
  expect_error([] { load(random_checkpoint(static_config()).weights, {}, {.num_heads = 7}); },
               "7 heads do not divide the hidden size 64");
}

TEST(CheckpointHeads, ThatDoNotDivideTheMlpAreRefused) {
  DiTConfig config = static_config();
  config.mlp_hidden = 250;
  expect_error([&] { load(random_checkpoint(config).weights, heads_metadata(4)); },
               "250 MLP channels cannot be cut into 4 equal groups");
}

TEST(CheckpointTensors, MissingOneIsNamedWithTheNearest) {
  Weights weights = random_checkpoint(tiny_config()).weights;
  weights.erase("blocks.1.mlp.fc2.bias");
  expect_error([&] { load(weights); },
               "tensor blocks.1.mlp.fc2.bias is missing (nearest present: blocks.0.mlp.fc2.bias)");
}

TEST(CheckpointTensors, RenamedOneIsTheNearestOfTheMissing) {
  Weights weights = random_checkpoint(tiny_config()).weights;
  auto node = weights.extract("pos_embed");
  node.key() = "pos_embd";
  weights.insert(std::move(node));
  expect_error([&] { load(weights); }, "tensor pos_embed is missing (nearest present: pos_embd)");
}

TEST(CheckpointTensors, WrongShapeNamesTheTensor) {
  Weights weights = random_checkpoint(tiny_config()).weights;
  weights["blocks.1.attn.proj.weight"] = at::zeros({64, 60});
  expect_error([&] { load(weights); }, "blocks.1.attn.proj.weight has shape (64, 60), expected (64, 64)");
}

TEST(CheckpointTensors, WrongRankNamesTheTensor) {
  Weights weights = random_checkpoint(tiny_config()).weights;
  weights["blocks.0.mlp.fc1.bias"] = at::zeros({1, 256});
  expect_error([&] { load(weights); }, "blocks.0.mlp.fc1.bias has 2 dimensions (1, 256), expected 1");
}

TEST(CheckpointTensors, NaNIsNamed) {
  Weights weights = random_checkpoint(tiny_config()).weights;
  weights["blocks.0.attn.qkv.weight"][3][5] = std::numeric_limits<float>::quiet_NaN();
  expect_error([&] { load(weights); }, "blocks.0.attn.qkv.weight holds NaN or infinity");
}

TEST(CheckpointTensors, InfinityIsNamed) {
  Weights weights = random_checkpoint(tiny_config()).weights;
  weights["final_layer.linear.bias"][0] = std::numeric_limits<float>::infinity();
  expect_error([&] { load(weights); }, "final_layer.linear.bias holds NaN or infinity");
}

TEST(CheckpointTensors, UnknownOneIsRefused) {
  Weights weights = random_checkpoint(tiny_config()).weights;
  weights["blocks.2.attn.proj.weight"] = at::zeros({64, 64});
  expect_error([&] { load(weights); }, "tensor blocks.2.attn.proj.weight belongs to no part of DyDiT");
}

TEST(CheckpointTensors, IntegersAreRefused) {
  Weights weights = random_checkpoint(tiny_config()).weights;
  weights["x_embedder.proj.bias"] = at::zeros({64}, at::kInt);
  expect_error([&] { load(weights); }, "x_embedder.proj.bias is I32, expected a floating-point tensor");
}

TEST(CheckpointTensors, NonSquareTokenCountIsRefused) {
  Weights weights = random_checkpoint(tiny_config()).weights;
  weights["pos_embed"] = at::zeros({1, 15, 64});
  expect_error([&] { load(weights); }, "pos_embed holds 15 tokens, expected a square");
}

TEST(CheckpointTensors, OtherOutputChannelsAreRefused) {
  Weights weights = random_checkpoint(tiny_config()).weights;
  weights["final_layer.linear.weight"] = at::zeros({48, 64});
  expect_error([&] { load(weights); }, "final_layer.linear.weight has 48 rows");
}

TEST(CheckpointMetadata, NewerFormatIsRefused) {
  expect_error(
      [] {
        load(random_checkpoint(tiny_config()).weights, {{"dydit_format", "3"}});
      },
      "dydit_format 3, but this program reads 1 to 2");
}

TEST(CheckpointMetadata, OtherGateRuleIsRefused) {
  expect_error(
      [] {
        load(random_checkpoint(tiny_config()).weights, {{"gate_rule", "capacity"}});
      },
      "gate rule 'capacity'");
}

TEST(CheckpointMetadata, ClassNamesOfAnotherCountAreRefused) {
  expect_error(
      [] {
        load(random_checkpoint(tiny_config()).weights,
             {{"dydit_format", "1"}, {"class_names", R"(["a", "b"])"}});
      },
      "'class_names' must be a JSON list of 5 strings");
}

TEST(CheckpointMetadata, ClassNamesThatAreNumbersAreRefused) {
  expect_error(
      [] {
        load(random_checkpoint(tiny_config()).weights,
             {{"dydit_format", "1"}, {"class_names", "[1, 2, 3, 4, 5]"}});
      },
      "'class_names' must be a JSON list of 5 strings");
}

TEST(CheckpointMetadata, LambdaThatIsNoNumberIsRefused) {
  expect_error(
      [] {
        load(random_checkpoint(tiny_config()).weights, {{"dydit_format", "1"}, {"lambda", "\"half\""}});
      },
      "'lambda' is not a number");
}

TEST(CheckpointMetadata, UnknownSemanticsAreRefused) {
  expect_error(
      [] {
        load(random_checkpoint(tiny_config()).weights, {{"config", R"({"semantics": "jax"})"}});
      },
      "semantics \"jax\", but this program knows 'original' and 'diffusers'");
}

TEST(CheckpointMetadata, ConfigThatIsNoJsonIsRefused) {
  expect_error(
      [] {
        load(random_checkpoint(tiny_config()).weights, {{"dydit_format", "1"}, {"config", "{depth"}});
      },
      "metadata 'config' is not JSON");
}

TEST(CheckpointRoundTrip, KeepsFloat32ValuesExactly) {
  const Checkpoint saved = random_checkpoint(tiny_config()), read = round_trip(saved);
  ASSERT_EQ(read.weights.size(), saved.weights.size());
  for (const auto& [name, tensor] : saved.weights) {
    EXPECT_TRUE(at::equal(read.weights.at(name), tensor)) << name;
  }
}

TEST(CheckpointRoundTrip, InBfloat16RoundsAllButThePositions) {
  const Checkpoint saved = random_checkpoint(tiny_config()), read = round_trip(saved, at::kBFloat16);
  for (const auto& [name, tensor] : saved.weights) {
    const at::Tensor wanted = name == "pos_embed" ? tensor : tensor.to(at::kBFloat16);
    EXPECT_EQ(read.weights.at(name).scalar_type(), wanted.scalar_type()) << name;
    EXPECT_TRUE(at::equal(read.weights.at(name), wanted)) << name;
  }
}

TEST(CheckpointRoundTrip, KeepsConfigLambdaAndClassNames) {
  Checkpoint saved = random_checkpoint(static_config());
  saved.lambda = 0.7;
  saved.class_names = {"plain", "two words", "\xc3\xa9", "\"quoted\"", ""};
  const Checkpoint read = round_trip(saved);
  EXPECT_EQ(read.config, saved.config);
  EXPECT_EQ(read.lambda, saved.lambda);
  EXPECT_EQ(read.class_names, saved.class_names);
}

TEST(CheckpointRoundTrip, KeepsMetadataOfOthers) {
  Checkpoint saved =
      load(random_checkpoint(tiny_config()).weights, {{"author", "someone"}, {"lambda", "0.5"}});
  EXPECT_EQ(saved.notes, (Metadata{{"author", "someone"}}));
  EXPECT_EQ(round_trip(saved).notes, saved.notes);
}

Checkpoint random_few_step() {
  DiTConfig config = tiny_config();
  config.width_routers = config.token_routers = false;
  Checkpoint checkpoint = random_checkpoint(config);
  checkpoint.few_step = FewStep{"lcm", {999}, 1.5};
  return checkpoint;
}

TEST(CheckpointRoundTrip, RecordsTheParentAndTheGateRule) {
  TemporaryFolder folder;
  Checkpoint saved = random_checkpoint(tiny_config());
  saved.sha256 = "1234";
  save_checkpoint(folder / "m.safetensors", saved, at::kFloat);
  const Metadata metadata = read_safetensors(folder / "m.safetensors").metadata;
  EXPECT_EQ(metadata.at("parent_sha256"), "1234");
  EXPECT_EQ(metadata.at("gate_rule"), "threshold");
  EXPECT_EQ(metadata.at("dydit_format"), "1");
}

TEST(CheckpointRoundTrip, KeepsHowFewStepsAreSampled) {
  TemporaryFolder folder;
  Checkpoint saved = random_checkpoint(tiny_config());
  saved.few_step = FewStep{"lcm", {999, 499, 0}, 1.5};
  EXPECT_EQ(round_trip(saved).few_step, saved.few_step);
  save_checkpoint(folder / "m.safetensors", saved, at::kFloat);
  EXPECT_EQ(read_safetensors(folder / "m.safetensors").metadata.at("dydit_format"), "2");
  save_torch_checkpoint(folder / "m.pt", saved, at::kFloat);
  EXPECT_EQ(load_checkpoint(folder / "m.pt").few_step, saved.few_step);
  expect_error([&] { save_diffusers_folder(folder / "out/", random_few_step(), at::kFloat); },
               "is distilled to few steps");
}

TEST(CheckpointMetadata, FewStepsThatCannotBeAreRefused) {
  const auto refused = [](const std::string& text, const std::string& part) {
    expect_error(
        [&] {
          load(random_checkpoint(tiny_config()).weights, {{"dydit_format", "2"}, {"few_step", text}});
        },
        part);
  };
  refused("4", "an object {...} is wanted");
  refused(R"({"kind": "swd", "scales": [8, 16]})",
          "distilled to few steps as \"swd\", but this program samples lcm");
  refused(R"({"kind": "lcm", "timesteps": [999]})", "guidance");
  refused(R"({"kind": "lcm", "timesteps": [999], "guidance": 0.5})",
          "guidance is 0.5; a number from 1 on is wanted");
  refused(R"({"kind": "lcm", "timesteps": [], "guidance": 1})", "timesteps is []; a list of some is wanted");
  for (const char* timesteps : {"[1000]", "[-1]", "[499, 999]", "[999, 999]", "[0.5]"})
    refused(fmt::format(R"({{"kind": "lcm", "timesteps": {}, "guidance": 1}})", timesteps),
            "whole numbers that descend");
  refused(R"({"kind": "lcm", "timesteps": [999], "guidance": 1, "scale": 2})", "scale");
}

TEST(CheckpointTorchFile, KeepsWeightsConfigAndMetadata) {
  TemporaryFolder folder;
  Checkpoint saved = random_checkpoint(tiny_config());
  saved.lambda = 0.7;
  saved.class_names = {"plain", "two words", "\xc3\xa9", "\"quoted\"", ""};
  saved.keep_counts =
      KeepCounts{{{1, 2, 3, 4}, {4, 3, 2, 1}}, {{1, 1, 1, 1}, {2, 2, 2, 2}}, {{5, 6, 7, 8}, {9, 9, 9, 16}}};
  save_torch_checkpoint(folder / "m.pt", saved, at::kFloat);
  EXPECT_EQ(folder.file_count(), 1u);
  const Checkpoint read = load_checkpoint(folder / "m.pt");
  EXPECT_EQ(read.format, "torch zip");
  EXPECT_EQ(read.weights_key, "ema");
  EXPECT_EQ(read.config, saved.config);
  EXPECT_EQ(read.lambda, saved.lambda);
  EXPECT_EQ(read.class_names, saved.class_names);
  EXPECT_EQ(read.keep_counts, saved.keep_counts);
  ASSERT_EQ(read.weights.size(), saved.weights.size());
  for (const auto& [name, tensor] : saved.weights)
    EXPECT_TRUE(at::equal(read.weights.at(name), tensor)) << name;
}

TEST(CheckpointTorchFile, InBfloat16RoundsAllButThePositions) {
  TemporaryFolder folder;
  const Checkpoint saved = random_checkpoint(odd_config());
  save_torch_checkpoint(folder / "m.pt", saved, at::kBFloat16);
  const Checkpoint read = load_checkpoint(folder / "m.pt");
  for (const auto& [name, tensor] : saved.weights) {
    const at::Tensor wanted = name == "pos_embed" ? tensor : tensor.to(at::kBFloat16);
    EXPECT_TRUE(at::equal(read.weights.at(name), wanted)) << name;
    EXPECT_EQ(read.weights.at(name).scalar_type(), wanted.scalar_type()) << name;
  }
}

// Writes the weights in two files with an index and hands over each part to `spoil` before.
void save_shards(
    const TemporaryFolder& folder, const Checkpoint& checkpoint,
    const std::function<void(nlohmann::json& map, TensorViews& one, TensorViews& two)>& spoil = nullptr) {
  TensorViews one, two;
  nlohmann::json map;
  for (const auto& [name, tensor] : checkpoint.weights) {
    const bool first = one.size() <= two.size();
    (first ? one : two)[name] = to_view(tensor);
    map[name] = first ? "one.safetensors" : "two.safetensors";
  }
  if (spoil) spoil(map, one, two);
  const nlohmann::json config = {{"num_heads", checkpoint.config.num_heads}};
  write_safetensors(folder / "one.safetensors", one, {{"config", config.dump()}});
  write_safetensors(folder / "two.safetensors", two, {});
  std::ofstream(folder / "model.safetensors.index.json")
      << nlohmann::json{{"metadata", {{"total_size", 1}}}, {"weight_map", map}};
}

TEST(CheckpointShards, AreReadByTheIndexOrItsFolder) {
  TemporaryFolder folder;
  const Checkpoint saved = random_checkpoint(static_config());
  save_shards(folder, saved);
  const Checkpoint by_index = load_checkpoint(folder / "model.safetensors.index.json");
  const Checkpoint by_folder = load_checkpoint(folder / "");
  EXPECT_EQ(by_index.format, "safetensors in 2 files");
  EXPECT_EQ(by_index.config, saved.config);
  EXPECT_EQ(by_index.sha256, by_folder.sha256);
  for (const auto& [name, tensor] : saved.weights) {
    EXPECT_TRUE(at::equal(by_index.weights.at(name), tensor)) << name;
    EXPECT_TRUE(at::equal(by_folder.weights.at(name), tensor)) << name;
  }
}

void expect_shards_refused(const std::function<void(nlohmann::json&, TensorViews&, TensorViews&)>& spoil,
                           const std::string& part) {
  TemporaryFolder folder;
  const Checkpoint saved = random_checkpoint(static_config());
  save_shards(folder, saved, spoil);
  expect_error([&] { load_checkpoint(folder / "model.safetensors.index.json"); }, part);
}

TEST(CheckpointShards, MissingFileIsNamed) {
  expect_shards_refused([](auto& map, auto&, auto&) { map["pos_embed"] = "three.safetensors"; },
                        "\"three.safetensors\" is missing beside it");
}

TEST(CheckpointShards, TensorInTwoFilesIsNamed) {
  expect_shards_refused([](auto&, auto& one, auto& two) { two.insert(*one.begin()); }, "lies in two files");
}

TEST(CheckpointShards, TensorMissingFromItsFileIsNamed) {
  expect_shards_refused([](auto&, auto& one, auto&) { one.erase(one.begin()); },
                        "is not in \"one.safetensors\", where the index has it");
}

TEST(CheckpointShards, TensorOutsideTheIndexIsNamed) {
  expect_shards_refused([](auto& map, auto&, auto&) { map.erase("pos_embed"); }, "\"pos_embed\" of ");
}

TEST(CheckpointShards, FolderWithoutAnIndexIsRefused) {
  TemporaryFolder folder;
  expect_error([&] { load_checkpoint(folder / ""); }, "is an empty folder, not a folder of weights");
}

TEST(CheckpointTorchFile, EmaIsReadNotModel) {
  const Checkpoint model = load_checkpoint(golden_path("model.safetensors"));
  const Checkpoint ema = load_checkpoint(golden_path("model.pt"));  // ema = model / 2, every tensor
  EXPECT_EQ(ema.weights_key, "ema");
  EXPECT_EQ(ema.config, model.config);
  for (const auto& [name, tensor] : model.weights) {
    EXPECT_TRUE(at::equal(ema.weights.at(name), 0.5 * tensor)) << name;
  }
}

TEST(Checkpoint, CountsTrainableParametersOnly) {
  const Checkpoint checkpoint = random_checkpoint(one_head_config());
  int64_t all = 0;
  for (const auto& [name, tensor] : checkpoint.weights) all += tensor.numel();
  EXPECT_EQ(checkpoint.num_parameters(), all - 16 * 20);
}

TEST(Checkpoint, ModelDoesNotShareTheCheckpointsMemory) {
  const Checkpoint checkpoint = random_checkpoint(tiny_config());
  const at::Tensor before = checkpoint.weights.at("pos_embed").clone();
  make_model(checkpoint)->pos_embed.detach().zero_();
  EXPECT_TRUE(at::equal(checkpoint.weights.at("pos_embed"), before));
}

TEST(Checkpoint, MisalignedViewsAreCopied) {
  std::vector<std::byte> bytes(4 * 6 + 1);
  const std::vector<float> values = {1, 2, 3, 4, 5, 6};
  std::memcpy(bytes.data() + 1, values.data(), 4 * 6);
  // The transpose of a (3, 2): strides are kept.
  const at::Tensor tensor = to_tensor({Dtype::F32, {2, 3}, {1, 2}, bytes.data() + 1}, nullptr);
  EXPECT_TRUE(at::equal(tensor, at::tensor({1.f, 3.f, 5.f, 2.f, 4.f, 6.f}).view({2, 3})));
}

TEST(CheckpointTensors, PatchesOfNoModelAreRefused) {
  Weights weights = random_checkpoint(tiny_config()).weights;
  weights["x_embedder.proj.weight"] = at::zeros({tiny_config().hidden_size, 1, 2048, 2048});
  expect_error([&] { load(weights); }, "2048, 2048); no model has such patches");
}

TEST(CheckpointTensors, SizesOfZeroAreRefused) {
  Weights weights = random_checkpoint(tiny_config()).weights;
  weights["y_embedder.embedding_table.weight"] = at::zeros({1, tiny_config().hidden_size});
  expect_error([&] { load(weights); }, "a tensor has a dimension of size 0");
}

TEST(CheckpointTensors, PositionsOfAnOddHiddenSizeCannotBeComputed) {
  Weights weights = random_checkpoint(tiny_config()).weights;
  weights.erase("pos_embed");
  weights["x_embedder.proj.weight"] = at::zeros({6, tiny_config().in_channels, 2, 2});
  expect_error(
      [&] {
        load(weights, {{"config", R"({"input_size": 8})"}});
      },
      "pos_embed cannot be computed for a hidden size of 6, no multiple of 4");
}

TEST(CheckpointMetadata, KeepCountsOfThreeQuartersAreRefused) {
  Checkpoint checkpoint = random_checkpoint(tiny_config());
  std::vector<std::vector<int>> blocks(static_cast<size_t>(tiny_config().depth), {1, 1, 1});
  const nlohmann::json counts = {{"heads", blocks}, {"groups", blocks}, {"tokens", blocks}};
  expect_error(
      [&] {
        load(checkpoint.weights,
             {{"dydit_format", "1"}, {"gate_rule", "capacity"}, {"keep_counts", counts.dump()}});
      },
      "'keep_counts' of 'heads' must be lists of 4");
}

TEST(NamedConfig, OfNoPublishedSizeIsRefused) {
  expect_error([] { named_config("DiT-Q/2"); },
               "DiT-Q/2: no such size; expected DiT-S, DiT-B, DiT-L or DiT-XL");
}

}  // namespace
}  // namespace dydit
