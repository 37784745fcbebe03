// Event files: framing and checksums, what a resume takes away, and what it refuses. That TensorBoard reads
// them is proved in tests/python/events_test.py.
#include "dydit/io/tfevents.h"

#include <limits>
#include <string>

#include <gtest/gtest.h>

#include "tests/support/archives.h"

namespace dydit {
namespace {

namespace fs = std::filesystem;
using test::bytes_of;
using test::contents;
using test::expect_error;
using test::TemporaryFolder;

constexpr int64_t kAll = std::numeric_limits<int64_t>::max();

fs::path only_file(const fs::path& folder) {
  fs::path found;
  for (const auto& entry : fs::directory_iterator(folder)) {
    EXPECT_TRUE(found.empty());
    found = entry.path();
  }
  return found;
}

// A file of scalars at steps 0..count-1.
std::string scalars(int count) {
  TemporaryFolder folder;
  {
    EventWriter writer(folder / "log");
    for (int step = 0; step < count; ++step) writer.scalar("loss", step, 0.5f);
  }
  return contents(only_file(folder / "log"));
}

TEST(Crc32c, HasItsCheckValue) { EXPECT_EQ(crc32c(bytes_of("123456789")), 0xE3069283u); }

TEST(EventWriter, MakesNoFileBeforeTheFirstRecord) {
  TemporaryFolder folder;
  EventWriter writer(folder / "log");
  EXPECT_FALSE(fs::exists(folder / "log"));
}

TEST(EventWriter, OpensWithTheFileVersion) {
  EXPECT_EQ(scalars(1).substr(12 + 9, 15),
            "\x1a\x0d"
            "brain.Event:2");
}

TEST(EventWriter, EachRecordIsInTheFileWhenTheCallReturns) {
  TemporaryFolder folder;
  EventWriter writer(folder / "log");
  writer.scalar("loss", 1, 0.5f);
  const fs::path file = only_file(folder / "log");
  const auto before = fs::file_size(file);
  writer.scalar("loss", 2, 0.5f);
  EXPECT_GT(fs::file_size(file), before);
}

TEST(EventWriter, TwoWritersInOneSecondTakeTwoFiles) {
  TemporaryFolder folder;
  EventWriter one(folder / "log"), two(folder / "log");
  one.scalar("loss", 1, 0.5f);
  two.scalar("loss", 1, 0.5f);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder / "log"), {}), 2);
}

TEST(EventWriter, RefusesAnImageThatIsNoPng) {
  TemporaryFolder folder;
  EventWriter writer(folder / "log");
  expect_error([&] { writer.image("x", 1, 2, 2, bytes_of("GIF89a")); }, "no PNG");
}

TEST(EventWriter, NamesAFolderThatCannotBeMade) {
  EventWriter writer("/proc/nowhere");
  expect_error([&] { writer.scalar("loss", 1, 0.5f); }, "/proc/nowhere: cannot make the folder");
}

TEST(TruncateEvents, LeavesTheFileThatANeverLongerRunWouldHave) {
  const std::string all = scalars(6);
  const std::string kept = kept_events(bytes_of(all), 3, "log");
  EXPECT_TRUE(all.starts_with(kept));
  EXPECT_EQ(kept_events(bytes_of(all), kAll, "log"), all);
  EXPECT_EQ(kept_events(bytes_of(kept), kAll, "log"), kept);
  EXPECT_LT(kept_events(bytes_of(all), 2, "log").size(), kept.size());
}

TEST(TruncateEvents, RemovesACutRecordAtEveryPlace) {
  const std::string all = scalars(3);
  const std::string two = kept_events(bytes_of(all), 1, "log");
  for (size_t size = two.size(); size < all.size(); ++size) {
    const std::string cut = all.substr(0, size);
    EXPECT_EQ(kept_events(bytes_of(cut), kAll, "log"), two);
  }
  const std::string zeros = two + std::string(100, '\0');
  EXPECT_EQ(kept_events(bytes_of(zeros), kAll, "log"), two);
}

TEST(TruncateEvents, RefusesDamageBeforeTheEnd) {
  std::string file = scalars(3);
  file[file.size() / 2] = static_cast<char>(file[file.size() / 2] ^ 1);
  expect_error([&] { kept_events(bytes_of(file), kAll, "log"); }, "log: damaged event file at byte");
}

TEST(TruncateEvents, RefusesOtherFiles) {
  expect_error([] { kept_events(bytes_of("this is a text and no event file"), kAll, "log"); },
               "log: is not an event file");
}

TEST(TruncateEvents, RewritesOnlyEventFilesWithSomethingToRemove) {
  TemporaryFolder folder;
  test::write_file(folder / "events.out.tfevents.1.h.2", scalars(6));
  test::write_file(folder / "events.out.tfevents.0.h.2", scalars(2));
  test::write_file(folder / "notes.txt", "mine");
  const auto untouched = fs::last_write_time(folder / "events.out.tfevents.0.h.2");
  truncate_events(folder / "", 3);
  EXPECT_EQ(contents(folder / "events.out.tfevents.1.h.2").size(), scalars(4).size());
  EXPECT_EQ(fs::last_write_time(folder / "events.out.tfevents.0.h.2"), untouched);
  EXPECT_EQ(contents(folder / "notes.txt"), "mine");
  EXPECT_EQ(folder.file_count(), 3u);
}

TEST(TruncateEvents, WithoutAFolderDoesNothing) { truncate_events("/nonexistent/log", 3); }

TEST(TruncateEvents, MutatedFilesAreReadOrRefused) {
  EXPECT_GT(test::refused_mutations(scalars(3), 3000,
                                    [](const std::string& file) { kept_events(bytes_of(file), 1, "log"); }),
            300);
}

}  // namespace
}  // namespace dydit
