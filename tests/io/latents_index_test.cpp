// The index of packed latents and its shards say the same, or one line says what does not.
#include "dydit/io/latents_index.h"

#include <gtest/gtest.h>

#include "tests/support/latent_sets.h"

namespace dydit {
namespace {

using nlohmann::json;
using test::bytes_of;
using test::expect_error;
using test::latents_path;

json recorded() { return json::parse(test::contents(latents_path("packed") / kLatentsIndexName)); }

LatentsIndex parse(const json& index) {
  const std::string text = index.dump();
  return parse_latents_index(bytes_of(text), "FILE");
}

void expect_refused(const std::string& part, const std::function<void(json&)>& change) {
  json index = recorded();
  change(index);
  expect_error([&] { parse(index); }, part);
}

TEST(LatentsIndex, IsReadAsRecorded) {
  const LatentsIndex index = parse(recorded());
  EXPECT_EQ(index.images, 12);
  EXPECT_EQ(index.flips, 2);
  EXPECT_EQ(index.scaling, 0.18215);
  EXPECT_EQ(index.shift, 0);
  EXPECT_TRUE(index.mean.empty() && index.std.empty());
  EXPECT_EQ(index.class_names, (std::vector<std::string>{"a", "b", "c", "d", "e"}));
  ASSERT_EQ(index.files.size(), 3u);
  EXPECT_EQ(index.files[1].name, latent_shard_name(1, 3));
  EXPECT_EQ(index.files[2].images, 2);
  EXPECT_EQ(index.channel_mean.size(), 4u);
  EXPECT_NEAR(index.channel_std[1], 5.03947, 1e-5);
  EXPECT_FALSE(index.metadata.contains("files"));
}

TEST(LatentsIndex, NormalisationMayComeWithTheIndexAlone) {
  json text = recorded();
  text["latents_mean"] = "[1, 2, 3, 4]";
  text["latents_std"] = "[1, 1, 2, 0.5]";
  const LatentsIndex index = parse(text);
  EXPECT_EQ(index.std, (std::vector<double>{1, 1, 2, 0.5}));
  const SafetensorsFile shard = read_safetensors(latents_path("packed") / latent_shard_name(0, 3));
  EXPECT_EQ(parse_latent_shard(shard, index, 0, "FILE").mean.shape, (std::vector<int64_t>{5, 2, 4, 4, 4}));
}

TEST(LatentsIndex, NamesOfShardsSayHowMany) {
  EXPECT_EQ(latent_shard_name(2, 157), "latents-00002-of-00157.safetensors");
  EXPECT_EQ(shards_of_name("latents-00002-of-00157.safetensors"), 157);
  EXPECT_EQ(shards_of_name(latent_shard_name(1234567, 2345678)), 2345678);
  for (const char* name :
       {"latents.json", "latents-1-of-.safetensors", "latents--of-3.safetensors",
        "latents-0-of-3.safetensors.tmp", "../latents-0-of-3.safetensors", "latents-of-3.safetensors"})
    EXPECT_FALSE(shards_of_name(name)) << name;
}

TEST(LatentsIndex, WhatCannotBeMeantIsRefused) {
  expect_refused("FILE: is not the index of a set of latents", [](json& j) { j.erase("dydit_latents"); });
  expect_refused("FILE: latents of version \"2\", but this program reads 1; use a newer dydit",
                 [](json& j) { j["dydit_latents"] = "2"; });
  expect_refused("FILE: its metadata has no \"images\"", [](json& j) { j.erase("images"); });
  expect_refused("FILE: flips is \"3\", 1 to 2 is wanted", [](json& j) { j["flips"] = "3"; });
  expect_refused("FILE: its metadata has no \"scaling_factor\"", [](json& j) { j.erase("scaling_factor"); });
  expect_refused("FILE: scaling_factor is \"nan\", a number is wanted",
                 [](json& j) { j["scaling_factor"] = "nan"; });
  expect_refused("FILE: scaling_factor is 0, with which all latents would be",
                 [](json& j) { j["scaling_factor"] = "0"; });
  expect_refused("FILE: latents_mean has 1 values and latents_std 0; they belong together",
                 [](json& j) { j["latents_mean"] = "[1]"; });
  expect_refused("FILE: latents_std holds 0, numbers above 0 are wanted", [](json& j) {
    j["latents_mean"] = "[1]";
    j["latents_std"] = "[0]";
  });
  expect_refused("FILE: latents_mean is \"x\", a list in JSON is wanted",
                 [](json& j) { j["latents_mean"] = "x"; });
  expect_refused("FILE: latents_mean holds \"x\"; numbers are wanted",
                 [](json& j) { j["latents_mean"] = "[\"x\"]"; });
  expect_refused("FILE: channel_mean is no list of numbers", [](json& j) { j["channel_mean"] = 1; });
  expect_refused("FILE: class_names holds 1; texts are wanted", [](json& j) { j["class_names"] = "[1]"; });
  expect_refused("FILE: has no list files", [](json& j) { j["files"] = json::array(); });
  expect_refused("file, images and sha256 of each are wanted",
                 [](json& j) { j["files"][1].erase("sha256"); });
  expect_refused("FILE: \"../a\" is no name of a shard", [](json& j) { j["files"][1]["file"] = "../a"; });
  expect_refused("FILE: lists 2 files of 3 shards", [](json& j) { j["files"].erase(2); });
  expect_refused("FILE: its files hold 13 images, 12 are said", [](json& j) { j["files"][2]["images"] = 3; });
  expect_refused("FILE: nests deeper than 3 levels", [](json& j) { j["files"][0]["file"] = {1, {1}}; });
  expect_refused("FILE: lists more than 8192 files; take larger shards",
                 [](json& j) { j["files"] = std::vector<json>(8193, json::object()); });
  const std::string large((2 << 20) + 1, ' ');
  expect_error([&] { parse_latents_index(bytes_of(large), "FILE"); },
               "FILE: an index of 2097153 bytes; at most");
}

void expect_refused_shard(const std::string& part, const std::function<void(SafetensorsFile&)>& change,
                          const std::function<void(json&)>& change_index = {}) {
  json index = recorded();
  if (change_index) change_index(index);
  SafetensorsFile shard = read_safetensors(latents_path("packed") / latent_shard_name(1, 3));
  change(shard);
  expect_error([&] { parse_latent_shard(shard, parse(index), 1, "FILE"); }, part);
}

TEST(LatentShard, WhatIsNotTheIndexsIsRefused) {
  const auto nothing = [](SafetensorsFile&) {};
  expect_refused_shard("FILE: its vae_sha256 is \"b\", but latents.json says \"e34cb9",
                       [](SafetensorsFile& s) { s.metadata["vae_sha256"] = "b"; });
  expect_refused_shard("FILE: its more is \"b\", but latents.json says nothing; they are of two sets",
                       [](SafetensorsFile& s) { s.metadata["more"] = "b"; });
  expect_refused_shard("FILE: its metadata has no \"crop\"",
                       [](SafetensorsFile& s) { s.metadata.erase("crop"); });
  expect_refused_shard("FILE: its shard is 2, wanted 1: it stands in the place of another",
                       [](SafetensorsFile& s) { s.metadata["shard"] = "2"; });
  expect_refused_shard("FILE: its first_index is 5, wanted 4", nothing, [](json& j) {
    j["files"][0]["images"] = 4;
    j["files"][2]["images"] = 3;
  });
  expect_refused_shard("FILE: tensor \"more\" is not known; mean, logvar and labels are",
                       [](SafetensorsFile& s) { s.tensors["more"] = s.tensors["mean"]; });
  expect_refused_shard("FILE: has no tensor \"mean\"", [](SafetensorsFile& s) { s.tensors.erase("mean"); });
  expect_refused_shard("FILE: mean is F16 (5, 2, 64); (5, 2, C, h, w) of F16, BF16 or F32 is wanted",
                       [](SafetensorsFile& s) {
                         s.tensors["mean"].shape = {5, 2, 64};
                       });
  expect_refused_shard("FILE: logvar is F16 (5, 2, 64), mean F16 (5, 2, 4, 4, 4); the same is wanted",
                       [](SafetensorsFile& s) {
                         s.tensors["logvar"].shape = {5, 2, 64};
                       });
  expect_refused_shard("FILE: labels are I64 (4); I64 (5) is wanted",
                       [](SafetensorsFile& s) { s.tensors["labels"].shape = {4}; });
  expect_refused_shard("FILE: latents of 4 channels, but latents_mean has 1 values", nothing, [](json& j) {
    j["latents_mean"] = "[1]";
    j["latents_std"] = "[1]";
  });
}

}  // namespace
}  // namespace dydit
