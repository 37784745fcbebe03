// TensorBoard event files: scalars and images, written record by record (TFRecord framing with masked
// CRC-32C).
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

namespace dydit {

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
  void record(std::span<const std::byte> event);
  std::filesystem::path folder_;
  int descriptor_ = -1;
};

/// Removes every event of a step beyond `last_step` from the event files in `folder`, and a cut record at a
/// file's end (after a resume, rows that will be written again). Throws Error on a file that is no event
/// file.
void truncate_events(const std::filesystem::path& folder, int64_t last_step);

}  // namespace dydit
