// The picture in memory, 8-bit gray or RGB: from a file's bytes, told by content, its size judged before the
// pixels are allocated; channels; grids.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "dydit/base/error.h"

namespace dydit {

struct Image {
  int height = 0;
  int width = 0;
  int channels = 3;             // 1 gray, 3 RGB
  std::vector<uint8_t> pixels;  // (height, width, channels), row-major
};

/// What a picture's header says, its pixels unread.
struct ImageHeader {
  int height = 0, width = 0;  // as it is shown: turned by its EXIF orientation
  int channels = 3;           // 1 gray, 3 colour
  int orientation = 1;        // EXIF's 1..8; 1: as stored
  bool alpha = false, cmyk = false;

  bool operator==(const ImageHeader&) const = default;
};

/// A sound picture that is too large to be decoded.
class TooLarge : public Error {
 public:
  using Error::Error;
};

/// Nothing where the header is broken or of another kind; decode_image then says what is wrong.
std::optional<ImageHeader> read_image_header(std::span<const std::byte> bytes);

/// True when decode_image wants to know what for: the pixels take more than 48 MiB and three bytes for each
/// of the file's.
bool is_large(const ImageHeader& header, size_t file_bytes);

/// The pixels of a PNG or JPEG as they are shown (EXIF orientation is applied); gray stays gray, alpha is
/// dropped, CMYK becomes RGB as in PIL. A large picture is read when `side` says what is wanted of it: a JPEG
/// is scaled down by 2, 4 or 8 while it is read as long as its short side stays at least `side`, a PNG is
/// read whole, both within 400 MiB. Throws Error that names the file: another kind, broken; TooLarge.
Image decode_image(std::span<const std::byte> bytes, const std::string& name, int side = 0);

/// The same with 1 or 3 channels: gray from RGB by ITU-R 601-2 luma in PIL's integers, RGB from gray by
/// repeating it.
Image with_channels(Image image, int channels);

inline constexpr int kGridPadding = 2;

/// torchvision's make_grid on equally sized images: `columns` a row, kGridPadding of black around each; a
/// single image is returned as it is. Gray stays gray.
Image make_grid(std::span<const Image> images, int columns);

/// How the readers of one kind decode.
struct DecodeOptions {
  int orientation = 1;
  int side = 0;  // as in decode_image
};

/// Bytes of pixels that may be allocated for a file of `file_bytes`.
uint64_t usual_pixel_bytes(size_t file_bytes);
inline constexpr uint64_t kLargePixelBytes = uint64_t{400} << 20;

/// Throws TooLarge unless pixels of this size may be allocated for a file of `file_bytes`.
void check_image_size(int64_t width, int64_t height, int channels, size_t file_bytes, bool large,
                      const std::string& name);

}  // namespace dydit
