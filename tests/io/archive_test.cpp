// tar, gzip and npz readers: what tools write is read, what is cut or hostile is refused.
#include <string>

#include <gtest/gtest.h>

#include "dydit/io/inflate.h"
#include "dydit/io/npz_reader.h"
#include "dydit/io/tar.h"
#include "tests/support/archives.h"

namespace dydit {
namespace {

using test::bytes_of;
using test::expect_error;

constexpr uint64_t kPlenty = 1 << 24;

std::vector<TarMember> parse(const std::string& tar) { return parse_tar(bytes_of(tar), "a.tar"); }

std::string text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

TEST(Tar, MembersComeInOrderWithTheirBytes) {
  const std::string tar = test::build_tar({{"d/", "", '5'}, {"d/a", "one"}, {"d/b", std::string(513, 'x')}});
  const auto members = parse(tar);
  ASSERT_EQ(members.size(), 3u);
  EXPECT_EQ(members[0].kind, TarMember::Kind::Folder);
  EXPECT_EQ(members[1].name, "d/a");
  EXPECT_EQ(text_of(members[1].bytes), "one");
  EXPECT_EQ(members[2].bytes.size(), 513u);
}

TEST(Tar, LongNamesOfGnuAndPaxAreRead) {
  const std::string name = std::string(150, 'n') + "/x.png";
  const auto gnu =
      parse(test::build_tar({{"././@LongLink", name + '\0', 'L'}, {"short", "1"}, {"next", "2"}}));
  ASSERT_EQ(gnu.size(), 2u);
  EXPECT_EQ(gnu[0].name, name);
  EXPECT_EQ(gnu[1].name, "next");
  const std::string record = " path=" + name + "\n";
  const std::string pax = std::to_string(record.size() + 3) + record;
  EXPECT_EQ(parse(test::build_tar({{"pax", pax, 'x'}, {"short", "1"}}))[0].name, name);
}

TEST(Tar, LinksHaveNoBytesWhateverSizeTheyClaim) {
  std::string tar = test::tar_header({"l", "", '2'}, 1000) + test::build_tar({{"a", "1"}});
  const auto members = parse(tar);
  ASSERT_EQ(members.size(), 2u);
  EXPECT_EQ(members[0].kind, TarMember::Kind::Link);
}

TEST(Tar, EveryTruncationIsRefused) {
  const std::string tar = test::build_tar({{"a", "1"}, {"b", std::string(600, 'x')}});
  for (size_t size = 0; size < tar.size() - 512; ++size) {
    test::error_of([&] { parse(tar.substr(0, size)); });
  }
}

TEST(Tar, MemberThatPassesTheEndIsNamed) {
  expect_error(
      [] {
        parse(test::tar_header({"big", ""}, 1 << 30) + std::string(1024, '\0'));
      },
      "a.tar: damaged tar file: \"big\" of 1073741824 bytes passes its end");
}

TEST(Tar, SparseMembersAreRefused) {
  expect_error([] { parse(test::build_tar({{"s", "", 'S'}})); }, "without --sparse");
}

TEST(Tar, MutatedFilesAreReadOrRefused) {
  const std::string pax = "16 path=abc/de\n";
  const std::string tar = test::build_tar({{"pax", pax, 'x'}, {"short", "1"}, {"b", "22"}});
  EXPECT_GT(test::refused_mutations(tar, 3000, parse), 300);
}

TEST(Gunzip, GivesBackWhatWasPackedInSeveralMembersToo) {
  const std::string text(300'000, 'a');
  const std::string file = test::gzipped(text) + test::gzipped("tail");
  EXPECT_EQ(text_of(gunzip(bytes_of(file), "a.gz", kPlenty).bytes()), text + "tail");
}

TEST(Gunzip, StopsAtItsLimit) {
  const std::string file = test::gzipped(std::string(1'000'000, 'a'));
  EXPECT_EQ(gunzip(bytes_of(file), "a.gz", 1'000'000).size, 1'000'000u);
  expect_error([&] { gunzip(bytes_of(file), "a.gz", 999'999); }, "unpacks to more than 999999 bytes");
}

TEST(Gunzip, EveryTruncationIsRefused) {
  const std::string file = test::gzipped("some text that is packed");
  for (size_t size = 0; size < file.size(); ++size) {
    const std::string cut = file.substr(0, size);
    expect_error([&] { gunzip(bytes_of(cut), "a.gz", kPlenty); }, "a.gz: damaged gzip file");
  }
}

TEST(Gunzip, DamagedAndTrailingBytesAreRefused) {
  std::string file = test::gzipped("some text that is packed");
  expect_error([&] { gunzip(bytes_of(file + "more"), "a.gz", kPlenty); }, "other bytes follow");
  file[file.size() - 6] = static_cast<char>(file[file.size() - 6] ^ 1);
  expect_error([&] { gunzip(bytes_of(file), "a.gz", kPlenty); }, "incorrect data check");
}

std::optional<NpyArray> read_array(const std::string& npz, const std::string& array) {
  const std::string name = "a.npz";
  return read_npz_array(ZipArchive(bytes_of(npz), name), array, kPlenty, name);
}

TEST(NpzReader, StoredAndDeflatedMembersInZip64TooGiveTheSame) {
  const std::string array = test::npy("<i8", "(2,)", test::numbers({7, -1}));
  for (const auto form : {test::ZipForm::Plain, test::ZipForm::Zip64}) {
    const std::string npz = test::build_zip({{"a.npy", array}, test::deflated_member("b.npy", array)}, form);
    for (const char* name : {"a", "b"}) {
      const auto found = read_array(npz, name);
      ASSERT_TRUE(found);
      EXPECT_EQ(found->kind, 'i');
      EXPECT_EQ(found->item_size, 8);
      EXPECT_EQ(found->shape, std::vector<int64_t>{2});
      EXPECT_EQ(text_of(found->data), test::numbers({7, -1}));
    }
  }
}

TEST(NpzReader, MissingArrayIsNothing) {
  EXPECT_FALSE(read_array(test::build_zip({{"a.npy", test::npy("|u1", "()", "x")}}), "b"));
}

TEST(NpzReader, WrongSizesAndTypesAreRefused) {
  const auto refuse = [](const std::string& array, const std::string& part) {
    expect_error([&] { read_array(test::build_zip({{"a.npy", array}}), "a"); }, part);
  };
  refuse(test::npy("|u1", "(3,)", "xy"), "shape (3) of 1-byte numbers does not fit its 2 bytes");
  refuse(test::npy("|u1", "(999999999999999999, 999999999999999999)", "xy"), "does not fit");
  refuse(test::npy(">i4", "(1,)", "abcd"), "has the numpy type \">i4\"");
  refuse(test::npy("|O", "(1,)", "abcd"), "has the numpy type \"|O\"");
  refuse("not numpy at all", "is not in numpy's npy format");
}

TEST(NpzReader, DeflatedMemberThatLiesIsRefused) {
  test::ZipMember member = test::deflated_member("a.npy", test::npy("|u1", "(3,)", "xyz"));
  member.unpacked = 1 << 23;
  expect_error([&] { read_array(test::build_zip({member}), "a"); }, "claims 8388608 bytes from");
  member.unpacked = 1 << 25;
  expect_error([&] { read_array(test::build_zip({member}), "a"); }, "more than 16777216");
  member = test::deflated_member("a.npy", test::npy("|u1", "(3,)", "xyz"));
  member.crc ^= 1;
  expect_error([&] { read_array(test::build_zip({member}), "a"); }, "wrong checksum");
}

TEST(NpzReader, LongHeaderIsRefused) {
  const std::string blanks(5'000, ' ');
  expect_error([&] { parse_npy(bytes_of(test::npy("|u1", blanks + "(1,)", "x")), "a"); },
               "its npy header has 5058 bytes; at most 4096 are read");
}

std::vector<NpzEntry> list(const std::string& npz) {
  const std::string name = "a.npz";
  return list_npz(ZipArchive(bytes_of(npz), name), name);
}

TEST(ListNpz, NamesTypesAndShapesComeByName) {
  const auto entries = list(test::build_zip({{"sigma.npy", test::npy("<f8", "(2, 2)", std::string(32, '\0'))},
                                             {"mu.npy", test::npy("<f4", "(2,)", std::string(8, '\0'))}}));
  ASSERT_EQ(entries.size(), 2u);
  EXPECT_EQ(entries[0].name, "mu");
  EXPECT_EQ(entries[0].header.type, "<f4");
  EXPECT_EQ(entries[1].name, "sigma");
  EXPECT_EQ(entries[1].header.shape, (std::vector<int64_t>{2, 2}));
}

TEST(ListNpz, DeflatedArrayIsListedByItsFirstBytes) {
  const std::string array = test::npy("|u1", "(1000000,)", std::string(1'000'000, 'x'));
  test::ZipMember member = test::deflated_member("a.npy", array);
  member.bytes.resize(member.bytes.size() / 2);  // which reading it would notice
  EXPECT_EQ(list(test::build_zip({member}))[0].header.shape, std::vector<int64_t>{1'000'000});
}

TEST(ListNpz, TypesThatAreNotReadAreListed) {
  const auto entries = list(test::build_zip({{"a.npy", test::npy("<U5", "(1,)", std::string(20, '\0'))}}));
  EXPECT_EQ(entries[0].header.type, "<U5");
}

TEST(ListNpz, FortranOrderIsTold) {
  std::string array = test::npy("|u1", "(1,)", "x");
  array.replace(array.find("False"), 5, "True ");
  EXPECT_TRUE(list(test::build_zip({{"a.npy", array}}))[0].header.fortran_order);
}

TEST(ListNpz, OtherMembersArePassedOver) { EXPECT_TRUE(list(test::build_zip({{"notes.txt", "x"}})).empty()); }

TEST(ListNpz, ShapeThatDoesNotFitItsMemberIsRefused) {
  expect_error(
      [] {
        list(test::build_zip({{"a.npy", test::npy("|u1", "(3,)", "xy")}}));
      },
      "a.npz: array \"a\": shape (3) of 1-byte numbers does not fit its 2 bytes");
}

TEST(ListNpz, DamagedDeflatedMemberIsRefused) {
  test::ZipMember member = test::deflated_member("a.npy", test::npy("|u1", "(3,)", "xyz"));
  member.bytes.resize(20);
  expect_error([&] { list(test::build_zip({member})); }, "a.npz: array \"a\": damaged: it ends too early");
}

TEST(ListNpz, MoreThan4096ArraysAreRefused) {
  std::vector<test::ZipMember> members;
  for (int i = 0; i <= 4096; ++i)
    members.push_back({std::to_string(i) + ".npy", test::npy("|u1", "(1,)", "x")});
  expect_error([&] { list(test::build_zip(members)); }, "a.npz: has more than 4096 arrays");
}

TEST(NpyTypeName, IsNumpys) {
  EXPECT_EQ(npy_type_name("|u1"), "uint8");
  EXPECT_EQ(npy_type_name("<i8"), "int64");
  EXPECT_EQ(npy_type_name("<f2"), "float16");
  EXPECT_EQ(npy_type_name("|b1"), "bool");
  EXPECT_EQ(npy_type_name(">f4"), ">f4");
}

std::optional<LabelSummary> labels_of(const std::string& descr, const std::string& shape,
                                      const std::string& data) {
  const std::string npy = test::npy(descr, shape, data);
  return summarize_labels(parse_npy(bytes_of(npy), "a"));
}

TEST(SummarizeLabels, CountsTheClassesThatOccur) {
  const auto labels = labels_of("<i8", "(4,)", test::numbers({7, 2, 7, 9}));
  ASSERT_TRUE(labels);
  EXPECT_EQ(labels->count, 4);
  EXPECT_EQ(labels->num_classes, 3);
  EXPECT_EQ(labels->lowest, 2);
  EXPECT_EQ(labels->highest, 9);
}

TEST(SummarizeLabels, NegativeAndHugeNumbersAreNoLabels) {
  EXPECT_FALSE(labels_of("|i1", "(2,)", "\1\xff"));
  EXPECT_FALSE(labels_of("<i8", "(1,)", test::numbers({65536})));
}

TEST(SummarizeLabels, OtherArraysAreNoLabels) {
  EXPECT_FALSE(labels_of("<f8", "(1,)", std::string(8, '\0')));
  EXPECT_FALSE(labels_of("|u1", "(1, 1)", "x"));
  EXPECT_FALSE(labels_of("|u1", "(0,)", ""));
}

TEST(NpzReader, MutatedFilesAreReadOrRefused) {
  const std::string array = test::npy("|u1", "(3, 1)", "xyz");
  const std::string npz = test::build_zip({{"a.npy", array}, test::deflated_member("b.npy", array)});
  EXPECT_GT(test::refused_mutations(npz, 3000,
                                    [](const std::string& file) {
                                      list(file);
                                      read_array(file, "a");
                                      read_array(file, "b");
                                    }),
            300);
}

}  // namespace
}  // namespace dydit
