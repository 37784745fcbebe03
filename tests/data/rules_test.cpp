// The rules of docs/formats.md for what lies about in data sets: what is read, what is left out and said, and
// that no single picture decides for all.
#include <algorithm>

#include <gtest/gtest.h>

#include "tests/support/datasets.h"

namespace dydit {
namespace {

namespace fs = std::filesystem;
using test::below;
using test::expect_error;
using test::expect_small_set;
using test::png;
using test::png_bytes;
using test::read;
using test::small_set;
using test::TarEntry;
using test::TemporaryFolder;
using test::write_file;
using test::write_folder;

bool mentions(const std::vector<std::string>& lines, const std::string& part) {
  return std::any_of(lines.begin(), lines.end(),
                     [&](const std::string& line) { return line.find(part) != line.npos; });
}

std::string zip_of(const std::vector<TarEntry>& entries, bool deflated) {
  std::vector<test::ZipMember> members;
  for (const TarEntry& entry : entries) {
    members.push_back(deflated ? test::deflated_member(entry.name, entry.bytes)
                               : test::ZipMember{entry.name, entry.bytes});
  }
  return test::build_zip(members);
}

// What `look` says of the same entries as a folder, a tar and a zip.
void each_form(const std::vector<TarEntry>& entries, const DatasetOptions& options,
               const std::function<void(const Dataset&)>& look) {
  TemporaryFolder folder;
  write_folder(folder / "set", entries);
  write_file(folder / "set.tar", test::build_tar(entries));
  write_file(folder / "set.zip", zip_of(entries, /*deflated=*/true));
  for (const char* name : {"set", "set.tar", "set.zip"}) {
    SCOPED_TRACE(name);
    look(*Dataset::load(folder / name, options));
  }
}

std::string summary_of(const std::vector<TarEntry>& more) {
  std::vector<TarEntry> entries = small_set();
  entries.insert(entries.end(), more.begin(), more.end());
  std::string said;
  each_form(entries, {}, [&](const Dataset& data) {
    expect_small_set(data);
    said = data.left_out().summary();
  });
  return said;
}

TEST(LeftOut, OtherFormatsAreCountedByTheirExtension) {
  EXPECT_EQ(summary_of({}), "1 .txt");
  EXPECT_EQ(summary_of(
                {{"a/1.webp", "x"}, {"a/2.WEBP", "x"}, {"b/1.bmp", "x"}, {"b/2.tiff", "x"}, {"b/none", "x"}}),
            "2 .webp, 1 .bmp, 1 .tiff, 1 .txt, 1 other file");
}

TEST(LeftOut, FilesBesideTheClassFoldersAreCounted) {
  EXPECT_EQ(summary_of({{"cover.png", "x"}, {"LICENSE", "x"}, {"a b.c d", "x"}}),
            "2 other files, 1 .txt, 1 beside the class folders");
}

TEST(LeftOut, WhatSystemsLeaveAboutIsHidden) {
  std::vector<TarEntry> entries = small_set();
  entries.push_back({"a/Thumbs.db", "x"});
  entries.push_back({"a/@eaDir/1.png/SYNOPHOTO_THUMB_M.jpg", "x"});
  each_form(entries, {}, [](const Dataset& data) {
    expect_small_set(data);
    EXPECT_EQ(data.left_out().summary(), "1 .txt");
    EXPECT_GE(data.left_out().hidden, 6);
  });
}

TEST(LeftOut, ManyKindsAreSummedUp) {
  std::vector<TarEntry> more;
  for (char c = 'a'; c < 'n'; ++c) more.push_back({fmt::format("a/{0}.x{0}", c), "x"});
  EXPECT_NE(summary_of(more).find("6 of other kinds"), std::string::npos) << summary_of(more);
}

TEST(ClassFolders, PicturesBelowAClassBelongToIt) {
  std::vector<TarEntry> entries = small_set();
  entries.push_back({"a/2020/01/z.png", png(55)});
  entries.push_back({"a/0.png/real.png", png(56)});  // a folder with an image's name
  each_form(entries, {}, [](const Dataset& data) {
    ASSERT_EQ(data.size(), 6);
    for (int i = 0; i < 4; ++i) EXPECT_EQ(data.label(i), 0);
    EXPECT_EQ(read(data, 0)[0], 0);   // the folder's own come first
    EXPECT_EQ(read(data, 2)[0], 56);  // then those of its folders
    EXPECT_TRUE(mentions(data.notes(), "2 of 6 lie in folders below their class"));
  });
}

TEST(ClassFolders, AClassWithPicturesBelowAloneIsRefused) {
  std::vector<TarEntry> entries = small_set();
  entries.push_back({"c/deep/er/1.png", png(1)});
  TemporaryFolder folder;
  write_folder(folder / "set", entries);
  expect_error([&] { Dataset::load(folder / "set", {}); }, "images lie too deep, in folders of \"c\"");
}

TEST(ClassFolders, FoldersThatStandAloneAreWalkedDown) {
  const std::string deep = "home/me/data/flowers/";
  each_form(below(deep, small_set()), {}, [](const Dataset& data) {
    expect_small_set(data);
    EXPECT_TRUE(mentions(data.notes(), "lie in home/me/data/flowers"));
  });
  std::vector<TarEntry> split = below(deep + "train/images/", small_set());
  split.push_back({deep + "test/images/c/1.png", png(9)});
  each_form(split, {.split = "train"}, [](const Dataset& data) { expect_small_set(data); });
}

TEST(ClassFolders, NamesThatAreNoUtf8AreRefusedBeforeAnythingIsDecoded) {
  for (const std::string name : {"caf\xE9", "a\x1b[2J", "two\nlines"}) {
    std::vector<TarEntry> entries = small_set();
    entries.push_back({name + "/1.png", "no image"});
    TemporaryFolder folder;
    write_folder(folder / "set", entries);
    write_file(folder / "set.tar", test::build_tar(entries));
    write_file(folder / "set.zip", zip_of(entries, /*deflated=*/false));
    for (const char* form : {"set", "set.tar", "set.zip"})
      expect_error([&] { Dataset::load(folder / form, {}); }, "the name of class folder \"");
  }
}

TEST(ClassFolders, ASplitIsFoundInAnyFormOfUnicode) {
  TemporaryFolder folder;
  write_folder(folder / "set", below("e\u0301te\u0301/", small_set()));
  expect_small_set(*Dataset::load(folder / "set", {.split = "\u00E9t\u00E9"}));
}

TEST(ClassFolders, TwinsAreWarnedOf) {
  std::vector<TarEntry> entries = small_set();
  entries.push_back({"\u00E9/1.png", png(1)});
  entries.push_back({"e\u0301/1.png", png(1)});
  each_form(entries, {}, [](const Dataset& data) {
    EXPECT_EQ(data.class_names().size(), 4u);
    EXPECT_TRUE(mentions(data.warnings(), "look the same"));
  });
}

TEST(Links, OfATarAreTheFilesTheyLeadTo) {
  std::vector<TarEntry> entries = small_set();
  entries.push_back({"a/3.png", "", '1', "b/x.png"});       // a hard link names a member
  entries.push_back({"a/4.png", "", '2', "../b/./x.png"});  // a symbolic one starts at its folder
  entries.push_back({"a/5.png", "", '2', "4.png"});         // through another
  entries.push_back({"a/6.png", "", '2', "/etc/passwd"});   // outside
  entries.push_back({"a/7.png", "", '2', "7.png"});         // to itself
  TemporaryFolder folder;
  write_file(folder / "set.tar", test::build_tar(entries));
  const auto data = Dataset::load(folder / "set.tar", {});
  ASSERT_EQ(data->size(), 7);
  for (int i = 2; i < 5; ++i) EXPECT_EQ(read(*data, i)[0], 10);
  EXPECT_EQ(data->left_out().summary(), "2 links, 1 .txt");
}

TEST(Links, ToAFolderAboveAreNotFollowedForEver) {
  TemporaryFolder folder;
  write_folder(folder / "set", small_set());
  fs::create_directory_symlink(folder / "set", folder / "set" / "a" / "up");
  fs::create_directory_symlink("../b", folder / "set" / "a" / "more");
  const auto data = Dataset::load(folder / "set", {});
  EXPECT_EQ(data->size(), 6);
  EXPECT_EQ(data->left_out().summary(), "1 .txt, 1 link");
}

TEST(ZipDataset, StoredAndDeflatedMembersAreRead) {
  TemporaryFolder folder;
  write_file(folder / "stored.zip", zip_of(below("d/", small_set()), /*deflated=*/false));
  write_file(folder / "named_otherwise", zip_of(small_set(), /*deflated=*/true));
  expect_small_set(*Dataset::load(folder / "stored.zip", {}));
  expect_small_set(*Dataset::load(folder / "named_otherwise", {.cache_bytes = 0, .threads = 2}));
}

TEST(ZipDataset, MembersThatAreNotReadSaySo) {
  TemporaryFolder folder;
  const auto refuse = [&](const test::ZipMember& member, const std::string& part) {
    write_file(folder / "x.zip", test::build_zip({{"a/1.png", png(1)}, {"b/1.png", png(2)}, member}));
    expect_error([&] { Dataset::load(folder / "x.zip", {.side = 2}); }, part);
  };
  refuse({"a/2.png", "packed", 12, 100},
         "x.zip: a/2.png: is packed in a way that is not read (zip method 12)");
  refuse({"a/2.png", "packed", 8, uint64_t{1} << 31}, "a/2.png: unpacks to 2147483648 bytes");
  refuse({"a/2.png", ""}, "a/2.png: is empty");
}

TEST(OtherKinds, AreCalledWhatTheyAre) {
  TemporaryFolder folder;
  const auto refuse = [&](const std::string& name, const std::string& bytes, const std::string& part) {
    write_file(folder / name, bytes);
    expect_error([&] { Dataset::load(folder / name, {.split = "train"}); }, part);
  };
  refuse("a.tar", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer");
  refuse("b.tar", "<!DOCTYPE html><html>", "web page");
  refuse("c.tar.xz", std::string("\xfd\x37zXZ\0\0", 7), "an xz file, not a data set");
  refuse("d.png", png(1), "a PNG image, not a data set");
  refuse("e.npy", std::string("\x93NUMPY\x01\0", 8), "a numpy array (.npy)");
  refuse("f.parquet", "PAR1....", "a Parquet table");
}

TEST(OtherKinds, InsideAFolderAreNamed) {
  TemporaryFolder folder;
  const std::string pickle =
      "\x80\x02}q\x01(U\x0b"
      "batch_labelq\x02U\x01"
      "1u.";
  write_file(folder / "py/cifar-10-batches-py/data_batch_1", pickle);
  expect_error([&] { Dataset::load(folder / "py", {}); },
               "; data_batch_1 is a batch of CIFAR as a Python pickle");
  write_file(folder / "flat/data_batch_1", pickle);
  expect_error([&] { Dataset::load(folder / "flat", {}); }, "fetch the binary version");
  write_file(folder / "table/train-00000.parquet", "PAR1....");
  expect_error([&] { Dataset::load(folder / "table", {}); }, "train-00000.parquet is a Parquet table");
  write_file(folder / "shard.tar",
             test::build_tar({{"0.jpg", "x"}, {"0.cls", "3"}, {"1.jpg", "x"}, {"1.cls", "4"}}));
  expect_error([&] { Dataset::load(folder / "shard.tar", {}); },
               "2 images with their labels in files beside them");
  write_folder(folder / "loose", {{"1.png", png(1)}, {"2.png", png(2)}});
  expect_error([&] { Dataset::load(folder / "loose", {}); }, "has no class folders, but 2 images");
  write_file(folder / "c100/train.bin", std::string(3074, '\0'));
  expect_error([&] { Dataset::load(folder / "c100/train.bin", {}); }, "holds records of CIFAR-100");
}

std::vector<TarEntry> pictures(int gray, int colour) {
  std::vector<TarEntry> entries;
  for (int i = 0; i < gray; ++i) entries.push_back({fmt::format("a/{}.png", i), png(1, 2, 1)});
  for (int i = 0; i < colour; ++i) entries.push_back({fmt::format("b/{}.png", i), png(2, 2, 3)});
  return entries;
}

TEST(Channels, AreThoseOfMostPictures) {
  each_form(pictures(1, 5), {}, [](const Dataset& data) {
    EXPECT_EQ(data.channels(), 3);
    EXPECT_TRUE(mentions(data.notes(), "1 of 6 images are gray, made RGB"));
  });
  each_form(pictures(5, 1), {}, [](const Dataset& data) {
    EXPECT_EQ(data.channels(), 1);
    EXPECT_TRUE(mentions(data.notes(), "1 of 6 images are in colour, made gray"));
  });
  each_form(pictures(2, 2), {}, [](const Dataset& data) { EXPECT_EQ(data.channels(), 3); });
}

TEST(Channels, OfAModelCount) {
  each_form(pictures(1, 2), {.channels = 1}, [](const Dataset& data) {
    EXPECT_EQ(data.channels(), 1);
    EXPECT_TRUE(mentions(data.notes(), "2 of 3 images are in colour, made gray"));
  });
}

TEST(Channels, AlphaThatIsDroppedIsTold) {
  std::vector<TarEntry> entries = small_set();
  entries.push_back({"a/9.png", test::recorded("file_png_rgba")});
  each_form(entries, {.side = 2}, [](const Dataset& data) {
    EXPECT_TRUE(mentions(data.notes(), "1 of 5 images lose their alpha"));
  });
}

std::vector<TarEntry> sized(const std::vector<std::pair<int, int>>& sizes) {
  std::vector<TarEntry> entries;
  for (size_t i = 0; i < sizes.size(); ++i) {
    const auto [width, height] = sizes[i];
    const auto bytes = static_cast<size_t>(width * height * 3);
    entries.push_back({fmt::format("{}/{}.png", i % 2 == 0 ? "a" : "b", i),
                       png_bytes({height, width, 3, std::vector<uint8_t>(bytes)})});
  }
  return entries;
}

TEST(Side, IsThatOfMoreThanHalfOfThePictures) {
  each_form(sized({{9, 5}, {4, 4}, {4, 4}, {4, 4}, {3, 3}}), {}, [](const Dataset& data) {
    EXPECT_EQ(data.side(), 4);
    EXPECT_TRUE(mentions(data.notes(), "2 of 5 images have another size, cropped to 4x4"));
    EXPECT_TRUE(mentions(data.notes(), "1 of 5 images are smaller than 4x4, enlarged"));
  });
}

TEST(Side, IsAskedForWithoutAMajorityOrASquare) {
  TemporaryFolder folder;
  const auto refuse = [&](const std::vector<std::pair<int, int>>& sizes, const std::string& part) {
    write_file(folder / "x.tar", test::build_tar(sized(sizes)));
    expect_error([&] { Dataset::load(folder / "x.tar", {}); }, part);
  };
  refuse({{4, 4}, {8, 8}}, "the images have 1 of 4x4, 1 of 8x8 pixels; name the side");
  refuse({{4, 4}, {3, 2}, {3, 2}}, "the images have 2 of 3x2, 1 of 4x4 pixels");
  refuse({{1, 1}, {2, 2}, {3, 3}, {4, 4}, {5, 5}, {6, 6}}, "4x4, ... pixels");
}

TEST(LargePictures, AreReadOneAtATimeAndNotCountedAsBroken) {
  TemporaryFolder folder;
  write_folder(folder / "set", small_set());
  write_file(folder / "set/a/9.png", png_bytes(test::plain_image(5000, 3, 77)));
  const auto data = Dataset::load(folder / "set", {.side = 2, .skip_broken = true, .threads = 2});
  ASSERT_EQ(data->size(), 5);
  EXPECT_EQ(read(*data, 2), std::vector<uint8_t>(12, 77));
}

TEST(LargePictures, BeyondAllBoundsAreNamedEvenWithSkipBroken) {
  // 16,384 x 16,384 pixels of a bit each unpack to more than 400 MiB, not as gray ones but as RGB: its
  // header.
  std::string huge = png(1);
  const auto big = [](uint32_t value) {
    std::string out;
    for (int shift = 24; shift >= 0; shift -= 8) out += static_cast<char>(value >> shift);
    return out;
  };
  huge.replace(16, 8, big(16'384) + big(16'384));
  const auto crc = crc32(0, reinterpret_cast<const Bytef*>(huge.data()) + 12, 17);
  huge.replace(29, 4, big(static_cast<uint32_t>(crc)));
  TemporaryFolder folder;
  write_folder(folder / "set", small_set());
  write_file(folder / "set/a/9.png", huge);
  expect_error([&] { Dataset::load(folder / "set", {.side = 2, .skip_broken = true}); },
               "a/9.png: an image of 16384x16384 pixels");
}

TEST(ChangedData, AFileThatGrewOrWentIsNamed) {
  TemporaryFolder folder;
  write_folder(folder / "set", small_set());
  const auto data = Dataset::load(folder / "set", {.cache_bytes = 0});
  EXPECT_TRUE(data->decodes());
  write_file(folder / "set/a/2.png", png(1) + "more");
  expect_error([&] { read(*data, 1); }, "a/2.png: has ");
  fs::remove(folder / "set/a/2.png");
  expect_error([&] { read(*data, 1); }, "a/2.png: cannot open");
}

TEST(Fingerprint, IsThatOfNamesLabelsAndPixels) {
  TemporaryFolder folder;
  int number = 0;
  const auto digest = [&](const std::vector<TarEntry>& entries, const DatasetOptions& options) {
    const fs::path path = folder / fmt::format("{}", number++);
    write_folder(path, entries);
    const auto data = Dataset::load(path, options);
    EXPECT_EQ(data->fingerprint(1), data->fingerprint(3));
    return data->fingerprint(2);
  };
  for (const int64_t cache : {int64_t{0}, int64_t{1} << 20}) {
    const DatasetOptions options{.cache_bytes = cache};
    const std::string first = digest(small_set(), options);
    EXPECT_EQ(first.size(), 64u);
    EXPECT_EQ(first, digest(small_set(), options));
    std::vector<TarEntry> changed = small_set();
    changed[0].bytes = png(12);  // another pixel value
    EXPECT_NE(first, digest(changed, options));
    changed = small_set();
    for (TarEntry& entry : changed) {
      if (entry.name.starts_with("b/")) entry.name[0] = 'c';  // another class
    }
    EXPECT_NE(first, digest(changed, options));
    changed = small_set();
    std::swap(changed[0].bytes, changed[1].bytes);  // another order
    EXPECT_NE(first, digest(changed, options));
  }
}

TEST(Labels, AreTheModels) {
  const ModelClasses model{.names = {"b", "c", "a"}, .count = 3};
  each_form(small_set(), {.model = model}, [](const Dataset& data) {
    EXPECT_EQ(data.label(0), 2);
    EXPECT_EQ(data.label(3), 0);
    EXPECT_EQ(data.class_names(), (std::vector<std::string>{"b", "c", "a"}));
    EXPECT_TRUE(mentions(data.notes(), "matched by name"));
  });
}

TEST(Labels, OfAnotherModelAreRefusedBeforeAnythingIsDecoded) {
  std::vector<TarEntry> entries = small_set();
  entries.push_back({"a/0.png", "no image"});
  TemporaryFolder folder;
  write_folder(folder / "set", entries);
  const ModelClasses model{.names = {"cat", "dog"}, .count = 2};
  expect_error([&] { Dataset::load(folder / "set", {.model = model}); }, "are no class of the model");
}

TEST(Labels, OneClassOfAModelIsEnough) {
  const ModelClasses model{.names = {"a", "b"}, .count = 2};
  each_form({{"b/1.png", png(1)}}, {.model = model},
            [](const Dataset& data) { EXPECT_EQ(data.label(0), 1); });
}

TEST(DatasetRefusals, NameWhatWasWanted) {
  const test::TemporaryFolder folder;
  DatasetOptions options;
  options.side = -1;
  test::expect_error([&] { Dataset::load(folder / "", options); },
                     "image side -1: 1 to 4096 is wanted, or 0 for that of most images");
  options.side = 0;
  options.channels = 2;
  test::expect_error([&] { Dataset::load(folder / "", options); },
                     "holds images, of 1 (gray) or 3 channels (RGB); 2 are those of latents");
}

TEST(DatasetRefusals, NameAnImageWithoutBytes) {
  const test::TemporaryFolder folder;
  auto entries = test::small_set();
  entries.push_back({"a/3.png", ""});
  test::write_file(folder / "d.tar", test::build_tar(entries));
  test::expect_error([&] { Dataset::load(folder / "d.tar", {}); }, "a/3.png: is empty (0 bytes)");
}

TEST(DatasetRefusals, NameTheFilesOfCifarThatAreMissing) {
  const test::TemporaryFolder folder;
  test::write_file(folder / "test_batch.bin", std::string(3073, '\0'));
  test::expect_error([&] { Dataset::load(folder / "", {.split = "train"}); }, "has no data_batch_*.bin");
}

}  // namespace
}  // namespace dydit
