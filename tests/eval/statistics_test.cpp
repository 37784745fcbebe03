// Files of statistics: ours and those of other tools, and what is refused.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "dydit/eval/statistics_file.h"
#include "dydit/io/npz.h"
#include "dydit/io/safetensors.h"
#include "dydit/model/checkpoint.h"
#include "tests/support/features.h"
#include "tests/support/files.h"
#include "tests/support/shared.h"
#include "tests/support/zip_builder.h"

namespace dydit {
namespace {

using test::random_features;

Gaussian gaussian(int64_t d, uint64_t seed) {
  return gaussian_of(moments_of(random_features(40, d, seed))[0]);
}

FeatureStatistics statistics() {
  return {.features = gaussian(5, 1),
          .spatial = gaussian(7, 2),
          .rows = random_features(40, 5, 1),
          .images = 40,
          .origin = {"lite0", "57934424", "bicubic-224", "abc", "balanced", ""}};
}

void expect_equal(const Gaussian& a, const Gaussian& b) {
  EXPECT_TRUE(a.mean.equal(b.mean));
  EXPECT_TRUE(a.cov.equal(b.cov));
}

TEST(Statistics, ComeBackFromOurFile) {
  const test::TemporaryFolder folder;
  const FeatureStatistics written = statistics();
  write_statistics(folder / "a.stats.safetensors", written);
  const FeatureStatistics read = read_statistics(folder / "a.stats.safetensors");
  expect_equal(read.features, written.features);
  expect_equal(*read.spatial, *written.spatial);
  EXPECT_TRUE(read.rows.equal(written.rows));
  EXPECT_EQ(read.images, 40);
  EXPECT_EQ(read.origin.extractor, "lite0");
  EXPECT_EQ(read.origin.weights_sha256, "57934424");
  EXPECT_EQ(read.origin.resize, "bicubic-224");
  EXPECT_EQ(read.origin.source_sha256, "abc");
  EXPECT_EQ(read.origin.labels, "balanced");
  EXPECT_TRUE(read.origin.tool.starts_with("dydit ")) << read.origin.tool;
}

TEST(Statistics, OfOtherToolsSayOnlyNumbers) {
  const test::TemporaryFolder folder;
  const FeatureStatistics written = statistics();
  write_statistics(folder / "a.npz", written);
  const FeatureStatistics read = read_statistics(folder / "a.npz");
  expect_equal(read.features, written.features);
  expect_equal(*read.spatial, *written.spatial);
  EXPECT_FALSE(read.rows.defined());
  EXPECT_EQ(read.images, 0);
  EXPECT_EQ(read.origin.extractor, "");
}

// Made by numpy.savez of float32 and float64 arrays beside images, and deflated.
TEST(Statistics, OfTheOtherToolsThemselvesAreRead) {
  const auto folder = test::shared_path("golden/eval");
  SKIP_WITHOUT(folder / "reference.npz");
  const SafetensorsFile file = read_safetensors(folder / "metrics.safetensors");
  const at::Tensor mean = to_tensor(file.tensors.at("mean_ref"), file.file),
                   cov = to_tensor(file.tensors.at("cov_ref"), file.file);
  const FeatureStatistics adm = read_statistics(folder / "reference.npz"),
                          ttur = read_statistics(folder / "stats_only.npz");
  EXPECT_LT((ttur.features.mean - mean).abs().max().item<double>(), 1e-12);
  EXPECT_LT((ttur.features.cov - cov).abs().max().item<double>(), 1e-12);
  EXPECT_FALSE(ttur.spatial);
  EXPECT_LT((adm.features.mean - mean).abs().max().item<double>(), 1e-6);  // float32
  EXPECT_LT((adm.features.cov - cov).abs().max().item<double>(), 1e-12);
  EXPECT_EQ(adm.spatial->mean.size(0), 60);
}

// An npz of these arrays, each {name, numpy's type, shape, values}.
struct Array {
  std::string name, type;
  std::vector<int64_t> shape;
  std::vector<double> values;
};
std::string npz(const std::vector<Array>& arrays) {
  std::vector<test::ZipMember> members;
  for (const Array& array : arrays) {
    std::string bytes = npy_header(array.type, array.shape);
    for (const double value : array.values) {
      const auto single = static_cast<float>(value);
      bytes += array.type == "<f8" ? std::string(reinterpret_cast<const char*>(&value), 8)
                                   : std::string(reinterpret_cast<const char*>(&single), 4);
    }
    members.push_back({array.name + ".npy", bytes});
  }
  return test::build_zip(members);
}

class RefusedStatistics : public testing::Test {
 protected:
  void refused(const std::string& bytes, const std::string& message) {
    std::ofstream(folder_ / "a.npz", std::ios::binary) << bytes;
    test::expect_error([&] { read_statistics(folder_ / "a.npz"); }, message);
  }
  void refused(const TensorViews& tensors, const std::map<std::string, std::string>& metadata,
               const std::string& message) {
    write_safetensors(folder_ / "a.safetensors", tensors, metadata);
    test::expect_error([&] { read_statistics(folder_ / "a.safetensors"); }, message);
  }
  const test::TemporaryFolder folder_;
  const Array mu_{"mu", "<f8", {2}, {0, 1}};
};

TEST_F(RefusedStatistics, OfForeignFiles) {
  refused(npz({mu_}), "a.npz: holds no array sigma; statistics are mu and sigma, of sFID mu_s and sigma_s");
  refused(npz({mu_, {"sigma", "<f8", {2, 3}, {1, 0, 0, 1, 0, 0}}}),
          "mu and sigma: shapes (2) and (2, 3); expected (d) and (d, d)");
  refused(npz({mu_, {"sigma", "<f8", {2, 2}, {1, 0, 0, NAN}}}),
          "mu and sigma: hold a number that is not finite");
  refused(npz({mu_, {"sigma", "<f4", {2, 2}, {1, 0.5, 0.25, 1}}}),
          "mu and sigma: is no covariance: entries differ by 0.25 from their mirror images");
  refused(npz({mu_, {"sigma", "<f8", {2, 2}, {1, 0, 0, -1}}}), "the least variance is -1");
  refused(npz({mu_, {"sigma", "<i4", {2, 2}, {1, 0, 0, 1}}}),
          "array sigma: expected float32 or float64 numbers");
  const Array sigma{"sigma", "<f8", {2, 2}, {1, 0, 0, 1}};
  refused(npz({mu_, sigma, {"mu_s", "<f8", {1}, {1}}}), "a.npz: holds no array sigma_s");
}

TEST_F(RefusedStatistics, OfOurFiles) {
  const FeatureStatistics known = statistics();
  TensorViews views = {{"mean", to_view(known.features.mean)}, {"cov", to_view(known.features.cov)}};
  refused(views, {}, "a.safetensors: is no file of statistics; dydit evaluate --write-stats makes one");
  refused(views, {{"dydit_statistics", "2"}}, "is of format \"2\"; this dydit reads 1");
  refused(views, {{"dydit_statistics", "1"}, {"images", "4e1"}},
          "metadata images is \"4e1\"; expected a whole number");
  views["features"] = to_view(known.rows);
  refused(views, {{"dydit_statistics", "1"}, {"images", "41"}}, "features of 40 images, but metadata say 41");
  views["features"] = to_view(known.features.mean);
  refused(views, {{"dydit_statistics", "1"}}, "tensor features is missing or not of type F32");
  views.erase("cov");
  refused(views, {{"dydit_statistics", "1"}},
          "tensor cov is missing or not of type F64; write the statistics again");
}

TEST(Statistics, CompareOnlyWithTheirLike) {
  const FeatureStatistics known = statistics();
  check_comparable(known, known.origin, 5, "ref");
  check_comparable(known, {}, 5, "ref");
  StatisticsOrigin other = known.origin;
  other.extractor = "inception";
  test::expect_error([&] { check_comparable(known, other, 5, "ref"); },
                     "ref: was made with extractor lite0, the images' features with inception");
  other = known.origin;
  other.weights_sha256 = "0";
  test::expect_error([&] { check_comparable(known, other, 5, "ref"); }, "with weights 57934424, the images'");
  other = known.origin;
  other.resize = "tf1-299";
  test::expect_error([&] { check_comparable(known, other, 5, "ref"); },
                     "with resize bicubic-224, the images'");
  test::expect_error([&] { check_comparable(known, {}, 2048, "ref"); },
                     "ref: statistics of 5 features, but the extractor makes 2048");
}

}  // namespace
}  // namespace dydit
