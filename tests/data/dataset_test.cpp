// Data sets of every kind of path: labels, order, crops and each way in which a path can be wrong.
#include "dydit/data/dataset.h"

#include <chrono>
#include <functional>

#include <gtest/gtest.h>

#include "dydit/data/crop.h"
#include "tests/support/datasets.h"
#include "tests/support/shared.h"

namespace dydit {
namespace {

namespace fs = std::filesystem;
using test::below;
using test::expect_error;
using test::expect_small_set;
using test::plain_image;
using test::png;
using test::png_bytes;
using test::read;
using test::small_set;
using test::TarEntry;
using test::TemporaryFolder;
using test::write_file;
using test::write_folder;

// The Error of the same entries as a folder and as a tar; both must say `part`.
void expect_refused(const std::vector<TarEntry>& entries, const std::string& part,
                    const DatasetOptions& options = {}) {
  TemporaryFolder folder;
  write_folder(folder / "set", entries);
  expect_error([&] { Dataset::load(folder / "set", options); }, part);
  write_file(folder / "set.tar", test::build_tar(entries));
  expect_error([&] { Dataset::load(folder / "set.tar", options); }, part);
}

TEST(Dataset, FolderTarAndTarGzAreTheSameSet) {
  TemporaryFolder folder;
  write_folder(folder / "set", small_set());
  write_file(folder / "set.tar", test::build_tar(small_set()));
  write_file(folder / "named_otherwise", test::gzipped(test::build_tar(below("./", small_set()))));
  for (const char* name : {"set", "set.tar", "named_otherwise"})
    expect_small_set(*Dataset::load(folder / name, {}));
}

TEST(Dataset, WithoutCacheGivesTheSameImages) {
  TemporaryFolder folder;
  write_folder(folder / "set", small_set());
  write_file(folder / "set.tgz", test::gzipped(test::build_tar(small_set())));
  for (const char* name : {"set", "set.tgz"}) {
    expect_small_set(*Dataset::load(folder / name, {.cache_bytes = 47}));
    expect_small_set(*Dataset::load(folder / name, {.skip_broken = true, .cache_bytes = 0, .threads = 3}));
  }
}

TEST(Dataset, OneLeadingFolderIsPassed) {
  TemporaryFolder folder;
  write_folder(folder / "set", below("lead/", small_set()));
  write_file(folder / "set.tar", test::build_tar(below("lead/", small_set())));
  expect_small_set(*Dataset::load(folder / "set", {}));
  expect_small_set(*Dataset::load(folder / "set.tar", {}));
}

TEST(Dataset, SplitNamesAFolderAlsoBelowALeadingOne) {
  for (const std::string lead : {"", "lead/"}) {
    std::vector<TarEntry> entries = below(lead + "train/", small_set());
    entries.push_back({lead + "test/c/1.png", png(9)});
    TemporaryFolder folder;
    write_folder(folder / "set", entries);
    write_file(folder / "set.tar", test::build_tar(entries));
    expect_small_set(*Dataset::load(folder / "set", {.split = "train"}));
    expect_small_set(*Dataset::load(folder / "set.tar", {.split = "train"}));
    expect_refused(entries, "has no folder \"val\" for --split; it has: test, train", {.split = "val"});
    expect_refused(entries, "name one with --split: test, train");
  }
}

TEST(Dataset, LastOfTwoTarMembersOfOneNameCounts) {
  TemporaryFolder folder;
  std::vector<TarEntry> entries = small_set();
  entries.insert(entries.begin(), {"a/1.png", png(99)});
  write_file(folder / "set.tar", test::build_tar(entries));
  expect_small_set(*Dataset::load(folder / "set.tar", {}));
}

TEST(Dataset, PathsThatLeaveTheTarAreHarmless) {
  TemporaryFolder folder;
  std::vector<TarEntry> entries = small_set();
  entries.push_back({"../../evil/x.png", png(9)});
  entries.push_back({"a/../../x.png", png(9)});
  write_file(folder / "set.tar", test::build_tar(entries));
  expect_small_set(*Dataset::load(folder / "set.tar", {}));
  EXPECT_EQ(folder.file_count(), 1u);
}

TEST(Dataset, DeepPathsInATarAreHarmless) {
  TemporaryFolder folder;
  std::string deep;
  for (int i = 0; i < 100'000; ++i) deep += "d/";
  std::vector<TarEntry> entries = small_set();
  entries.insert(entries.begin(), {{"long", deep + "x.png" + '\0', 'L'}, {"x", png(9)}});
  write_file(folder / "set.tar", test::build_tar(entries));
  expect_small_set(*Dataset::load(folder / "set.tar", {}));
}

TEST(Dataset, ChannelsAreConverted) {
  TemporaryFolder folder;
  write_folder(folder / "set",
               {{"a/1.png", png(7, 2, 1)},
                {"b/1.png", png_bytes({2, 2, 3, {255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9}})}});
  const auto gray = Dataset::load(folder / "set", {.channels = 1});
  EXPECT_EQ(read(*gray, 1), (std::vector<uint8_t>{76, 150, 29, 9}));
  const auto rgb = Dataset::load(folder / "set", {.channels = 3});
  EXPECT_EQ(read(*rgb, 0), std::vector<uint8_t>(12, 7));
  EXPECT_EQ(read(*rgb, 1), (std::vector<uint8_t>{255, 0, 0, 9, 0, 255, 0, 9, 0, 0, 255, 9}));  // planes
}

TEST(Dataset, JpegIsTakenByItsContentWhateverItsName) {
  TemporaryFolder folder;
  write_folder(folder / "set", {{"a/1.png", test::recorded("file_jpeg_rgb")}, {"b/1.JPEG", png(7)}});
  EXPECT_EQ(Dataset::load(folder / "set", {.side = 8})->size(), 2);
}

TEST(Dataset, MissingPathIsNamed) {
  expect_error([] { Dataset::load("/nonexistent/set", {}); }, "/nonexistent/set: no such file or folder");
}

TEST(Dataset, EmptyClassFolderIsNamed) {
  std::vector<TarEntry> entries = small_set();
  entries.push_back({"c/", "", '5'});
  expect_refused(entries, "class folder \"c\" has no .png, .jpg or .jpeg file (0 other files)");
}

TEST(Dataset, ClassFolderWithoutImagesIsNamed) {
  std::vector<TarEntry> entries = small_set();
  entries.push_back({"c/x.webp", "x"});
  expect_refused(entries, "class folder \"c\" has no .png, .jpg or .jpeg file (1 other files)");
}

TEST(Dataset, OneClassOnlyIsRefused) {
  expect_refused({{"a/1.png", png(1)}, {"a/2.png", png(2)}}, "images of one class only");
}

TEST(Dataset, NoClassFoldersIsRefused) {
  expect_refused({{"1.png", png(1)}, {"2.png", png(2)}}, "has no class folders");
}

TEST(Dataset, BrokenImageIsNamedTheFirstByOrderWhateverTheThreads) {
  std::vector<TarEntry> entries = small_set();
  for (int i = 0; i < 40; ++i)
    entries.push_back({fmt::format("c/{:02}.png", i), i < 5 ? png(1) : "no image"});
  for (const int threads : {1, 4}) {
    expect_refused(entries, "c/05.png: is neither PNG nor JPEG", {.threads = threads});
  }
}

TEST(Dataset, BrokenImageIsNamedWhenReadIfNothingIsKept) {
  TemporaryFolder folder;
  std::vector<TarEntry> entries = small_set();
  entries.push_back({"b/z.png", png(1).substr(0, 50)});
  write_folder(folder / "set", entries);
  const auto data = Dataset::load(folder / "set", {.cache_bytes = 0});
  EXPECT_EQ(data->size(), 5);
  expect_error([&] { read(*data, 4); }, "b/z.png: broken PNG file");
}

TEST(Dataset, SkipBrokenLeavesThemOutAndCounts) {
  TemporaryFolder folder;
  std::vector<TarEntry> entries = small_set();
  entries.push_back({"a/0.png", "no image"});
  entries.push_back({"b/x2.png", ""});
  write_folder(folder / "set", entries);
  for (const int64_t cache : {0, 1 << 20}) {
    const auto data =
        Dataset::load(folder / "set", {.skip_broken = true, .cache_bytes = cache, .threads = 2});
    EXPECT_EQ(data->skipped(), 2);
    expect_small_set(*data);
  }
}

TEST(Dataset, ClassOfBrokenImagesAloneIsAnErrorEvenWithSkipBroken) {
  std::vector<TarEntry> entries = small_set();
  entries.push_back({"c/0.png", "no image"});
  expect_refused(entries, "all 1 images of class \"c\" are broken", {.skip_broken = true});
}

TEST(Dataset, UnreadableFileIsNamed) {
  TemporaryFolder folder;
  write_folder(folder / "set", small_set());
  fs::create_symlink("/nonexistent/x.png", folder / "set" / "a" / "0.png");
  expect_error([&] { Dataset::load(folder / "set", {}); }, "a/0.png: cannot open: No such file");
}

TEST(Dataset, UnknownFileKindIsRefused) {
  TemporaryFolder folder;
  write_file(folder / "x.txt", "just text");
  expect_error([&] { Dataset::load(folder / "x.txt", {}); }, "x.txt: is a text of 9 bytes, not a data set");
  write_file(folder / "x.gz", test::gzipped("just text"));
  expect_error([&] { Dataset::load(folder / "x.gz", {}); }, "is gzip, but unpacks to no tar");
}

TEST(Dataset, TruncatedTarIsRefused) {
  TemporaryFolder folder;
  const std::string tar = test::build_tar(small_set());
  write_file(folder / "x.tar", tar.substr(0, 1600));
  expect_error([&] { Dataset::load(folder / "x.tar", {}); }, "damaged tar file");
  const std::string packed = test::gzipped(tar);
  write_file(folder / "x.tar.gz", packed.substr(0, packed.size() / 2));
  expect_error([&] { Dataset::load(folder / "x.tar.gz", {}); }, "damaged gzip file: it ends too early");
}

TEST(Dataset, OptionsOutOfRangeAreUsageErrors) {
  EXPECT_THROW(Dataset::load("x", {.side = -1}), UsageError);
  EXPECT_THROW(Dataset::load("x", {.channels = 2}), UsageError);
}

// Records of one value: label l has all bytes 100 + l in red, 50 in green, 0 in blue.
std::string cifar(const std::vector<int>& labels) {
  std::string out;
  for (const int label : labels) {
    out += static_cast<char>(label);
    out += std::string(1024, static_cast<char>(100 + label)) + std::string(1024, '\x32') +
           std::string(1024, '\0');
  }
  return out;
}

std::vector<TarEntry> cifar_files() {
  return {{"cifar-10-batches-bin/data_batch_1.bin", cifar({3, 9})},
          {"cifar-10-batches-bin/data_batch_2.bin", cifar({0})},
          {"cifar-10-batches-bin/test_batch.bin", cifar({5, 6})},
          {"cifar-10-batches-bin/batches.meta.txt",
           "airplane\nautomobile\nbird\ncat\ndeer\ndog\nfrog\nhorse\nship\ntruck\n\n"},
          {"cifar-10-batches-bin/readme.html", "<html>"}};
}

TEST(CifarBinary, FolderTarAndSingleFileAreRead) {
  TemporaryFolder folder;
  write_folder(folder / "set", cifar_files());
  write_file(folder / "set.tar.gz", test::gzipped(test::build_tar(cifar_files())));
  for (const auto& path : {folder / "set", folder / "set" / "cifar-10-batches-bin", folder / "set.tar.gz"}) {
    const auto data = Dataset::load(path, {});
    EXPECT_EQ(data->class_names()[3], "cat");
    ASSERT_EQ(data->size(), 3);
    EXPECT_EQ(data->label(2), 0);
    const std::vector<uint8_t> image = read(*data, 1);
    EXPECT_EQ(image.front(), 109);
    EXPECT_EQ(image[1024], 50);
    EXPECT_EQ(image.back(), 0);
    const auto test = Dataset::load(path, {.split = "test"});
    EXPECT_EQ(test->size(), 2);
    EXPECT_EQ(test->label(0), 5);
  }
  EXPECT_EQ(Dataset::load(folder / "set" / "cifar-10-batches-bin" / "data_batch_1.bin", {})->size(), 2);
}

TEST(CifarBinary, WrongSizesLabelsAndSplitsAreRefused) {
  TemporaryFolder folder;
  write_file(folder / "x.bin", cifar({1, 2}) + "x");
  expect_error([&] { Dataset::load(folder / "x.bin", {}); },
               "6147 bytes are no whole number of CIFAR-10 records");
  write_file(folder / "y.bin", cifar({1, 10}));
  expect_error([&] { Dataset::load(folder / "y.bin", {}); }, "record 1 has the label 10, wanted 0 to 9");
  write_folder(folder / "set", cifar_files());
  expect_error([&] { Dataset::load(folder / "set", {.split = "val"}); }, "CIFAR-10 has no split \"val\"");
}

std::string npz(const std::string& images, const std::string& labels, const char* first = "images.npy",
                const char* second = "labels.npy") {
  return test::build_zip({{first, images}, test::deflated_member(second, labels)});
}

TEST(NpzDataset, GrayAndRgbAreReadUnderBothNames) {
  TemporaryFolder folder;
  const std::string labels = test::npy("<i8", "(2,)", test::numbers({2, 0}));
  write_file(folder / "gray.npz", npz(test::npy("|u1", "(2, 2, 2)", "abcdefgh"), labels));
  const auto gray = Dataset::load(folder / "gray.npz", {});
  EXPECT_EQ(gray->channels(), 1);
  EXPECT_EQ(gray->label(0), 2);
  EXPECT_EQ(gray->class_names().size(), 3u);
  EXPECT_EQ(read(*gray, 1), (std::vector<uint8_t>{'e', 'f', 'g', 'h'}));
  write_file(folder / "rgb.npz",
             npz(test::npy("|u1", "(2, 1, 1, 3)", "abcdef"), labels, "arr_0.npy", "arr_1.npy"));
  EXPECT_EQ(read(*Dataset::load(folder / "rgb.npz", {}), 1), (std::vector<uint8_t>{'d', 'e', 'f'}));
}

TEST(NpzDataset, EveryIntegerTypeIsALabel) {
  TemporaryFolder folder;
  const std::string images = test::npy("|u1", "(2, 1, 1)", "ab");
  const std::vector<std::pair<std::string, std::string>> types = {
      {"|u1", std::string("\0\x03", 2)},
      {"|i1", std::string("\0\x03", 2)},
      {"<i2", std::string("\0\0\x03\0", 4)},
      {"<u4", std::string("\0\0\0\0\x03\0\0\0", 8)}};
  for (const auto& [type, bytes] : types) {
    write_file(folder / "x.npz", npz(images, test::npy(type, "(2,)", bytes)));
    EXPECT_EQ(Dataset::load(folder / "x.npz", {})->label(1), 3) << type;
  }
}

TEST(NpzDataset, WrongSizesAndLabelsAreRefused) {
  TemporaryFolder folder;
  const std::string images = test::npy("|u1", "(2, 1, 1)", "ab");
  const auto refuse = [&](const std::string& file, const std::string& part) {
    write_file(folder / "x.npz", file);
    expect_error([&] { Dataset::load(folder / "x.npz", {}); }, part);
  };
  const auto labels = [](std::vector<int64_t> values) {
    return test::npy("<i8", fmt::format("({},)", values.size()), test::numbers(values));
  };
  refuse(npz(images, labels({0, 1, 2})), "labels are (3) of numpy type i8; (2) integers are wanted");
  refuse(npz(images, labels({0, -1})), "label -1 of image 1 is out of range");
  refuse(npz(images, labels({0, 1 << 20})), "label 1048576 of image 1 is out of range");
  refuse(npz(images, labels({1, 1})), "images of one class only");
  refuse(npz(test::npy("|u1", "(2, 1, 1, 4)", "abcdefgh"), labels({0, 1})), "images are (2, 1, 1, 4)");
  refuse(npz(test::npy("<f4", "(1, 1, 1)", "abcd"), labels({0})), "of numpy type f4");
  refuse(npz(images, labels({0, 1}), "pictures.npy"), "has neither an array \"images\" nor \"arr_0\"");
}

TEST(CenterCrop, EqualsPil) {
  const std::vector<std::array<int, 4>> cases = {{40, 30, 3, 16}, {100, 70, 3, 16}, {33, 64, 3, 32},
                                                 {20, 50, 3, 32}, {37, 37, 3, 24},  {5, 9, 3, 8},
                                                 {64, 64, 1, 16}, {31, 90, 1, 20},  {45, 30, 3, 20}};
  for (const auto& [height, width, channels, side] : cases) {
    const Image crop = center_crop(test::noise_image(height, width, channels), side);
    const std::string name = fmt::format("crop_{}x{}x{}_{}", height, width, channels, side);
    EXPECT_EQ(std::string(crop.pixels.begin(), crop.pixels.end()), test::recorded(name)) << name;
  }
}

TEST(CenterCrop, LongThinImageNeedsLittleMemory) {
  const Image crop = center_crop(test::noise_image(1, 60'000, 1), 256);
  EXPECT_EQ(crop.pixels.size(), 256u * 256u);
}

// The real sets, where they are.
TEST(RealData, Cifar10HasItsClassesInOrder) {
  const fs::path path = test::shared_path("data/cifar10.tar.gz");
  SKIP_WITHOUT(path);
  const auto data = Dataset::load(path, {.split = "train", .threads = 2});
  EXPECT_EQ(data->class_names(), (std::vector<std::string>{"airplane", "automobile", "bird", "cat", "deer",
                                                           "dog", "frog", "horse", "ship", "truck"}));
  EXPECT_EQ(data->side(), 32);
  EXPECT_EQ(data->channels(), 3);
  ASSERT_EQ(data->size(), 50'000);
  for (int64_t i = 0; i < data->size(); i += 999) EXPECT_EQ(data->label(i), i / 5000);
}

TEST(RealData, FlowersHaveFiveClassesWithoutDotFiles) {
  const fs::path path = test::shared_path("data/flowers128.tar.gz");
  SKIP_WITHOUT(path);
  const auto data = Dataset::load(path, {.side = 64, .threads = 2});
  EXPECT_EQ(data->class_names(),
            (std::vector<std::string>{"daisy", "dandelion", "rose", "sunflower", "tulip"}));
  EXPECT_EQ(data->size(), 4317);
  EXPECT_EQ(data->skipped(), 0);
}

}  // namespace
}  // namespace dydit
