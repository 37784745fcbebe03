// Weights by recipe are those that the recorded vectors were made with.
#include "dydit/model/recipe.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "dydit/io/safetensors.h"
#include "dydit/vae/autoencoder.h"
#include "tests/support/files.h"
#include "tests/support/shared.h"

namespace dydit {
namespace {

TEST(Recipe, HashIsFnv1a) { EXPECT_EQ(fnv1a("a"), 0xaf63dc4c8601ec8cu); }

TEST(Recipe, ValuesAreInTheirRanges) {
  struct Range {
    const char* name;
    std::vector<int64_t> shape;
    double least, largest;
  };
  for (const auto& [name, shape, least, largest] :
       {Range{"a.norm1.weight", {10'000}, 0.5, 1.5}, Range{"a.norm1.bias", {10'000}, -0.25, 0.25},
        Range{"a.conv1.bias", {10'000}, -0.1, 0.1}, Range{"a.conv1.weight", {1000, 3, 2, 2}, -0.5, 0.5}}) {
    const at::Tensor values = recipe_tensor(name, shape);
    const double span = largest - least;
    EXPECT_GE(values.min().item<double>(), least) << name;
    EXPECT_LE(values.max().item<double>(), largest) << name;
    EXPECT_LT(values.min().item<double>(), least + 0.01 * span) << name;
    EXPECT_GT(values.max().item<double>(), largest - 0.01 * span) << name;
  }
}

TEST(Recipe, IsTheOneOfTheVectors) {
  const auto path = test::shared_path("golden/vae/full/vectors.safetensors");
  SKIP_WITHOUT(path);
  const auto recorded = nlohmann::json::parse(read_safetensors(path).metadata.at("check_first_and_sum"));
  const AutoencoderFile file = load_autoencoder("recipe:sd");
  EXPECT_EQ(recorded.size(), 4u);
  for (const auto& [name, values] : recorded.items()) {
    const at::Tensor& tensor = file.weights.at(name);
    EXPECT_EQ(tensor.flatten()[0].item<float>(), values[0].get<float>()) << name;
    EXPECT_NEAR(tensor.to(at::kDouble).sum().item<double>(), values[1].get<double>(), 1e-9) << name;
  }
}

TEST(Recipe, KnowsTwoSizes) {
  EXPECT_EQ(load_autoencoder("recipe:taesd").config.kind, AutoencoderKind::Tiny);
  test::expect_error([] { load_autoencoder("recipe:xl"); },
                     "recipe:xl: sizes that have a recipe are sd and taesd");
  test::expect_error([] { load_autoencoder("recipe:sd", {.config = "c.json"}); },
                     "recipe:sd: has a configuration of its own (its recipe)");
}

}  // namespace
}  // namespace dydit
