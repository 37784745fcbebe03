// Latents of every layout are read to the recorded values, and drawn as functions of seed, image and epoch.
#include "dydit/data/latents.h"

#include <cmath>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "dydit/base/noise.h"
#include "dydit/data/latent_dataset.h"
#include "dydit/data/loader.h"
#include "tests/support/latent_sets.h"
#include "tests/support/zip_builder.h"

namespace dydit {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using test::expect_error;
using test::LatentCopy;
using test::latents_path;

constexpr size_t kValues = 4 * 4 * 4;
constexpr float kHalfStep = 0x1p-11f;  // of a float16, relative

std::vector<float> expected(const std::string& name, int64_t image) {
  const SafetensorsFile file = read_safetensors(latents_path("expected.safetensors"));
  std::vector<float> values(kValues);
  const TensorView& view = file.tensors.at(name);
  read_floats(view.data + static_cast<size_t>(image) * kValues * sizeof(float), view.dtype, values);
  return values;
}

int expected_label(size_t image) {
  const SafetensorsFile file = read_safetensors(latents_path("expected.safetensors"));
  return static_cast<int>(load_little<int64_t>(file.tensors.at("labels").data + image * sizeof(int64_t)));
}

LatentSource open(const std::string& layout) { return open_latents(latents_path(layout), {}); }

struct Values {
  std::vector<float> mean = std::vector<float>(kValues), std = std::vector<float>(kValues);
};

Values read(const LatentSource& source, int64_t index, bool mirrored = false) {
  Values values;
  source.read(index, mirrored, values.mean, values.std);
  return values;
}

void expect_near(const std::vector<float>& a, const std::vector<float>& b, float relative) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i], b[i], relative * std::abs(b[i]) + 1e-7f) << i;
}

TEST(Latents, OfFastDitAreTheRecordedOnesTimesTheFactor) {
  const LatentSource source = open("fastdit");
  EXPECT_EQ(latent_layout(latents_path("fastdit")), LatentLayout::FastDit);
  EXPECT_TRUE(source.info.scaled && !source.info.spread && source.info.flips == 1);
  EXPECT_EQ(source.info.scale.scaling, 0.18215);
  const std::vector<int> order = {0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9};
  ASSERT_EQ(source.labels.size(), order.size());
  for (size_t i = 0; i < order.size(); ++i) {
    std::vector<float> wanted = expected("mean", order[i]);
    for (float& value : wanted) value *= 0.18215f;
    expect_near(read(source, static_cast<int64_t>(i)).mean, wanted, 1e-6f);
    EXPECT_EQ(source.labels[i], expected_label(static_cast<size_t>(order[i])));
  }
  EXPECT_EQ(latent_layout(latents_path("fastdit/imagenet256_features")), LatentLayout::FastDit);
}

TEST(Latents, OfRepaHaveMeanAndStd) {
  const LatentSource source = open("repa");
  EXPECT_EQ(source.info.layout, LatentLayout::Repa);
  EXPECT_EQ(source.info.scale.scaling, 0.18215);
  ASSERT_EQ(source.labels.size(), 4u);
  for (int64_t i = 0; i < 4; ++i) {
    expect_near(read(source, i).mean, expected("mean", i), 1e-6f);
    expect_near(read(source, i).std, expected("std", i), 1e-5f);
    EXPECT_EQ(source.labels[static_cast<size_t>(i)], expected_label(static_cast<size_t>(i)));
  }
  EXPECT_EQ(latent_layout(latents_path("repa/vae-sd")), LatentLayout::Repa);
}

TEST(Latents, OfMarAreMomentsOfBothFlipsInClassFolders) {
  const LatentSource source = open("mar");
  EXPECT_EQ(source.info.layout, LatentLayout::Mar);
  EXPECT_EQ(source.info.scale.scaling, 0.2325);
  EXPECT_EQ(source.classes.names, (std::vector<std::string>{"class0", "class1", "class2", "class3"}));
  EXPECT_EQ(source.labels, (std::vector<int>{0, 1, 2, 3}));
  for (int64_t i = 0; i < 4; ++i) {
    expect_near(read(source, i).mean, expected("mean", i), 1e-6f);
    expect_near(read(source, i).std, expected("std", i), 1e-5f);
    expect_near(read(source, i, true).mean, expected("mean_flip", i), 1e-6f);
    expect_near(read(source, i, true).std, expected("std_flip", i), 1e-5f);
  }
}

TEST(Latents, OfLightningDitAreNormalisedByTheirStatistics) {
  const LatentSource source = open("lightningdit");
  EXPECT_EQ(source.info.layout, LatentLayout::LightningDit);
  EXPECT_EQ(source.info.scale.mean.size(), 4u);
  EXPECT_EQ(source.info.scale.std.size(), 4u);
  ASSERT_EQ(source.labels.size(), 12u);
  for (int64_t i = 0; i < 12; ++i) {
    expect_near(read(source, i).mean, expected("mean", i), 0);
    expect_near(read(source, i, true).mean, expected("mean_flip", i), 0);
    EXPECT_EQ(source.labels[static_cast<size_t>(i)], expected_label(static_cast<size_t>(i)));
  }
}

TEST(Latents, OfPackedShardsAreTheRecordedOnesInFloat16) {
  const LatentSource source = open("packed");
  EXPECT_EQ(source.info.layout, LatentLayout::Packed);
  EXPECT_EQ(source.info.vae_sha256.substr(0, 8), "e34cb9e3");
  EXPECT_EQ(source.info.vae_kind, "AutoencoderKL");
  EXPECT_EQ(source.classes.names, (std::vector<std::string>{"a", "b", "c", "d", "e"}));
  ASSERT_EQ(source.labels.size(), 12u);
  for (int64_t i = 0; i < 12; ++i) {
    for (const bool mirrored : {false, true}) {
      const std::string suffix = mirrored ? "_flip" : "";
      const Values values = read(source, i, mirrored);
      expect_near(values.mean, expected("mean" + suffix, i), kHalfStep);
      // Of a logvar within [-30, 20], whose half is rounded by up to 15 steps.
      expect_near(values.std, expected("std" + suffix, i), 16 * kHalfStep);
    }
    EXPECT_EQ(source.labels[static_cast<size_t>(i)], expected_label(static_cast<size_t>(i)));
  }
}

TEST(Latents, LogvarIsCutBeforeItBecomesADeviation) {
  std::vector<float> values = {-100, -30, 0, 20, 100};
  to_std(values);
  EXPECT_EQ(values,
            (std::vector<float>{std::exp(-15.0f), std::exp(-15.0f), 1, std::exp(10.0f), std::exp(10.0f)}));
}

TEST(Latents, FoldersOfOtherThingsAreNone) {
  for (const char* name : {"golden", "golden/diffusers", "golden/diffusers/transformer", "no such folder"})
    EXPECT_FALSE(latent_layout(fs::path(DYDIT_TESTS_DIR) / name)) << name;
  const test::TemporaryFolder folder;
  fs::create_directories(folder / "my_features/cat");
  fs::create_directories(folder / "my_features/dog");
  EXPECT_FALSE(latent_layout(folder / "my_features"));
  EXPECT_FALSE(latent_layout(folder / ""));
}

TEST(LatentScale, GoesThereAndBack) {
  const at::Tensor z = at::linspace(-3, 3, 2 * 4 * 2 * 2, at::kFloat).view({2, 4, 2, 2});
  const LatentScale shifted{0.3611, 0.1159}, normalised{2, 0.5, {1, 2, 3, 4}, {0.5, 1, 2, 4}};
  EXPECT_TRUE(at::equal(shifted.to_model(z), (z - 0.1159) * 0.3611));
  EXPECT_TRUE(at::allclose(normalised.to_model(z).select(1, 3), (z.select(1, 3) - 4) * 2 / 4));
  for (const LatentScale& scale : {shifted, normalised})
    EXPECT_TRUE(at::allclose(scale.to_autoencoder(scale.to_model(z)), z, 1e-5, 1e-6));
  at::Tensor one = z[1].clone();
  normalised.to_model({one.data_ptr<float>(), 16}, 4);
  EXPECT_TRUE(at::equal(one, normalised.to_model(z)[1]));
}

TEST(LatentScale, IsTheSameAsJson) {
  for (const LatentScale& scale :
       {LatentScale{0.3611, 0.1159, {}, {}}, LatentScale{2, 0, {1, 2}, {0.5, 3}}}) {
    const LatentScale again = scale_from_json(scale_to_json(scale), 2, "FILE");
    EXPECT_EQ(scale_to_json(again), scale_to_json(scale));
  }
  const auto refused = [](const char* text, const std::string& part) {
    expect_error([&] { scale_from_json(json::parse(text), 2, "FILE"); }, "FILE: " + part);
  };
  refused("{}", "expected an object with \"scaling\", got {}");
  refused(R"({"scaling": "x"})", "\"x\" is no finite number");
  refused(R"({"scaling": 0})", "scaling is 0");
  refused(R"({"scaling": 1, "mean": [1]})", "mean has not one value for each of 2 channels");
  refused(R"({"scaling": 1, "mean": [1, 2]})", "mean and std belong together");
  refused(R"({"scaling": 1, "mean": [1, 2], "std": [1, 0]})", "std 0 is not above 0");
}

// What a model sees by the definition.
std::vector<float> drawn(const LatentSource& source, int64_t image, bool mirrored, uint64_t seed,
                         uint64_t epoch) {
  const Values values = read(source, image, mirrored);
  std::vector<float> noise(kValues);
  fill_normal(noise, seed, static_cast<uint64_t>(image), 0x40000000 + epoch);
  std::vector<float> x;
  for (size_t i = 0; i < kValues; ++i)
    x.push_back((values.mean[i] + values.std[i] * noise[i] - static_cast<float>(source.info.scale.shift)) *
                static_cast<float>(source.info.scale.scaling));
  return x;
}

bool is_mirrored(int64_t image, uint64_t seed, uint64_t epoch) {
  float uniform = 0;
  fill_uniform({&uniform, 1}, seed, static_cast<uint64_t>(image), 0x80000000 + epoch);
  return uniform < 0.5f;
}

TEST(LatentDataset, DrawsFromThePosteriorAndScales) {
  const auto data = Dataset::load(latents_path("packed"), {});
  const LatentSource source = open("packed");
  ASSERT_NE(data->latents(), nullptr);
  EXPECT_EQ(data->channels(), 4);
  EXPECT_EQ(data->side(), 4);
  int mirrored = 0;
  for (int64_t i = 0; i < 12; ++i) {
    std::vector<float> x(kValues), flipped(kValues), again(kValues);
    data->read_values(i, {.seed = 7, .epoch = 3}, x.data());
    EXPECT_EQ(x, drawn(source, i, false, 7, 3));
    data->read_values(i, {.seed = 7, .place = 99, .epoch = 3, .flip = true}, flipped.data());
    EXPECT_EQ(flipped, drawn(source, i, is_mirrored(i, 7, 3), 7, 3));
    mirrored += is_mirrored(i, 7, 3);
    data->read_values(i, {.seed = 7, .epoch = 4}, again.data());
    EXPECT_NE(again, x);
  }
  EXPECT_GT(mirrored, 0);
  EXPECT_LT(mirrored, 12);
}

TEST(LatentDataset, IsTheSameWhateverTheBatch) {
  const auto data = Dataset::load(latents_path("packed"), {});
  std::vector<std::vector<float>> runs;
  for (const int batch : {2, 6, 12}) {
    Loader loader(*data, {.seed = 7, .global_batch = batch, .first = 0, .count = batch, .threads = 2}, 0);
    std::vector<float>& all = runs.emplace_back();
    for (int step = 0; step < 24 / batch; ++step) {
      const Batch part = loader.next();
      all.insert(all.end(), part.images.begin(), part.images.end());
    }
  }
  EXPECT_EQ(runs[0], runs[1]);
  EXPECT_EQ(runs[0], runs[2]);
  const size_t half = runs[0].size() / 2;  // the second epoch draws anew
  EXPECT_NE(std::vector<float>(runs[0].begin(), runs[0].begin() + half),
            std::vector<float>(runs[0].begin() + half, runs[0].end()));
}

TEST(LatentDataset, OfOneFlipWithoutASpreadIsTheSameInEveryEpoch) {
  const auto data = Dataset::load(latents_path("fastdit"), {});
  std::vector<float> x(kValues), again(kValues);
  data->read_values(4, {.seed = 1}, x.data());
  data->read_values(4, {.seed = 2, .epoch = 5, .flip = true}, again.data());
  EXPECT_EQ(x, again);
  EXPECT_EQ(x, read(open("fastdit"), 4).mean);
  ASSERT_EQ(data->notes().size(), 2u);
  EXPECT_NE(data->notes()[0].find("none is flipped"), std::string::npos);
  EXPECT_NE(data->notes()[1].find("nothing is drawn"), std::string::npos);
}

TEST(LatentDataset, HasTheLabelsOfTheModel) {
  const ModelClasses model{.names = {"e", "d", "c", "b", "a"}, .count = 5};
  const auto data = Dataset::load(latents_path("packed"), {.model = model});
  for (int64_t i = 0; i < 12; ++i) EXPECT_EQ(data->label(i), 4 - expected_label(static_cast<size_t>(i)));
  const ModelClasses other{.names = {"cat", "dog"}, .count = 2};
  expect_error([&] { Dataset::load(latents_path("packed"), {.model = other}); }, "are no class of the model");
}

TEST(LatentDataset, FingerprintIsThatOfValuesNamesAndLabelsWhereverTheyLie) {
  const std::string first = Dataset::load(latents_path("packed"), {})->fingerprint(2);
  EXPECT_EQ(first.size(), 64u);
  const LatentCopy set("packed");
  EXPECT_EQ(Dataset::load(set.path(), {})->fingerprint(1), first);
  set.edit_shard(
      1, [](auto&, TensorViews& tensors) { std::swap(tensors["mean"].data, tensors["logvar"].data); });
  EXPECT_NE(Dataset::load(set.path(), {})->fingerprint(1), first);
  const LatentCopy scaled("packed");
  for (int k = 0; k < 3; ++k)
    scaled.edit_shard(k, [](auto& metadata, auto&) { metadata["scaling_factor"] = "0.5"; });
  scaled.edit_index([](json& index) { index["scaling_factor"] = "0.5"; });
  EXPECT_NE(Dataset::load(scaled.path(), {})->fingerprint(1), first);
  for (const char* layout : {"fastdit", "repa", "mar", "lightningdit"}) {
    const LatentCopy copy(layout);
    EXPECT_EQ(Dataset::load(latents_path(layout), {})->fingerprint(1),
              Dataset::load(copy.path(), {})->fingerprint(2));
  }
}

TEST(LatentDataset, RefusesWhatDoesNotFit) {
  expect_error([] { Dataset::load(latents_path("packed"), {.side = 32}); },
               "holds latents of 4x4x4, 4x32x32 are wanted");
  expect_error([] { Dataset::load(latents_path("packed"), {.channels = 3}); },
               "take the latents that the model");
  expect_error([] { Dataset::load(latents_path("packed"), {.split = "train"}); },
               "holds latents, which have no --split");
  std::vector<uint8_t> bytes(kValues);
  expect_error([&] { Dataset::load(latents_path("packed"), {})->read(0, bytes); },
               "holds latents, images are wanted");
}

// The npy of float32 ones.
std::string npy(const std::string& shape, size_t count, const std::string& type = "<f4", float value = 1) {
  std::string header = "{'descr': '" + type + "', 'fortran_order': False, 'shape': " + shape + ", }";
  header.resize(117, ' ');
  std::string out("\x93NUMPY\x01\x00", 8);
  append_little<uint16_t>(out, 118);
  out += header + '\n';
  for (size_t i = 0; i < count; ++i) out.append(reinterpret_cast<const char*>(&value), sizeof(value));
  return out;
}

// What opening a changed copy says.
void expect_refused(const std::string& layout, const std::string& part,
                    const std::function<void(const LatentCopy&)>& change) {
  const LatentCopy set(layout);
  change(set);
  expect_error([&] { Dataset::load(set.path(), {}); }, part);
}

TEST(LatentRefusals, OfFastDitNameTheFile) {
  const std::string features = "imagenet256_features/", labels = "imagenet256_labels/";
  expect_refused("fastdit", "imagenet256_labels: is missing beside imagenet256_features",
                 [&](const LatentCopy& set) { fs::remove_all(set / labels); });
  expect_refused("fastdit", "imagenet256_labels: has no file that ends in .npy", [&](const LatentCopy& set) {
    fs::remove_all(set / labels);
    fs::create_directory(set / labels);
  });
  expect_refused("fastdit",
                 "imagenet256_labels/11.npy: is missing; features and labels are files of the same names",
                 [&](const LatentCopy& set) { fs::remove(set / (labels + "11.npy")); });
  expect_refused("fastdit", "imagenet256_features/9.npy: is missing",
                 [&](const LatentCopy& set) { fs::remove(set / (features + "9.npy")); });
  expect_refused("fastdit", "3.npy: shape (1, 4, 4, 4) of 4-byte numbers does not fit its",
                 [&](const LatentCopy& set) { fs::resize_file(set / (features + "3.npy"), 300); });
  expect_refused("fastdit", "3.npy: has the shape (1, 4, 8, 8), ",
                 [&](const LatentCopy& set) { set.write(features + "3.npy", npy("(1, 4, 8, 8)", 256)); });
  expect_refused("fastdit", "0.npy: has the shape (4, 4); (C, h, h) is wanted of a latent",
                 [&](const LatentCopy& set) { set.write(features + "0.npy", npy("(4, 4)", 16)); });
  expect_refused("fastdit", "0.npy: has the numpy type \"|O\"", [&](const LatentCopy& set) {
    set.write(features + "0.npy", npy("(1, 4, 4, 4)", 64, "|O"));
  });
  expect_refused(
      "fastdit", "0.npy: holds numbers of numpy type i4; latents are floating point",
      [&](const LatentCopy& set) { set.write(features + "0.npy", npy("(1, 4, 4, 4)", 64, "<i4")); });
  expect_refused("fastdit", "5.npy: holds (2) of numpy type f4; one whole number is wanted",
                 [&](const LatentCopy& set) { set.write(labels + "5.npy", npy("(2,)", 2)); });
  expect_refused("fastdit", "5.npy: its label 1065353216 is out of range, wanted 0 to 65535",
                 [&](const LatentCopy& set) { set.write(labels + "5.npy", npy("(1,)", 1, "<i4")); });
  expect_refused("fastdit", "has more than one pair of folders, a_features and imagenet256_features",
                 [&](const LatentCopy& set) {
                   fs::copy(set / features, set / "a_features", fs::copy_options::recursive);
                 });
}

TEST(LatentRefusals, OfValuesThatAreNotFiniteNameTheFile) {
  const LatentCopy set("fastdit");
  set.write("imagenet256_features/10.npy", npy("(1, 4, 4, 4)", 64, "<f4", NAN));
  const auto data = Dataset::load(set.path(), {});
  std::vector<float> x(kValues);
  expect_error([&] { data->read_values(2, {}, x.data()); }, "10.npy: its latent holds NaN or infinity");
  data->read_values(1, {}, x.data());
}

TEST(LatentRefusals, OfRepaNameTheFile) {
  const std::string list = "vae-sd/dataset.json";
  expect_refused("repa", "dataset.json: has no label of \"00000/img-mean-std-00000003.npy\"",
                 [&](const LatentCopy& set) {
                   set.write(list, R"({"labels": [["00000/img-mean-std-00000000.npy", 0],
                     ["00000/img-mean-std-00000001.npy", 1], ["00000/img-mean-std-00000002.npy", 1]]})");
                 });
  expect_refused("repa", "img-mean-std-00000002.npy: is missing, but dataset.json has its label",
                 [&](const LatentCopy& set) { fs::remove(set / "vae-sd/00000/img-mean-std-00000002.npy"); });
  expect_refused("repa", "has no list labels of [path, class]",
                 [&](const LatentCopy& set) { set.write(list, R"({"labels": null})"); });
  expect_refused("repa", "labels holds [\"a\",\"b\"]; [path, class] is wanted",
                 [&](const LatentCopy& set) { set.write(list, R"({"labels": [["a", "b"]]})"); });
  expect_refused("repa", "00000000.npy: has the shape (7, 4, 4); (2C, h, h) is wanted",
                 [&](const LatentCopy& set) {
                   set.write("vae-sd/00000/img-mean-std-00000000.npy", npy("(7, 4, 4)", 112));
                 });
}

TEST(LatentRefusals, OfMarNameTheFile) {
  expect_refused("mar", "0002.JPEG.npz: has no array \"moments\"; it is no file of MAR's latents",
                 [](const LatentCopy& set) {
                   set.write("class2/0002.JPEG.npz", test::build_zip({{"other.npy", npy("(8, 4, 4)", 128)}}));
                 });
  expect_refused("mar", "lies beside the class folders; CLASS/NAME.npz is wanted",
                 [](const LatentCopy& set) { fs::copy(set / "class2/0002.JPEG.npz", set / "stray.npz"); });
}

TEST(LatentRefusals, OfLightningDitNameTheFile) {
  const std::string file = "latents_rank01_shard000.safetensors";
  const auto edit = [&](const std::function<void(TensorViews&)>& change) {
    return [&, change](const LatentCopy& set) {
      SafetensorsFile read = read_safetensors(set / file);
      change(read.tensors);
      write_safetensors(set / file, read.tensors, {});
    };
  };
  expect_refused("lightningdit", "latents_stats.pt: is missing; LightningDiT's latents are normalised",
                 [](const LatentCopy& set) { fs::remove(set / "latents_stats.pt"); });
  expect_refused("lightningdit", "has no tensor \"latents_flip\"; LightningDiT's files of latents",
                 edit([](TensorViews& tensors) { tensors.erase("latents_flip"); }));
  expect_refused("lightningdit", "latents_flip F32 (6, 4, 2, 2); both (n, C, h, h)",
                 edit([](TensorViews& tensors) {
                   tensors["latents_flip"].shape = {6, 4, 2, 2};
                 }));
  expect_refused("lightningdit",
                 "has latents of 4x2x2 F32, the files before of 4x4x4 F32; one size is wanted",
                 edit([](TensorViews& tensors) {
                   tensors["latents"].shape = tensors["latents_flip"].shape = {6, 4, 2, 2};
                 }));
  expect_refused("lightningdit", "has latents of (4, 2, 4); (C, h, h) is wanted",
                 edit([](TensorViews& tensors) {
                   tensors["latents"].shape = tensors["latents_flip"].shape = {6, 4, 2, 4};
                 }));
  expect_refused("lightningdit", "labels are I64 (3); I64 (6) is wanted",
                 edit([](TensorViews& tensors) { tensors["labels"].shape = {3}; }));
}

TEST(LatentRefusals, OfPackedShardsNameTheFile) {
  expect_refused("packed",
                 "set: is not finished: it has 3 shards, but no latents.json; run dydit latents again",
                 [](const LatentCopy& set) { fs::remove(set / kLatentsIndexName); });
  expect_refused("packed", "latents-00001-of-00003.safetensors: is missing, but latents.json lists it",
                 [](const LatentCopy& set) { fs::remove(set.shard(1)); });
  expect_refused("packed", "latents-00001-of-00003.safetensors: has the SHA-256", [](const LatentCopy& set) {
    std::string bytes = test::contents(set.shard(1));
    bytes.back() ^= 1;
    set.write(set.shard(1).filename().string(), bytes);
  });
  expect_refused("packed",
                 "latents-00002-of-00003.safetensors: has latents of 4x2x2 F16, the files before of 4x4x4",
                 [](const LatentCopy& set) {
                   set.edit_shard(2, [](auto&, TensorViews& tensors) {
                     tensors["mean"].shape = tensors["logvar"].shape = {2, 2, 4, 2, 2};
                   });
                 });
  expect_refused("packed", "of the shards some have logvar and some do not", [](const LatentCopy& set) {
    set.edit_shard(2, [](auto&, TensorViews& tensors) { tensors.erase("logvar"); });
  });
  expect_refused("packed", "image 10: has no label (-1); training wants one of every image",
                 [](const LatentCopy& set) {
                   set.edit_shard(2, [](auto&, TensorViews& tensors) {
                     static const int64_t labels[] = {-1, 0};
                     tensors["labels"].data = reinterpret_cast<const std::byte*>(labels);
                   });
                 });
  expect_refused("packed", "latents.json: label 4 of 2 classes", [](const LatentCopy& set) {
    for (int k = 0; k < 3; ++k)
      set.edit_shard(k, [](auto& metadata, auto&) { metadata["class_names"] = R"(["a","b"])"; });
    set.edit_index([](json& index) { index["class_names"] = R"(["a","b"])"; });
  });
}

TEST(LatentRefusals, OfImagesThatShouldBeLatentsTellTheWayOut) {
  const test::TemporaryFolder folder;
  fs::create_directories(folder / "cat");
  expect_error([&] { Dataset::load(folder / "", {.channels = 4}); },
               "4 are those of latents, which dydit latents makes");
}

}  // namespace
}  // namespace dydit
