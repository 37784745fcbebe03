// What the writer and the reader of event files share. A record: length u64, masked CRC of the length, the
// event, masked CRC of the event. An event: TensorFlow's event.proto and summary.proto, of which a handful of
// fields are written and read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace dydit::tfevents {

inline constexpr size_t kHeadBytes = 12;  // length and its checksum
inline constexpr size_t kTailBytes = 4;   // checksum of the event

/// Protobuf: a field is opened by number << 3 | wire type.
enum Wire : uint64_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };
/// event.proto
inline constexpr uint64_t kEventWallTime = 1, kEventStep = 2, kEventFileVersion = 3, kEventSummary = 5;
/// summary.proto
inline constexpr uint64_t kSummaryValue = 1, kValueTag = 1, kValueSimple = 2, kValueImage = 4;
inline constexpr uint64_t kImageHeight = 1, kImageWidth = 2, kImageColorspace = 3, kImageBytes = 4;

/// CRC-32C, rotated and shifted: a checksum of bytes that hold checksums would be weak.
uint32_t masked_crc(std::span<const std::byte> bytes);

}  // namespace dydit::tfevents
