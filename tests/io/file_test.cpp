// Files: mappings, outputs that appear whole or not at all, hashes and kinds.
#include "dydit/io/file.h"

#include <chrono>
#include <fcntl.h>
#include <fstream>
#include <string>
#include <unistd.h>
#include <vector>

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

std::string text_of(const MappedFile& file) {
  return std::string(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
}

// Over the size that is copied.
const std::string kLarge(MappedFile::kCopiedBytes + 1, 'a');

// As torch.save and cp do: into the file itself.
void overwrite(const fs::path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary | std::ios::in | std::ios::out) << text;
}

TEST(MappedFile, SmallFileIsACopyThatNobodyChanges) {
  TemporaryFolder folder;
  write_file(folder / "a", "hello");
  const auto file = MappedFile::open(folder / "a");
  fs::resize_file(folder / "a", 0);
  file->drop_pages(file->bytes().data(), file->bytes().size());
  EXPECT_EQ(text_of(*file), "hello");
  EXPECT_NO_THROW(file->check_unchanged());
  EXPECT_EQ(MappedFile::at(file->bytes().data()), nullptr);
}

TEST(MappedFile, LargeFileThatIsWrittenToIsNoticed) {
  TemporaryFolder folder;
  write_file(folder / "a", kLarge);
  const auto file = MappedFile::open(folder / "a");
  EXPECT_NO_THROW(file->check_unchanged());
  const auto before = fs::last_write_time(folder / "a");
  overwrite(folder / "a", "b");
  fs::last_write_time(folder / "a", before + std::chrono::nanoseconds(1));
  expect_error([&] { file->check_unchanged(); }, "a: changed while it was in use");
}

TEST(MappedFile, LargeFileThatIsCutIsNoticed) {
  TemporaryFolder folder;
  write_file(folder / "a", kLarge);
  const auto file = MappedFile::open(folder / "a");
  const auto before = fs::last_write_time(folder / "a");
  fs::resize_file(folder / "a", 5);
  fs::last_write_time(folder / "a", before);
  expect_error([&] { file->check_unchanged(); }, "run again");
}

TEST(MappedFile, RenameOverItsNameLeavesItAsItWas) {
  TemporaryFolder folder;
  write_file(folder / "a", kLarge);
  const auto file = MappedFile::open(folder / "a");
  write_file(folder / "a", "another file");
  EXPECT_NO_THROW(file->check_unchanged());
  EXPECT_EQ(text_of(*file), kLarge);
}

TEST(MappedFile, MappingIsFoundByItsAddressAsLongAsItLives) {
  TemporaryFolder folder;
  write_file(folder / "a", kLarge);
  auto file = MappedFile::open(folder / "a");
  const std::byte* const first = file->bytes().data();
  EXPECT_EQ(MappedFile::at(first), file.get());
  EXPECT_EQ(MappedFile::at(first + kLarge.size() - 1), file.get());
  EXPECT_EQ(MappedFile::at(first - 1), nullptr);
  EXPECT_EQ(MappedFile::at(first + kLarge.size()), nullptr);
  file.reset();
  EXPECT_EQ(MappedFile::at(first), nullptr);
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

TEST(OutputFile, MissingFoldersAreMade) {
  TemporaryFolder folder;
  write_file(folder / "one/two/a", "x");
  EXPECT_EQ(contents(folder / "one/two/a"), "x");
}

TEST(OutputFile, UncommittedTakesItsFoldersAway) {
  TemporaryFolder folder;
  { OutputFile file(folder / "one/two/a"); }
  EXPECT_EQ(folder.file_count(), 0u);
  {
    OutputFile file(folder / "one/two/a");
    write_file(folder / "one/b", "x");
  }
  EXPECT_TRUE(fs::exists(folder / "one/b"));
  EXPECT_FALSE(fs::exists(folder / "one/two"));
}

TEST(OutputFile, NameOfNoFileIsRefused) {
  TemporaryFolder folder;
  expect_error([&] { OutputFile(folder / "none/"); }, "is a directory");
  EXPECT_EQ(folder.file_count(), 0u);
}

TEST(OutputFile, SyncedCommitMakesTheFileAsWell) {
  TemporaryFolder folder;
  OutputFile file(folder / "new/a");
  file.write("x");
  file.commit(Durability::Synced);
  EXPECT_EQ(contents(folder / "new/a"), "x");
}

TEST(OutputFile, TextThatWasCutShortMeanwhileIsNamedInsteadOfTheTarget) {
  TemporaryFolder folder;
  write_file(folder / "weights", kLarge);
  const auto weights = MappedFile::open(folder / "weights");
  fs::resize_file(folder / "weights", 1);
  OutputFile file(folder / "out");
  expect_error([&] { file.write(weights->bytes()); }, "weights: changed while it was in use");
}

TEST(OutputFile, TemporariesGoWhenASignalEndsTheProcess) {
  TemporaryFolder folder;
  OutputFile first(folder / "a"), second(folder / "b");
  write_file(folder / "c", "whole");
  remove_temporaries();
  EXPECT_EQ(folder.file_count(), 1u);
}

// A regular file as descriptor N, as `N>file` and `N>>file` of a shell.
class OpenFile {
 public:
  OpenFile(const fs::path& path, int flags) : number(::open(path.c_str(), flags | O_CREAT, 0600)) {}
  ~OpenFile() { ::close(number); }
  std::string name(const char* folder) const { return folder + std::to_string(number); }
  const int number;
};

TEST(OutputFile, OpenDescriptorIsWrittenFromWhereItStands) {
  TemporaryFolder folder;
  for (const int append : {0, O_APPEND}) {
    write_file(folder / "log", append ? "before " : "");
    const OpenFile log(folder / "log", O_WRONLY | append);
    if (!append) {
      ASSERT_EQ(::write(log.number, "before ", 7), 7);
    }
    write_file(log.name("/dev/fd/"), "one ");
    write_file(log.name("/proc/self/fd/"), "two ");
    fs::remove(folder / "link");
    fs::create_symlink(log.name("/dev/fd/"), folder / "link");
    write_file(folder / "link", "three ");
    ASSERT_EQ(::write(log.number, "after", 5), 5);
    EXPECT_EQ(contents(folder / "log"), "before one two three after");
  }
}

TEST(OutputFile, OpenDescriptorThatCannotBeWrittenIsRefused) {
  TemporaryFolder folder;
  write_file(folder / "log", "old");
  const OpenFile log(folder / "log", O_RDONLY);
  expect_error([&] { OutputFile(log.name("/dev/fd/")); }, "cannot write: Bad file descriptor");
  expect_error([] { OutputFile("/dev/fd/1234"); }, "/dev/fd/1234: cannot write: Bad file descriptor");
  EXPECT_EQ(contents(folder / "log"), "old");
}

TEST(OutputFile, HeaderOfAnOpenDescriptorCannotBeFilledIn) {
  TemporaryFolder folder;
  const OpenFile log(folder / "log", O_WRONLY | O_APPEND);
  OutputFile file(log.name("/dev/fd/"));
  file.write("....tail");
  expect_error([&] { file.write_at(0, bytes_of("head")); }, "write to a regular file");
}

TEST(OwnDescriptor, IsToldFromOtherPaths) {
  TemporaryFolder folder;
  EXPECT_EQ(own_descriptor("/dev/stdout"), 1);
  EXPECT_EQ(own_descriptor("/dev/stderr"), 2);
  EXPECT_EQ(own_descriptor("/dev/../dev//fd/17"), 17);
  fs::create_symlink("/dev/stdout", folder / "a");
  fs::create_symlink("a", folder / "b");
  EXPECT_EQ(own_descriptor(folder / "b"), 1);
  for (const char* other : {"/dev/null", "/dev/full", "/dev/fd", "/dev/fd/1x", "x", "", "/no/such/file"})
    EXPECT_EQ(own_descriptor(other), std::nullopt) << other;
}

TEST(CheckWritable, LeavesNothingBehind) {
  TemporaryFolder folder;
  check_writable(folder / "one/two/a");
  EXPECT_EQ(folder.file_count(), 0u);
  write_file(folder / "a", "old");
  check_writable(folder / "a");
  EXPECT_EQ(contents(folder / "a"), "old");
  expect_error([&] { check_writable(folder / "a" / "b"); }, "a/b: cannot write: Not a directory");
}

TEST(CheckWritable, PipesReaderWaitsOn) {
  TemporaryFolder folder;
  ASSERT_EQ(::mkfifo((folder / "pipe").c_str(), 0600), 0);
  check_writable(folder / "pipe");  // opened for writing, it would wait for a reader
}

TEST(CheckNotInput, SeesThroughLinksAndSpellings) {
  TemporaryFolder folder;
  write_file(folder / "in", "x");
  write_file(folder / "other", "x");
  fs::create_symlink("in", folder / "link");
  fs::create_hard_link(folder / "in", folder / "twin");
  const std::vector<fs::path> inputs = {folder / "none", folder / "in"};
  for (const char* name : {"in", "./in", "link", "twin"})
    expect_error([&] { check_not_input(folder / name, inputs); }, "is the input");
  for (const char* name : {"other", "none", "new"}) EXPECT_NO_THROW(check_not_input(folder / name, inputs));
}

TEST(Sha256, OfAbcIsThePublishedDigest) {
  EXPECT_EQ(sha256_hex(bytes_of("abc")), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST(SniffFileKind, TellsKindsByContent) {
  EXPECT_EQ(sniff_file_kind(bytes_of(std::string("\x02\0\0\0\0\0\0\0{}", 10))), FileKind::Safetensors);
  EXPECT_EQ(sniff_file_kind(bytes_of(std::string("\x80\x02\0\0\0\0\0\0{}", 10))), FileKind::Safetensors);
  EXPECT_EQ(sniff_file_kind(bytes_of("[{},{},\n{}]")), FileKind::Unknown);
  EXPECT_EQ(sniff_file_kind(bytes_of("\x80\x02}.")), FileKind::TorchLegacy);
  EXPECT_EQ(sniff_file_kind(bytes_of("\x89PNG\r\n\x1a\n")), FileKind::Png);
  EXPECT_EQ(sniff_file_kind(bytes_of(test::build_zip({{"m/data.pkl", "x"}}))), FileKind::TorchZip);
  EXPECT_EQ(sniff_file_kind(bytes_of(test::build_zip({{"arr_0.npy", "x"}}))), FileKind::Npz);
  EXPECT_EQ(sniff_file_kind(bytes_of("GIF89a")), FileKind::Unknown);
  EXPECT_EQ(sniff_file_kind({}), FileKind::Unknown);
}

}  // namespace
}  // namespace dydit
