// Every length is compared with what is left before it is used. Fields that are not of interest are passed
// over, as protobuf wants it.
#include "dydit/io/tfevents_reader.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <string_view>

#include "dydit/base/error.h"
#include "dydit/io/bytes.h"
#include "dydit/io/tfevents_format.h"

namespace dydit {
namespace {

using namespace tfevents;
using Bytes = std::span<const std::byte>;

constexpr size_t kMaxTags = 65536;
constexpr std::string_view kWayOut = "fetch it again, or move it out of the run's folder";

std::optional<uint64_t> take_varint(Bytes& bytes) {
  uint64_t value = 0;
  for (int shift = 0; shift < 70 && !bytes.empty(); shift += 7) {
    const auto byte = std::to_integer<uint64_t>(bytes[0]);
    bytes = bytes.subspan(1);
    if (shift < 64) value |= (byte & 0x7F) << shift;
    if (byte < 0x80) return value;
  }
  return std::nullopt;
}

struct Field {
  uint64_t number = 0;
  uint64_t wire = 0;
  uint64_t value = 0;  // of a number, as it is stored
  Bytes bytes;         // of kBytes

  bool is(uint64_t wanted_number, Wire wanted_wire) const {
    return number == wanted_number && wire == wanted_wire;
  }
};

// The field at the start of `message`, which is not empty; nothing when it is no protobuf.
std::optional<Field> take_field(Bytes& message) {
  const std::optional<uint64_t> key = take_varint(message);
  if (!key) return std::nullopt;
  Field field{.number = *key >> 3, .wire = *key & 7, .value = 0, .bytes = {}};
  size_t size = field.wire == kFixed64 ? 8 : field.wire == kFixed32 ? 4 : 0;
  if (field.wire == kVarint || field.wire == kBytes) {
    const std::optional<uint64_t> value = take_varint(message);
    if (!value) return std::nullopt;
    field.value = *value;
    if (field.wire == kBytes) size = *value;
  } else if (size == 0) {
    return std::nullopt;
  }
  if (size > message.size()) return std::nullopt;
  field.bytes = message.first(size);
  message = message.subspan(size);
  if (field.wire == kFixed64) field.value = load_little<uint64_t>(field.bytes.data());
  if (field.wire == kFixed32) field.value = load_little<uint32_t>(field.bytes.data());
  return field;
}

// Calls `use` with each field; false when the message is no protobuf.
template <typename Use>
bool for_each_field(Bytes message, const Use& use) {
  while (!message.empty()) {
    const std::optional<Field> field = take_field(message);
    if (!field) return false;
    use(*field);
  }
  return true;
}

// What an event does not say is 0, as protobuf has it.
std::optional<Event> parse_event(Bytes record) {
  Event event{.record = record, .wall_time = 0, .step = 0, .summary = {}};
  const Bytes message = record.subspan(kHeadBytes, record.size() - kHeadBytes - kTailBytes);
  const bool whole = for_each_field(message, [&](const Field& field) {
    if (field.is(kEventWallTime, kFixed64)) event.wall_time = std::bit_cast<double>(field.value);
    if (field.is(kEventStep, kVarint)) event.step = static_cast<int64_t>(field.value);
    if (field.is(kEventSummary, kBytes)) event.summary = field.bytes;
  });
  return whole ? std::optional(event) : std::nullopt;
}

// The whole record at the start of `rest`; nothing when it is cut or its checksums are wrong.
std::optional<Bytes> whole_record(Bytes rest) {
  if (rest.size() < kHeadBytes + kTailBytes || !is_event_file(rest)) return std::nullopt;
  const auto length = load_little<uint64_t>(rest.data());
  if (length > rest.size() - kHeadBytes - kTailBytes) return std::nullopt;
  const Bytes message = rest.subspan(kHeadBytes, length);
  if (masked_crc(message) != load_little<uint32_t>(message.data() + length)) return std::nullopt;
  return rest.first(kHeadBytes + length + kTailBytes);
}

// A record that was being written when its process died: it reaches past the end, or is the last and wrong,
// or the file system left zeros.
bool is_cut(Bytes rest) {
  if (rest.size() < kHeadBytes) return true;
  if (all_zero(rest)) return true;
  if (!is_event_file(rest)) return false;
  const auto length = load_little<uint64_t>(rest.data());
  const size_t left = rest.size() - kHeadBytes;
  return left < kTailBytes || length >= left - kTailBytes;
}

void add_number(ScalarSummary& scalar, float value) {
  if (scalar.count++ == 0) scalar.first = scalar.min = scalar.max = value;
  scalar.last = value;
  scalar.min = std::fmin(scalar.min, value);
  scalar.max = std::fmax(scalar.max, value);
}

// Adds a value of summary.proto; false when it is no protobuf.
bool add_value(EventSummary& summary, Bytes message) {
  std::string_view tag;
  std::optional<float> number;
  bool picture = false;
  const bool whole = for_each_field(message, [&](const Field& field) {
    if (field.is(kValueTag, kBytes)) tag = text_of(field.bytes);
    if (field.is(kValueSimple, kFixed32)) number = std::bit_cast<float>(static_cast<uint32_t>(field.value));
    if (field.is(kValueImage, kBytes)) picture = true;
  });
  // A tag becomes a string of its own when it is first met.
  const auto entry = [tag](auto& entries) -> auto& {
    const auto found = entries.find(tag);
    return found != entries.end() ? found->second : entries[std::string(tag)];
  };
  if (number) {
    add_number(entry(summary.scalars), *number);
  } else {
    ++entry(picture ? summary.images : summary.others);
  }
  return whole;
}

}  // namespace

bool is_event_file(Bytes bytes) {
  return bytes.size() >= kHeadBytes && masked_crc(bytes.first(8)) == load_little<uint32_t>(bytes.data() + 8);
}

size_t for_each_event(Bytes bytes, const std::string& name, const std::function<void(const Event&)>& use) {
  for (Bytes rest = bytes; !rest.empty();) {
    const size_t at = bytes.size() - rest.size();
    const std::optional<Bytes> record = whole_record(rest);
    if (!record) {
      DYDIT_CHECK(is_cut(rest), "{}: {}; {}", name,
                  at == 0 ? "is not an event file"
                          : fmt::format("damaged event file at byte {} of {}", at, bytes.size()),
                  kWayOut);
      return rest.size();
    }
    const std::optional<Event> event = parse_event(*record);
    DYDIT_CHECK(event, "{}: the record at byte {} is no event; {}", name, at, kWayOut);
    use(*event);
    rest = rest.subspan(record->size());
  }
  return 0;
}

EventSummary summarize_events(Bytes bytes, const std::string& name) {
  EventSummary summary;
  summary.cut_bytes = for_each_event(bytes, name, [&](const Event& event) {
    ++summary.num_events;
    if (event.summary.empty()) return;
    summary.last = EventSummary::Moment{event.step, event.wall_time};
    if (!summary.first) summary.first = summary.last;
    bool values_whole = true;
    const bool whole = for_each_field(event.summary, [&](const Field& field) {
      if (field.is(kSummaryValue, kBytes)) values_whole = add_value(summary, field.bytes) && values_whole;
      DYDIT_CHECK(summary.scalars.size() + summary.images.size() + summary.others.size() <= kMaxTags,
                  "{}: has more than {} tags; are they numbered? Log one tag at many steps", name, kMaxTags);
    });
    DYDIT_CHECK(whole && values_whole, "{}: the summary of the event at byte {} is damaged; {}", name,
                event.record.data() - bytes.data(), kWayOut);
  });
  return summary;
}

}  // namespace dydit
