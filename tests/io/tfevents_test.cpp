// Event files: framing and checksums, what a resume takes away, what they add up to, and what is refused.
// That TensorBoard reads them is proved in tests/python/events_test.py.
#include "dydit/io/tfevents.h"

#include <cmath>
#include <limits>
#include <string>

#include <gtest/gtest.h>

#include "dydit/io/bytes.h"
#include "dydit/io/tfevents_format.h"
#include "dydit/io/tfevents_reader.h"
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

// A file of what `write` writes.
std::string written(const std::function<void(EventWriter&)>& write) {
  TemporaryFolder folder;
  {
    EventWriter writer(folder / "log");
    write(writer);
  }
  return contents(only_file(folder / "log"));
}

// `event` framed, with right checksums.
std::string record(const std::string& event) {
  std::string out;
  append_little<uint64_t>(out, event.size());
  append_little(out, tfevents::masked_crc(bytes_of(out)));
  out += event;
  append_little(out, tfevents::masked_crc(bytes_of(event)));
  return out;
}

EventSummary summary_of(const std::string& file) { return summarize_events(bytes_of(file), "log"); }

TEST(SummarizeEvents, CountsEveryRecordOfTheFile) { EXPECT_EQ(summary_of(scalars(3)).num_events, 4); }

TEST(SummarizeEvents, KeepsFirstLastLeastAndMost) {
  const EventSummary summary = summary_of(written([](EventWriter& writer) {
    for (const float value : {2.0f, 5.0f, -1.0f, 3.0f}) writer.scalar("loss", 1, value);
  }));
  const ScalarSummary& loss = summary.scalars.at("loss");
  EXPECT_EQ(loss.count, 4);
  EXPECT_EQ(loss.first, 2.0f);
  EXPECT_EQ(loss.last, 3.0f);
  EXPECT_EQ(loss.min, -1.0f);
  EXPECT_EQ(loss.max, 5.0f);
}

TEST(SummarizeEvents, LeastAndMostPassOverNan) {
  const EventSummary summary = summary_of(written([](EventWriter& writer) {
    for (const float value : {NAN, 5.0f, NAN}) writer.scalar("loss", 1, value);
  }));
  EXPECT_EQ(summary.scalars.at("loss").min, 5.0f);
  EXPECT_EQ(summary.scalars.at("loss").max, 5.0f);
  EXPECT_TRUE(std::isnan(summary.scalars.at("loss").last));
}

TEST(SummarizeEvents, TagsAreKeptApart) {
  const EventSummary summary = summary_of(written([](EventWriter& writer) {
    writer.scalar("a", 1, 1.0f);
    writer.scalar("b", 1, 2.0f);
    writer.scalar("a", 2, 3.0f);
  }));
  EXPECT_EQ(summary.scalars.at("a").count, 2);
  EXPECT_EQ(summary.scalars.at("b").count, 1);
}

TEST(SummarizeEvents, ImagesAreCountedByTag) {
  const std::string png = test::png_bytes(test::plain_image(2, 3, 9));
  const EventSummary summary = summary_of(written([&](EventWriter& writer) {
    for (int step = 0; step < 3; ++step) writer.image("samples", step, 2, 2, bytes_of(png));
  }));
  EXPECT_EQ(summary.images.at("samples"), 3);
  EXPECT_TRUE(summary.scalars.empty());
}

TEST(SummarizeEvents, StepsAndTimesAreThoseOfValues) {
  const std::string file = written([](EventWriter& writer) {
    writer.scalar("a", 100, 1.0f);
    writer.scalar("a", 300, 1.0f);
  });
  const EventSummary summary = summary_of(file);
  ASSERT_TRUE(summary.first);
  EXPECT_EQ(summary.first->step, 100);
  EXPECT_EQ(summary.last->step, 300);
  EXPECT_GE(summary.last->wall_time, summary.first->wall_time);
  EXPECT_GT(summary.first->wall_time, 1.7e9);  // 2023
}

TEST(SummarizeEvents, FileWithoutValuesHasNeitherFirstNorLast) {
  const EventSummary summary = summary_of(scalars(1).substr(0, 12 + 9 + 15 + 4));  // the file's version
  EXPECT_EQ(summary.num_events, 1);
  EXPECT_FALSE(summary.first);
}

TEST(SummarizeEvents, CutRecordIsCountedInBytesAtEveryPlace) {
  const std::string all = scalars(3);
  const std::string two = kept_events(bytes_of(all), 1, "log");
  for (size_t size = two.size() + 1; size < all.size(); ++size) {
    const EventSummary summary = summary_of(all.substr(0, size));
    EXPECT_EQ(summary.cut_bytes, size - two.size());
    EXPECT_EQ(summary.num_events, 3);
  }
}

TEST(SummarizeEvents, EventThatDoesNotMatchItsChecksumIsRefused) {
  std::string file = scalars(3);
  file[40 + 12 + 3] ^= 1;  // in the second event, behind the first of 40 bytes and its own head
  expect_error([&] { summary_of(file); }, "log: damaged event file at byte 40");
}

TEST(SummarizeEvents, DamageBeforeTheEndIsRefused) {
  std::string file = scalars(3);
  file[file.size() / 2] = static_cast<char>(file[file.size() / 2] ^ 1);
  expect_error([&] { summary_of(file); }, "log: damaged event file at byte");
}

TEST(SummarizeEvents, ValuesThatAreNeitherNumberNorImageAreCounted) {
  EXPECT_EQ(summary_of(record("\x2a\x05\x0a\x03\x0a\x01h")).others.at("h"), 1);
}

TEST(SummarizeEvents, ValueThatPassesItsEndIsRefused) {
  expect_error([] { summary_of(record("\x2a\x05\x0a\x03\x0a\x02h")); },
               "log: the summary of the event at byte 0 is damaged");
}

TEST(SummarizeEvents, MoreThan65536TagsAreRefused) {
  const std::string file = written([](EventWriter& writer) {
    for (int i = 0; i <= 65536; ++i) writer.scalar(std::to_string(i), 1, 1.0f);
  });
  expect_error([&] { summary_of(file); }, "log: has more than 65536 tags");
}

TEST(SummarizeEvents, MutatedFilesAreReadOrRefused) {
  EXPECT_GT(test::refused_mutations(scalars(3), 3000, [](const std::string& file) { summary_of(file); }),
            300);
}

TEST(IsEventFile, KnowsOneByTheHeadOfItsFirstRecord) {
  const std::string file = scalars(1);
  EXPECT_TRUE(is_event_file(bytes_of(file)));
  EXPECT_FALSE(is_event_file(bytes_of(file.substr(1))));
  EXPECT_FALSE(is_event_file(bytes_of(file.substr(0, 11))));
}

}  // namespace
}  // namespace dydit
