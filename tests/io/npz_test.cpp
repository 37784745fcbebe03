// npz: our zip reader finds in it what numpy would; tests/python/files_test.py asks numpy itself.
#include "dydit/io/npz.h"

#include <string>

#include <gtest/gtest.h>
#include <zlib.h>

#include "dydit/io/bytes.h"
#include "dydit/io/zip.h"
#include "tests/support/files.h"

namespace dydit {
namespace {

using test::bytes_of;
using test::contents;
using test::expect_error;
using test::TemporaryFolder;

std::string npz_of_two_images() {
  TemporaryFolder folder;
  NpzImageWriter writer(folder / "a.npz", 1, 2, 3);
  writer.append({1, 2, 3, {1, 2, 3, 4, 5, 6}});
  writer.append({1, 2, 3, {7, 8, 9, 10, 11, 12}});
  writer.commit();
  return contents(folder / "a.npz");
}

std::string member_of(const std::string& file) {
  const std::string name = "a.npz";
  const auto bytes = ZipArchive(bytes_of(file), name).find("arr_0.npy").value();
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

TEST(Npz, HeaderHoldsTheShapeAndIs128Bytes) {
  const std::string npy = member_of(npz_of_two_images());
  EXPECT_EQ(npy.size(), 128u + 12);
  EXPECT_EQ(npy.substr(0, 8), std::string("\x93NUMPY\x01\0", 8));
  EXPECT_NE(npy.find("'descr': '|u1', 'fortran_order': False, 'shape': (2, 1, 2, 3)"), npy.npos);
  EXPECT_EQ(npy[127], '\n');
}

TEST(Npz, PixelsFollowInOrder) {
  EXPECT_EQ(member_of(npz_of_two_images()).substr(128), "\1\2\3\4\5\6\7\x08\x09\x0a\x0b\x0c");
}

TEST(Npz, ChecksumCoversHeaderAndPixels) {
  const std::string file = npz_of_two_images();
  const std::string npy = member_of(file);
  const auto crc = crc32(0, reinterpret_cast<const Bytef*>(npy.data()), static_cast<uInt>(npy.size()));
  EXPECT_EQ(load_little<uint32_t>(bytes_of(file).data() + 14), crc);
}

TEST(Npz, SameImagesMakeTheSameFile) { EXPECT_EQ(npz_of_two_images(), npz_of_two_images()); }

TEST(Npz, IsSniffedAsNpz) { EXPECT_EQ(sniff_file_kind(bytes_of(npz_of_two_images())), FileKind::Npz); }

TEST(Npz, ImageOfAnotherSizeIsRefused) {
  TemporaryFolder folder;
  NpzImageWriter writer(folder / "a.npz", 1, 2, 3);
  expect_error([&] { writer.append({2, 1, 3, {1, 2, 3, 4, 5, 6}}); }, "image 0 has 2x1x3");
}

TEST(Npz, UncommittedLeavesNothing) {
  TemporaryFolder folder;
  { NpzImageWriter writer(folder / "a.npz", 1, 2, 3); }
  EXPECT_EQ(folder.file_count(), 0u);
}

TEST(Npz, FullDeviceIsAnError) {
  expect_error([] { NpzImageWriter("/dev/full", 1, 2, 3); }, "No space left");
}

TEST(Npz, SizeOfZeroIsRefusedAndLeavesNothing) {
  TemporaryFolder folder;
  expect_error([&] { NpzImageWriter(folder / "a.npz", 0, 2, 3); }, "0x2x3");
  EXPECT_EQ(folder.file_count(), 0u);
}

}  // namespace
}  // namespace dydit
