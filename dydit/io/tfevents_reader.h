// Event files read: record by record, or summed up.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>

namespace dydit {

struct Event {
  std::span<const std::byte> record;  // with its length and checksums
  double wall_time = 0;               // seconds since 1970
  int64_t step = 0;
  std::span<const std::byte> summary;  // empty: the event holds no values
};

/// True when the file begins with the head of a record.
bool is_event_file(std::span<const std::byte> bytes);

/// Calls `use` with each event. Returns how many bytes at the end are of a record that was being written when
/// its process died. Throws Error that names the file: no event file, damaged before its end.
size_t for_each_event(std::span<const std::byte> bytes, const std::string& name,
                      const std::function<void(const Event&)>& use);

/// One tag's numbers in the order of the file; `min` and `max` pass over NaN where there is another number.
struct ScalarSummary {
  int64_t count = 0;
  float first = 0, last = 0, min = 0, max = 0;
};

struct EventSummary {
  struct Moment {
    int64_t step;
    double wall_time;
  };
  int64_t num_events = 0;             // that of the file's version, too
  size_t cut_bytes = 0;               // for_each_event's
  std::optional<Moment> first, last;  // of the events that hold values
  std::map<std::string, ScalarSummary, std::less<>> scalars;
  // Values a tag: pictures, and what is neither number nor picture.
  std::map<std::string, int64_t, std::less<>> images, others;
};

/// Throws Error like for_each_event, and for more than 65,536 tags.
EventSummary summarize_events(std::span<const std::byte> bytes, const std::string& name);

}  // namespace dydit
