// Checkpoints that were made to do harm: small files that claim a model of any size, or text that takes the
// stack of whoever walks it. Each is refused before memory is taken.
#include <bit>
#include <string>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "dydit/io/safetensors.h"
#include "dydit/model/checkpoint.h"
#include "tests/support/checkpoint_files.h"
#include "tests/support/files.h"
#include "tests/support/random_model.h"

namespace dydit {
namespace {

using test::expect_error;
using test::load;
using test::random_checkpoint;
using test::tiny_config;
namespace pickle = test::pickle;

std::string nested(size_t levels) { return std::string(levels, '[') + std::string(levels, ']'); }

constexpr size_t kDeep = 300'000;

TEST(HostileCheckpoint, DeepConfigIsNotWalked) {
  const std::string config = "{\"semantics\": " + nested(kDeep) + "}";
  expect_error(
      [&] {
        load(random_checkpoint(tiny_config()).weights, {{"dydit_format", "1"}, {"config", config}});
      },
      "metadata 'config' is not JSON of at most 8 levels: {\"semantics\": [[[");
}

TEST(HostileCheckpoint, DeepKeepCountsAreNotWalked) {
  for (const char* kind : {"heads", "groups", "tokens"}) {
    const std::string counts = std::string("{\"") + kind + "\": [[" + nested(kDeep) + ", 1, 1, 1]]}";
    expect_error(
        [&] {
          load(random_checkpoint(tiny_config()).weights,
               {{"dydit_format", "1"}, {"gate_rule", "capacity"}, {"keep_counts", counts}});
        },
        "metadata 'keep_counts' is not JSON");
  }
}

TEST(HostileCheckpoint, DeepLambdaAndClassNamesAreNotWalked) {
  for (const char* key : {"lambda", "class_names"}) {
    expect_error(
        [&] {
          load(random_checkpoint(tiny_config()).weights, {{"dydit_format", "1"}, {key, nested(kDeep)}});
        },
        "is not JSON");
  }
}

// `blocks` blocks of hidden size 256 with nothing in the file but one storage of a qkv weight.
std::string views_of_one_storage(int blocks) {
  constexpr int64_t C = 256;
  std::vector<std::string> items;
  const auto add = [&](const std::string& name, const std::vector<int64_t>& sizes) {
    std::vector<int64_t> strides(sizes.size(), 1);
    for (size_t i = sizes.size() - 1; i-- > 0;) strides[i] = strides[i + 1] * sizes[i + 1];
    items.push_back(pickle::text(name));
    items.push_back(pickle::tensor({.sizes = sizes, .strides = strides, .numel = 6 * C * C}));
  };
  for (const auto& parameter : DiT(DiTConfig{.input_size = 8,
                               .patch_size = 2,
                               .hidden_size = C,
                               .depth = blocks,
                               .num_heads = 4,
                               .mlp_hidden = C,
                               .num_classes = 5})
                                   ->named_parameters())
    add(parameter.key(), parameter.value().sizes().vec());
  auto members = pickle::members_of(pickle::dict({pickle::text("ema"), pickle::ordered_dict(items)}));
  members[2].bytes.assign(6 * C * C * sizeof(float), '\0');
  return test::build_zip(members);
}

TEST(HostileCheckpoint, ViewsOfOneStorageAreNoModel) {
  test::TemporaryFolder folder;
  const std::string file = views_of_one_storage(40);
  EXPECT_LT(file.size(), 2'000'000u);
  std::ofstream(folder / "m.pt", std::ios::binary) << file;
  expect_error([&] { load_checkpoint(folder / "m.pt", {.num_heads = 4}); },
               "bytes, but lie in 1572864 bytes of the file");
}

// As a model whose blocks are one and the same is saved; what it takes in memory is not much.
TEST(HostileCheckpoint, TiedWeightsAreRead) {
  test::TemporaryFolder folder;
  std::ofstream(folder / "m.pt", std::ios::binary) << views_of_one_storage(2);
  EXPECT_EQ(load_checkpoint(folder / "m.pt", {.num_heads = 4}).config.depth, 2);
}

TEST(HostileCheckpoint, AFewShapesAreNoModel) {
  constexpr int64_t C = 1 << 16;  // a block of it would be 43 billion parameters
  const Weights weights = {{"x_embedder.proj.weight", at::zeros({C, 1, 1, 1})},
                           {"pos_embed", at::zeros({1, 1, C})},
                           {"blocks.0.attn.qkv.weight", at::zeros({1, 1})},
                           {"blocks.0.mlp.fc1.weight", at::zeros({4, 1})},
                           {"y_embedder.embedding_table.weight", at::zeros({2, 1})},
                           {"final_layer.linear.weight", at::zeros({1, 1})}};
  expect_error([&] { load(weights, {}, {.num_heads = 4}); }, "at least 42950524928 parameters, but it holds");
}

}  // namespace
}  // namespace dydit
