// Features that outlive a process: what is there again after any end, and what is refused.
#include "dydit/eval/feature_store.h"

#include <fstream>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "tests/support/archives.h"
#include "tests/support/files.h"

namespace dydit {
namespace {

const FeatureSizes kSizes = {32, 5, 3, 2};
const nlohmann::json kKey = {{"seed", 1}, {"model", "m"}};

class FeatureStoreOf : public testing::Test {
 protected:
  static ImageFeatures rows(int64_t index) {
    const float i = static_cast<float>(index);
    return {at::full({1, 5}, i), at::full({1, 3}, i + .25), at::full({1, 2}, i + .5)};
  }
  static void add(FeatureStore& store, int64_t index) {
    store.add({index, index % 10, 32, 32, {1, 2, static_cast<double>(index)}}, rows(index), 0);
  }
  std::filesystem::path path() const { return folder_ / "features"; }
  test::TemporaryFolder folder_;
};

TEST_F(FeatureStoreOf, GivesRowsInTheOrderOfTheImages) {
  for (const std::filesystem::path& where : {std::filesystem::path(), path()}) {
    FeatureStore store(kSizes, where, kKey);
    for (const int64_t i : {2, 0, 3, 1}) add(store, i);
    EXPECT_TRUE(store.missing(4).empty());
    const StoredFeatures all = store.collect(4);
    for (int64_t i = 0; i < 4; ++i) {
      EXPECT_TRUE(all.values.features[i].eq(i).all().item<bool>());
      EXPECT_TRUE(all.values.logits[i].eq(i + .25).all().item<bool>());
      EXPECT_TRUE(all.values.spatial[i].eq(i + .5).all().item<bool>());
      EXPECT_EQ(all.labels[static_cast<size_t>(i)], i);
    }
    EXPECT_DOUBLE_EQ(all.mean_cost.executed_gmacs, 1.5);
    EXPECT_EQ(all.sizes, (std::set<std::pair<int, int>>{{32, 32}}));
  }
}

TEST_F(FeatureStoreOf, FilesOfAllProcessesCount) {
  {
    FeatureStore first(kSizes, path(), kKey, 0), second(kSizes, path(), kKey, 1);
    add(first, 0);
    add(second, 2);
  }
  FeatureStore store(kSizes, path(), kKey, 0);
  EXPECT_EQ(store.missing(4), (std::vector<int64_t>{1, 3}));
}

TEST_F(FeatureStoreOf, ARecordThatWasCutShortOrDamagedIsMissing) {
  {
    FeatureStore store(kSizes, path(), kKey);
    for (int64_t i = 0; i < 3; ++i) add(store, i);
  }
  const auto file = path() / "0.features";
  const auto size = std::filesystem::file_size(file);
  std::filesystem::resize_file(file, size - 1);
  {
    FeatureStore store(kSizes, path(), kKey);
    EXPECT_EQ(store.missing(3), (std::vector<int64_t>{2}));
    add(store, 2);
    EXPECT_TRUE(store.missing(3).empty());
  }
  std::fstream damage(file, std::ios::in | std::ios::out | std::ios::binary);
  damage.seekp(static_cast<std::streamoff>(size / 3 + 60));
  damage.put('\x55');
  damage.close();
  EXPECT_EQ(FeatureStore(kSizes, path(), kKey).missing(3), (std::vector<int64_t>{1}));
}

TEST_F(FeatureStoreOf, RefusesAnotherEvaluationAndAnotherRun) {
  {
    const FeatureStore store(kSizes, path(), kKey);
    test::expect_error([&] { FeatureStore(kSizes, path(), kKey); }, "another run works there");
  }
  test::expect_error(
      [&] {
        FeatureStore(kSizes, path(), {{"seed", 2}, {"model", "m"}});
      },
      "holds features of another evaluation (seed is 1 there and 2 here)");
  test::expect_error(
      [&] {
        FeatureStore(kSizes, path(), {{"seed", 1}});
      },
      "holds features of another evaluation (model is \"m\" there and null here)");
  test::write_file(folder_ / "file", "x");
  test::expect_error([&] { FeatureStore(kSizes, folder_ / "file" / "below", kKey); },
                     "below: cannot be created:");
  const auto other = folder_ / "other";
  std::filesystem::create_directory(other);
  test::write_file((other / "x").string(), "x");
  test::expect_error([&] { FeatureStore(kSizes, other, kKey); }, "holds other files than an evaluation's");
}

TEST_F(FeatureStoreOf, SaysWhichImageIsMissing) {
  FeatureStore store(kSizes, "", kKey);
  add(store, 1);
  test::expect_error([&] { store.collect(2); }, "has no features of image 0");
}

}  // namespace
}  // namespace dydit
