// TensorBoard event files: scalars and images, written record by record (TFRecord framing with masked
// CRC-32C).
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

namespace dydit {

/// CRC-32C (Castagnoli), of "123456789" 0xE3069283.
uint32_t crc32c(std::span<const std::byte> bytes);

/// Appends to ONE file in `folder`, created on the first record (events.out.tfevents.TIME.HOST.PID[.N]). Each
/// record is flushed to the file before the call returns, so a killed run leaves only whole records but
/// perhaps the last. Throws Error.
class EventWriter {
 public:
  explicit EventWriter(std::filesystem::path folder);
  ~EventWriter();
  EventWriter(const EventWriter&) = delete;
  EventWriter& operator=(const EventWriter&) = delete;

  void scalar(const std::string& tag, int64_t step, float value);
  /// `png`: an encoded PNG of `width` x `height`.
  void image(const std::string& tag, int64_t step, int width, int height, std::span<const std::byte> png);

 private:
  void value(int64_t step, const std::string& value);
  void record(std::span<const std::byte> event);
  void create();
  std::filesystem::path folder_, path_;
  int descriptor_ = -1;
};

/// The records of an event file that truncate_events keeps. Throws Error that names the file.
std::string kept_events(std::span<const std::byte> bytes, int64_t last_step, const std::string& name);

/// Removes every event of a step beyond `last_step` from the event files in `folder`, and a cut record at a
/// file's end (after a resume, rows that will be written again). Files without such records are not touched;
/// no folder is nothing to do. Throws Error on a file that is no event file or is damaged before its end.
void truncate_events(const std::filesystem::path& folder, int64_t last_step);

}  // namespace dydit
