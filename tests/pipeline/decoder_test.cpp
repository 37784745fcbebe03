// What lies between a model's latents and an autoencoder's.
#include "dydit/pipeline/decoder.h"

#include <filesystem>
#include <fstream>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "dydit/base/error.h"
#include "tests/support/files.h"

namespace dydit {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

TEST(LatentOrigin, ComesBackFromAModelsNotes) {
  const LatentScale scale = {.scaling = 1.5, .shift = 0.25, .mean = {0, 1}, .std = {2, 3}};
  const LatentOrigin origin =
      latent_origin({{kVaeNote, "abc"}, {kLatentScaleNote, scale_to_json(scale).dump()}}, 2, "a model");
  EXPECT_EQ(origin.vae_sha256, "abc");
  ASSERT_TRUE(origin.scale);
  EXPECT_EQ(scale_to_json(*origin.scale), scale_to_json(scale));
}

TEST(LatentOrigin, IsUnknownForOtherModels) {
  const LatentOrigin origin = latent_origin({}, 4, "a model");
  EXPECT_EQ(origin.vae_sha256, "");
  EXPECT_FALSE(origin.scale);
}

TEST(LatentOrigin, RefusesAScaleThatIsNone) {
  const auto said = [](const std::string& text) {
    return [text] { latent_origin({{kLatentScaleNote, text}}, 2, "m.safetensors"); };
  };
  test::expect_error(said("no"), "m.safetensors: latent_scale: is no JSON");
  test::expect_error(said("[]"), "expected an object with \"scaling\", got []");
  test::expect_error(said(R"({"scaling":"1"})"), "\"1\" is no finite number");
  test::expect_error(said(R"({"scaling":0})"), "scaling is 0");
  test::expect_error(said(R"({"scaling":1,"mean":[1],"std":[1]})"),
                     "mean has not one value for each of 2 channels");
  test::expect_error(said(R"({"scaling":1,"mean":[1,2]})"), "mean and std belong together");
  test::expect_error(said(R"({"scaling":1,"mean":[1,2],"std":[1,-2]})"), "std -2 is not above 0");
}

TEST(OwnAutoencoder, LiesInAPipelinesFolder) {
  const test::TemporaryFolder folder;
  const fs::path pipeline = folder / "pipeline";
  for (const char* part : {"vae", "transformer"}) fs::create_directories(pipeline / part);
  EXPECT_EQ(own_autoencoder(pipeline), "");
  std::ofstream(pipeline / "model_index.json") << "{}";
  EXPECT_EQ(own_autoencoder(pipeline), "");
  std::ofstream(pipeline / "vae/config.json") << "{}";
  EXPECT_EQ(own_autoencoder(pipeline), pipeline / "vae");
  EXPECT_EQ(own_autoencoder(pipeline / "transformer"), pipeline / "vae");
  EXPECT_EQ(own_autoencoder(pipeline / "model_index.json"), "");

  const fs::path cache = folder / "models--a--b", snapshot = cache / "snapshots/0123";  // of the hub
  fs::create_directories(cache / "snapshots");
  fs::copy(pipeline, snapshot, fs::copy_options::recursive);
  EXPECT_EQ(own_autoencoder(cache), snapshot / "vae");
}

}  // namespace
}  // namespace dydit
