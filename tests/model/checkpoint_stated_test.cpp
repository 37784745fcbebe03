// What a file says of itself is held against its tensors; what other programs say is noted.
#include <cmath>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "dydit/model/checkpoint.h"
#include "dydit/model/embeddings.h"
#include "tests/support/checkpoint_files.h"
#include "tests/support/random_model.h"

namespace dydit {
namespace {

using test::expect_error;
using test::load;
using test::random_checkpoint;
using test::tiny_config;
using test::torch_archive;
using namespace test::pickle;
using nlohmann::json;

Weights tiny() { return random_checkpoint(tiny_config()).weights; }

Checkpoint load_with_config(const json& config) { return load(tiny(), {{"config", config.dump()}}); }

Checkpoint load_with_args(const Weights& weights, const std::vector<std::string>& args) {
  return test::parse(torch_archive(weights, dict(args)), {.num_heads = 4});
}

bool notes_say(const Checkpoint& checkpoint, const std::string& part) {
  return std::any_of(checkpoint.read_notes.begin(), checkpoint.read_notes.end(),
                     [&](const std::string& note) { return note.find(part) != note.npos; });
}

TEST(Stated, EachContradictionNamesBothNumbers) {
  for (const auto& [key, value, part] : std::vector<std::tuple<std::string, json, std::string>>{
           {"depth", 28, "says depth 28, but its tensors are of 2"},
           {"hidden_size", 1152, "says hidden_size 1152, but its tensors are of 64"},
           {"patch_size", 4, "says patch_size 4, but its tensors are of 2"},
           {"in_channels", 3, "says in_channels 3, but its tensors are of 4"},
           {"mlp_ratio", 2.0, "says mlp_ratio 2, but the MLPs have 256 channels"},
           {"learn_sigma", false, "says learn_sigma false, but final_layer.linear.weight has 32 outputs"},
           {"input_size", 16, "says input_size 16, but pos_embed is for 8"},
           {"image_size", 100, "says image_size 100, but pos_embed is for 8"},
           {"num_classes", 1000, "says 1000 classes, but the table of labels has 6 rows"},
           {"num_heads", 8, "4 heads by its tensors or metadata, but 8"},
           {"model", "DiT-XL/2",
            "says model \"DiT-XL/2\" (28 blocks, hidden 1152, patch 2), but its tensors are of 2"}}) {
    expect_error([&, key = key, value = value] { load_with_config({{key, value}}); }, part);
  }
}

TEST(Stated, WhatAgreesOrIsOfNoModelIsFine) {
  load_with_config(
      {{"depth", 2}, {"hidden_size", 64.0}, {"patch_size", 2}, {"num_classes", 5}, {"learn_sigma", true}});
  load_with_config(
      {{"image_size", 64}, {"mlp_ratio", 4}, {"class_dropout_prob", 0.1}, {"model", "my-own/2"}});
  load_with_config({{"depth", "two"},
                    {"hidden_size", nullptr},
                    {"num_classes", 5},
                    {"class_dropout_prob", 0.0},
                    {"image_size", json::array({8, 8})}});
  for (const int image : {8, 16, 64, 128}) load_with_config({{"image_size", image}});
}

TEST(Stated, ATableWithoutANullClassIsRefused) {
  expect_error(
      [] {
        load_with_args(tiny(), {text("num_classes"), number(6), text("class_dropout_prob"), real(0)});
      },
      "args says 6 classes and class_dropout_prob 0 and the table of labels has 6 rows: all of them are");
  expect_error(
      [] {
        load_with_args(tiny(), {text("num_classes"), number(6)});
      },
      "args says 6 classes and the table");
  expect_error(
      [] {
        load_with_config({{"class_dropout_prob", 0}});
      },
      "says class_dropout_prob 0 and the table");
}

TEST(Stated, FlowModelsAreTakenAtTheirWord) {
  const Checkpoint sit =
      load_with_args(tiny(), {text("path_type"), text("Linear"), text("prediction"), text("velocity")});
  EXPECT_EQ(sit.config.objective, (Objective{Path::Linear, Prediction::Velocity, ModelClock::Data}));
  EXPECT_EQ(sit.objective_source, "args");
  EXPECT_TRUE(sit.config.drops_variance);
  const Checkpoint noise =
      load_with_args(tiny(), {text("path_type"), text("GVP"), text("prediction"), text("noise")});
  EXPECT_EQ(noise.config.objective, (Objective{Path::Gvp, Prediction::Noise, ModelClock::Data}));
}

TEST(Stated, FlowsThatAreNotOfferedAreRefusedByName) {
  expect_error(
      [] {
        load_with_args(tiny(), {text("model"), text("SiT-XL/2")});
      },
      "args says model \"SiT-XL/2\"");
  expect_error([] { load_with_config({{"prediction", "velocity"}}); }, "nobody says of which path");
  expect_error(
      [] {
        load(tiny(), {{"prediction_type", "v_prediction"}});
      },
      "metadata says prediction \"v_prediction\", but this program knows noise and velocity");
  expect_error(
      [] {
        load_with_args(tiny(), {text("path_type"), text("Cosine")});
      },
      "args says path \"Cosine\", but this program knows table, linear");
  load_with_args(tiny(), {text("prediction"), text("epsilon"), text("model"), text("DiT-tiny")});
}

TEST(PosEmbed, IsComputedWhereTheSizeIsStated) {
  Weights weights = tiny();
  weights.erase("pos_embed");
  const at::Tensor table = sincos_pos_embed(64, 4);
  for (const auto& [key, size] : {std::pair{"image_size", 64}, {"input_size", 8}}) {
    const Checkpoint checkpoint = load_with_args(weights, {text(key), number(size)});
    EXPECT_TRUE(at::equal(checkpoint.weights.at("pos_embed"), table)) << key;
    EXPECT_TRUE(notes_say(checkpoint, "pos_embed is not in the file; computed, sin-cos, for 4 x 4 patches"));
    EXPECT_EQ(load(weights, {{"config", json{{key, size}}.dump()}}).config, tiny_config()) << key;
  }
}

TEST(PosEmbed, WithoutASizeIsExplained) {
  Weights weights = tiny();
  weights.erase("pos_embed");
  expect_error([&] { load(weights); },
               "It is the sin-cos table of the patches, which is computed where args");
  expect_error(
      [&] {
        load_with_args(weights, {text("input_size"), number(7)});
      },
      "patches of 2 do not divide a side of 7");
  expect_error(
      [&] {
        load_with_args(weights, {text("input_size"), number(1 << 20)});
      },
      "no model is that large");
}

TEST(ForeignMetadata, IsNotedAndTheWeightsAreRead) {
  for (const auto& [key, value] :
       std::vector<std::pair<std::string, std::string>>{{"config", "{'hidden_size': 8}"},
                                                        {"config", "hidden_size: 8\ndepth: 2\n"},
                                                        {"config", "/home/me/config.yaml"},
                                                        {"config", "[1, 2]"},
                                                        {"class_names", "cat,dog"},
                                                        {"class_names", R"(["cat", "dog"])"},
                                                        {"class_names", R"({"0": "cat"})"},
                                                        {"lambda", "half"}}) {
    const Checkpoint checkpoint = load(tiny(), {{key, value}, {"note", "of another program"}});
    EXPECT_TRUE(notes_say(checkpoint, "metadata '" + key + "'")) << value;
    EXPECT_TRUE(notes_say(checkpoint, "passed over, it is of another program")) << value;
    EXPECT_TRUE(checkpoint.class_names.empty());
    EXPECT_EQ(checkpoint.notes.at("note"), "of another program");
    expect_error(
        [&, key = key, value = value] {
          load(tiny(), {{key, value}, {"dydit_format", "1"}});
        },
        "metadata '" + key + "'");
  }
}

TEST(ForeignMetadata, NextToANewerFormatTheFormatIsNamed) {
  expect_error([] { load(tiny(), {{"config", "yaml: 1"}, {"dydit_format", "3"}}); }, "dydit_format 3");
  expect_error(
      [] {
        load(tiny(), {{"config", R"({"semantics": "next"})"}, {"dydit_format", "3"}});
      },
      "dydit_format 3");
}

TEST(ClassNames, WithControlCharactersAreRefused) {
  for (const char* name : {"\\u001b[2J", "a\\nb", "\\u009b1m", "\\u202e"}) {
    const std::string names = std::string("[\"a\", \"b\", \"c\", \"d\", \"") + name + "\"]";
    expect_error(
        [&] {
          load(tiny(), {{"class_names", names}, {"dydit_format", "1"}});
        },
        "the name of class 4 is");
    EXPECT_TRUE(load(tiny(), {{"class_names", names}}).class_names.empty());
  }
}

TEST(ClassNames, MayRepeatAndHoldAnyLetters) {
  const std::vector<std::string> names = {"crane", "crane", "tench, Tinca tinca", "\u00e9t\u00e9", "\"q\""};
  EXPECT_EQ(load(tiny(), {{"class_names", json(names).dump()}}).class_names, names);
}

TEST(Messages, QuoteWhatComesOutOfFiles) {
  Weights weights = tiny();
  weights["evil\x1b[2J"] = at::zeros({2});
  expect_error([&] { load(weights); }, "tensor evil\\x1b[2J belongs to no part");
  expect_error([] { load(tiny(), {{"gate_rule", "\x1b]0;x\x07"}}); }, "gate rule '\\x1b]0;x\\x07'");
  expect_error([] { load(tiny(), {{"dydit_format", "\x1b[2J"}}); }, "dydit_format \\x1b[2J");
}

}  // namespace
}  // namespace dydit
