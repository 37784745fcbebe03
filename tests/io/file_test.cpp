// Files: mappings, outputs that appear whole or not at all, hashes and kinds.
#include "dydit/io/file.h"

#include <fcntl.h>
#include <string>
#include <unistd.h>

#include <gtest/gtest.h>
#include <sys/stat.h>

#include "tests/support/files.h"
#include "tests/support/zip_builder.h"

namespace dydit {
namespace {

namespace fs = std::filesystem;
using test::bytes_of;
using test::contents;
using test::expect_error;
using test::TemporaryFolder;

void write_file(const fs::path& path, const std::string& text) {
  OutputFile file(path);
  file.write(text);
  file.commit();
}

TEST(MappedFile, HoldsTheFilesBytes) {
  TemporaryFolder folder;
  write_file(folder / "a", "hello");
  const auto file = MappedFile::open(folder / "a");
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(file->bytes().data()), file->bytes().size()), "hello");
}

TEST(MappedFile, MissingFileNamesThePathAndTheReason) {
  expect_error([] { MappedFile::open("/no/such/file"); },
               "/no/such/file: cannot open: No such file or directory");
}

TEST(MappedFile, FolderIsRefused) {
  expect_error([] { MappedFile::open("/tmp"); }, "/tmp: is a directory");
}

TEST(MappedFile, EmptyFileIsRefused) {
  TemporaryFolder folder;
  write_file(folder / "a", "");
  expect_error([&] { MappedFile::open(folder / "a"); }, "is empty");
}

TEST(MappedFile, PipeIsRefusedWithoutWaiting) {
  TemporaryFolder folder;
  ASSERT_EQ(::mkfifo((folder / "pipe").c_str(), 0600), 0);
  expect_error([&] { MappedFile::open(folder / "pipe"); }, "not a regular file");
}

TEST(OutputFile, CommitReplacesTheTarget) {
  TemporaryFolder folder;
  write_file(folder / "a", "old");
  write_file(folder / "a", "new");
  EXPECT_EQ(contents(folder / "a"), "new");
  EXPECT_EQ(folder.file_count(), 1u);
}

TEST(OutputFile, UncommittedLeavesTargetAndNoTemporary) {
  TemporaryFolder folder;
  write_file(folder / "a", "old");
  {
    OutputFile file(folder / "a");
    file.write("half");
    EXPECT_EQ(folder.file_count(), 2u);
  }
  EXPECT_EQ(contents(folder / "a"), "old");
  EXPECT_EQ(folder.file_count(), 1u);
}

TEST(OutputFile, TargetIsInvisibleUntilCommit) {
  TemporaryFolder folder;
  OutputFile file(folder / "a");
  file.write("whole");
  EXPECT_FALSE(fs::exists(folder / "a"));
  file.commit();
  EXPECT_EQ(contents(folder / "a"), "whole");
}

TEST(OutputFile, WriteAtFillsInEarlierBytes) {
  TemporaryFolder folder;
  OutputFile file(folder / "a");
  file.write("....tail");
  file.write_at(0, bytes_of("head"));
  EXPECT_EQ(file.size(), 8u);
  file.commit();
  EXPECT_EQ(contents(folder / "a"), "headtail");
}

TEST(OutputFile, WriteAtBeyondTheEndIsRefused) {
  TemporaryFolder folder;
  OutputFile file(folder / "a");
  file.write("1234");
  expect_error([&] { file.write_at(2, bytes_of("head")); }, "would pass");
}

TEST(OutputFile, FullDeviceNamesTargetAndReason) {
  expect_error([] { write_file("/dev/full", "x"); }, "/dev/full: cannot write: No space left on device");
  EXPECT_FALSE(fs::is_regular_file("/dev/full"));
}

TEST(OutputFile, PathBelowARegularFileIsRefused) {
  TemporaryFolder folder;
  write_file(folder / "a", "x");
  expect_error([&] { OutputFile(folder / "a" / "b"); }, "a/b: cannot write: Not a directory");
  EXPECT_EQ(folder.file_count(), 1u);
}

TEST(OutputFile, FolderAsTargetIsRefused) {
  TemporaryFolder folder;
  expect_error([&] { OutputFile(folder / ""); }, "is a directory");
}

TEST(OutputFile, PipeIsWrittenDirectlyAndStaysAPipe) {
  TemporaryFolder folder;
  ASSERT_EQ(::mkfifo((folder / "pipe").c_str(), 0600), 0);
  const int reader = ::open((folder / "pipe").c_str(), O_RDONLY | O_NONBLOCK);
  write_file(folder / "pipe", "through");
  char buffer[16] = {};
  EXPECT_EQ(::read(reader, buffer, sizeof(buffer)), 7);
  ::close(reader);
  EXPECT_STREQ(buffer, "through");
  EXPECT_TRUE(fs::is_fifo(folder / "pipe"));
}

TEST(OutputFile, SymbolicLinkStaysAndItsFileIsReplaced) {
  TemporaryFolder folder;
  write_file(folder / "real", "old");
  fs::create_symlink("real", folder / "link");
  write_file(folder / "link", "new");
  EXPECT_TRUE(fs::is_symlink(folder / "link"));
  EXPECT_EQ(contents(folder / "real"), "new");
}

TEST(OutputFile, LongestNameFitsWithItsTemporary) {
  TemporaryFolder folder;
  const std::string name(255, 'n');
  write_file(folder / name, "x");
  EXPECT_EQ(contents(folder / name), "x");
}

TEST(Sha256, OfAbcIsThePublishedDigest) {
  EXPECT_EQ(sha256_hex(bytes_of("abc")), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST(SniffFileKind, TellsKindsByContent) {
  EXPECT_EQ(sniff_file_kind(bytes_of(std::string("\x02\0\0\0\0\0\0\0{}", 10))), FileKind::Safetensors);
  EXPECT_EQ(sniff_file_kind(bytes_of(std::string("\x80\x02\0\0\0\0\0\0{}", 10))), FileKind::Safetensors);
  EXPECT_EQ(sniff_file_kind(bytes_of("\x80\x02}.")), FileKind::TorchLegacy);
  EXPECT_EQ(sniff_file_kind(bytes_of("\x89PNG\r\n\x1a\n")), FileKind::Png);
  EXPECT_EQ(sniff_file_kind(bytes_of(test::build_zip({{"m/data.pkl", "x"}}))), FileKind::TorchZip);
  EXPECT_EQ(sniff_file_kind(bytes_of(test::build_zip({{"arr_0.npy", "x"}}))), FileKind::Npz);
  EXPECT_EQ(sniff_file_kind(bytes_of("GIF89a")), FileKind::Unknown);
  EXPECT_EQ(sniff_file_kind({}), FileKind::Unknown);
}

}  // namespace
}  // namespace dydit
