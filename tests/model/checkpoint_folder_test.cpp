// Folders and files as they are fetched: which of them is read, and what the others are called.
#include <filesystem>

#include <gtest/gtest.h>

#include "dydit/io/safetensors.h"
#include "dydit/model/checkpoint.h"
#include "tests/support/archives.h"
#include "tests/support/checkpoint_files.h"
#include "tests/support/golden.h"
#include "tests/support/random_model.h"

namespace dydit {
namespace {

namespace fs = std::filesystem;
using test::expect_error;
using test::golden_path;
using test::write_file;

class Fetched : public testing::Test {
 protected:
  fs::path at(const std::string& name) const { return top_ / name; }
  void copy_model(const std::string& name) {
    fs::create_directories(at(name).parent_path());
    fs::copy(golden_path("model.safetensors"), at(name));
  }
  void copy_pipeline(const std::string& name) {
    fs::create_directories(at(name).parent_path());
    fs::copy(golden_path("diffusers"), at(name), fs::copy_options::recursive);
  }
  static bool says(const Checkpoint& checkpoint, const std::string& part) {
    return std::any_of(checkpoint.read_notes.begin(), checkpoint.read_notes.end(),
                       [&](const std::string& note) { return note.find(part) != note.npos; });
  }

  test::TemporaryFolder top_;
};

TEST_F(Fetched, TheOneWeightFileOfAFolderIsRead) {
  copy_model("a/model.safetensors");
  write_file(at("a/README.md"), "x");
  EXPECT_TRUE(says(load_checkpoint(at("a")), "read model.safetensors, the one weight file"));
  copy_model("a/other.safetensors");
  expect_error([&] { load_checkpoint(at("a")); },
               "a folder of 2 weight files, not a folder of weights; wanted");
}

TEST_F(Fetched, AFolderOfTheHubsCacheIsResolved) {
  copy_pipeline("models--me--dit/snapshots/0123abcd");
  const Checkpoint checkpoint = load_checkpoint(at("models--me--dit"));
  EXPECT_EQ(checkpoint.format, "diffusers folder");
  EXPECT_TRUE(says(checkpoint, "read snapshots/0123abcd"));
  fs::create_directories(at("models--me--dit/snapshots/4567"));
  expect_error([&] { load_checkpoint(at("models--me--dit")); },
               "2 snapshots; name one: snapshots/0123abcd, snapshots/4567");
}

TEST_F(Fetched, TheOnlyVariantIsRead) {
  copy_pipeline("p");
  const fs::path weights = at("p/transformer/diffusion_pytorch_model.safetensors");
  const std::string variant = "diffusion_pytorch_model.fp16.safetensors";
  const Checkpoint plain = load_checkpoint(at("p"));
  fs::rename(weights, weights.parent_path() / variant);
  for (const char* folder : {"p", "p/transformer"}) {
    const Checkpoint checkpoint = load_checkpoint(at(folder));
    EXPECT_EQ(checkpoint.config, plain.config);
    EXPECT_TRUE(says(checkpoint, "read the variant " + variant));
  }
  fs::copy(weights.parent_path() / variant,
           weights.parent_path() / "diffusion_pytorch_model.ema.safetensors");
  expect_error([&] { load_checkpoint(at("p")); }, "variants of the weights alone, 2 of them");
  fs::copy(weights.parent_path() / variant, weights);
  EXPECT_FALSE(says(load_checkpoint(at("p")), "variant"));
}

TEST_F(Fetched, ATransformerWithoutItsPipelineIsRead) {
  copy_pipeline("p");
  fs::remove(at("p/model_index.json"));
  EXPECT_EQ(load_checkpoint(at("p")).format, "diffusers folder");
}

TEST_F(Fetched, OtherPipelinesAndModelsAreNamed) {
  write_file(at("sd/model_index.json"), R"({"_class_name": "StableDiffusionPipeline"})");
  expect_error([&] { load_checkpoint(at("sd")); },
               "is a \"StableDiffusionPipeline\" of diffusers; a DiTPipeline is wanted");
  write_file(at("vae/config.json"), R"({"_class_name": "AutoencoderKL"})");
  write_file(at("vae/diffusion_pytorch_model.safetensors"), "x");
  expect_error([&] { load_checkpoint(at("vae")); }, "holds \"AutoencoderKL\"; a DiT is wanted");
}

TEST_F(Fetched, DiffusersConfigIsHeldAgainstTheTensors) {
  copy_pipeline("p");
  std::string config = test::contents(at("p/transformer/config.json"));
  const std::string from = "\"num_embeds_ada_norm\": 5";
  ASSERT_NE(config.find(from), config.npos) << config;
  write_file(at("p/transformer/config.json"),
             config.replace(config.find(from), from.size(), "\"num_embeds_ada_norm\": 9"));
  expect_error([&] { load_checkpoint(at("p")); },
               "config.json says 9 classes, but the table of labels has 6 rows");
}

TEST_F(Fetched, WrongFilesAreCalledWhatTheyAre) {
  write_file(at("m.safetensors"), "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 3\n");
  expect_error([&] { load_checkpoint(at("m.safetensors")); }, "is a Git LFS pointer");
  write_file(at("page.pt"), "<!doctype html><title>Quota exceeded</title>");
  expect_error([&] { load_checkpoint(at("page.pt")); },
               "is a web page (HTML) in place of the file, not a weight file");
  write_file(at("u/archive/data.pkl"), "x");
  expect_error([&] { load_checkpoint(at("u")); }, "is an unpacked torch file (data.pkl lies in it)");
  write_file(at("c"),
             "\x80\x02}q\x01(U\x0b"
             "batch_labelq\x02");
  expect_error([&] { load_checkpoint(at("c")); }, "is a batch of CIFAR as a Python pickle");
}

TEST_F(Fetched, AnUnfinishedDownloadIsToldByItsName) {
  const std::string whole = test::contents(golden_path("model.safetensors"));
  write_file(at("m.safetensors.part"), whole.substr(0, whole.size() / 2));
  expect_error([&] { load_checkpoint(at("m.safetensors.part")); },
               "Its name ends in .part: the download has not ended.");
  write_file(at("whole.safetensors.part"), whole);
  EXPECT_EQ(load_checkpoint(at("whole.safetensors.part")).format, "safetensors");
}

}  // namespace
}  // namespace dydit
