// EXIF orientation: how the rows of a stored picture lie when it is shown.
#pragma once

#include <cstddef>
#include <span>

namespace dydit {

/// The orientation 1..8 that an EXIF block (a TIFF header and its first directory) states; 1, as stored,
/// where it states none or is damaged.
int exif_orientation(std::span<const std::byte> tiff);

/// True when width and height change places.
inline bool swaps_sides(int orientation) { return orientation >= 5; }

/// Where pixel (y, x) of a stored picture lies in the shown one: at start + y * down + x * right, in pixels.
struct Turn {
  std::ptrdiff_t start, down, right;
};
Turn make_turn(int orientation, int stored_height, int stored_width);

}  // namespace dydit
