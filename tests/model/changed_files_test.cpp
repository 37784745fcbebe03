// A checkpoint knows all files that its weights came from, and notices when one is written to.
#include <chrono>
#include <filesystem>
#include <fstream>
#include <string>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "dydit/io/safetensors.h"
#include "dydit/model/checkpoint.h"
#include "dydit/model/embeddings.h"
#include "tests/support/files.h"
#include "tests/support/random_model.h"

namespace dydit {
namespace {

namespace fs = std::filesystem;
using test::contents;
using test::expect_error;
using test::TemporaryFolder;

// So large that every file of it is mapped.
Checkpoint large_model() {
  DiTConfig config = test::static_config();
  config.hidden_size = 192;
  config.mlp_hidden = 768;
  Checkpoint checkpoint = test::random_checkpoint(config);
  checkpoint.weights["pos_embed"] = sincos_pos_embed(config.hidden_size, config.grid()).contiguous();
  return checkpoint;
}

// As cp does it: into the file itself. Its time is moved on, for a file system's clock may be coarse.
void overwrite(const fs::path& path) {
  const auto before = fs::last_write_time(path);
  std::ofstream(path, std::ios::binary | std::ios::in | std::ios::out) << contents(path).substr(0, 64);
  fs::last_write_time(path, before + std::chrono::milliseconds(1));
}

// Two files of some MB and their index.
fs::path write_shards(const fs::path& folder, const Checkpoint& checkpoint) {
  fs::create_directories(folder);
  TensorViews shards[2];
  nlohmann::json map;
  for (const auto& [name, tensor] : checkpoint.weights) {
    const int shard = name.starts_with("blocks.1") ? 1 : 0;
    shards[shard][name] = to_view(tensor);
    map[name] = shard == 0 ? "a.safetensors" : "b.safetensors";
  }
  const nlohmann::json heads = {{"num_heads", checkpoint.config.num_heads}};
  write_safetensors(folder / "a.safetensors", shards[0], {{"config", heads.dump()}});
  write_safetensors(folder / "b.safetensors", shards[1], {});
  std::ofstream(folder / "m.safetensors.index.json") << nlohmann::json{{"weight_map", map}};
  return folder;
}

class ChangedFiles : public ::testing::Test {
 protected:
  // Each of `files` in turn.
  void expect_noticed(const fs::path& path, const std::vector<fs::path>& files) {
    EXPECT_NO_THROW(load_checkpoint(path).check_unchanged());
    for (const fs::path& file : files) {
      const Checkpoint checkpoint = load_checkpoint(path);
      overwrite(file);
      expect_error([&] { checkpoint.check_unchanged(); }, file.string() + ": changed while it was in use");
    }
  }

  TemporaryFolder folder_;
  const Checkpoint model_ = large_model();
};

TEST_F(ChangedFiles, OneFileIsNoticed) {
  save_checkpoint(folder_ / "m.safetensors", model_, at::kFloat);
  expect_noticed(folder_ / "m.safetensors", {folder_ / "m.safetensors"});
  save_torch_checkpoint(folder_ / "m.pt", model_, at::kFloat);
  expect_noticed(folder_ / "m.pt", {folder_ / "m.pt"});
}

TEST_F(ChangedFiles, EachOfSeveralIsNoticed) {
  const fs::path shards = write_shards(folder_ / "shards", model_);
  expect_noticed(shards, {shards / "a.safetensors", shards / "b.safetensors"});
}

TEST_F(ChangedFiles, FolderOfDiffusersIsNoticed) {
  const fs::path folder = folder_ / "diffusers";
  save_diffusers_folder(folder, model_, at::kFloat);
  expect_noticed(folder, {folder / "diffusion_pytorch_model.safetensors"});
}

TEST_F(ChangedFiles, CopyOfTheModelRemembersThem) {
  save_checkpoint(folder_ / "m.safetensors", model_, at::kFloat);
  const Checkpoint copy = load_checkpoint(folder_ / "m.safetensors");
  overwrite(folder_ / "m.safetensors");
  const Checkpoint second = copy;
  expect_error([&] { second.check_unchanged(); }, "changed while it was in use");
}

TEST_F(ChangedFiles, NothingIsMadeOfThem) {
  save_checkpoint(folder_ / "m.safetensors", model_, at::kFloat);
  const Checkpoint checkpoint = load_checkpoint(folder_ / "m.safetensors");
  overwrite(folder_ / "m.safetensors");
  fs::create_directories(folder_ / "d");
  for (const char* name : {"x.safetensors", "x.pt", "d/diffusion_pytorch_model.safetensors"})
    std::ofstream(folder_ / name) << "old";
  expect_error([&] { save_checkpoint(folder_ / "x.safetensors", checkpoint, at::kFloat); },
               "m.safetensors: changed");
  expect_error([&] { save_torch_checkpoint(folder_ / "x.pt", checkpoint, at::kFloat); },
               "m.safetensors: changed");
  expect_error([&] { save_diffusers_folder(folder_ / "d", checkpoint, at::kFloat); },
               "m.safetensors: changed");
  for (const char* name : {"x.safetensors", "x.pt", "d/diffusion_pytorch_model.safetensors"})
    EXPECT_EQ(contents(folder_ / name), "old") << name;
}

}  // namespace
}  // namespace dydit
