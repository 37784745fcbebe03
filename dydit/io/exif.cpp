// TIFF 6.0: "II*\0" or "MM\0*", the offset of the first directory, its entries of 12 bytes: tag, type, count,
// value.
#include "dydit/io/exif.h"

#include <cstdint>

namespace dydit {

int exif_orientation(std::span<const std::byte> tiff) {
  constexpr size_t kHeader = 8, kEntry = 12;
  constexpr uint32_t kOrientation = 0x0112, kShort = 3;
  if (tiff.size() < kHeader) return 1;
  const bool little = tiff[0] == std::byte{'I'};
  const auto number = [&](size_t at, size_t size) {  // the caller has checked that it is there
    uint32_t value = 0;
    for (size_t i = 0; i < size; ++i) {
      value = value << 8 | std::to_integer<uint32_t>(tiff[at + (little ? size - 1 - i : i)]);
    }
    return value;
  };
  if (tiff[1] != tiff[0] || (!little && tiff[0] != std::byte{'M'}) || number(2, 2) != 42) return 1;
  const size_t directory = number(4, 4);
  if (directory > tiff.size() - 2) return 1;
  const size_t count = number(directory, 2);
  for (size_t i = 0, at = directory + 2; i < count && tiff.size() - at >= kEntry; ++i, at += kEntry) {
    if (number(at, 2) != kOrientation) continue;
    const uint32_t value = number(at + 8, 2);
    return number(at + 2, 2) == kShort && value >= 1 && value <= 8 ? static_cast<int>(value) : 1;
  }
  return 1;
}

Turn make_turn(int orientation, int stored_height, int stored_width) {
  const std::ptrdiff_t h = stored_height, w = stored_width;
  const Turn turns[] = {{0, w, 1},              // as stored
                        {w - 1, w, -1},         // mirrored
                        {h * w - 1, -w, -1},    // upside down
                        {(h - 1) * w, -w, 1},   // upside down, mirrored
                        {0, 1, h},              // rows become columns
                        {h - 1, -1, h},         // a quarter to the right
                        {w * h - 1, -1, -h},    // rows become columns, upside down
                        {(w - 1) * h, 1, -h}};  // a quarter to the left
  return turns[orientation - 1];
}

}  // namespace dydit
