#include "dydit/io/image.h"

#include <cstring>
#include <limits>

#include "dydit/io/file.h"
#include "dydit/io/jpeg.h"
#include "dydit/io/png.h"

namespace dydit {
namespace {

constexpr uint64_t kFreePixelBytes = uint64_t{48} << 20;
constexpr uint64_t kPixelBytesPerFileByte = 3;

uint64_t pixel_bytes(int64_t width, int64_t height, int channels) {  // sides below 2^17
  return static_cast<uint64_t>(width) * static_cast<uint64_t>(height) * static_cast<uint64_t>(channels);
}

}  // namespace

uint64_t usual_pixel_bytes(size_t file_bytes) {
  return kFreePixelBytes + kPixelBytesPerFileByte * file_bytes;
}

std::optional<ImageHeader> read_image_header(std::span<const std::byte> bytes) {
  if (sniff_file_kind(bytes) == FileKind::Png) return parse_png_header(bytes);
  if (is_jpeg(bytes)) return parse_jpeg_header(bytes);
  return std::nullopt;
}

bool is_large(const ImageHeader& header, size_t file_bytes) {
  return pixel_bytes(header.width, header.height, header.channels) > usual_pixel_bytes(file_bytes);
}

Image decode_image(std::span<const std::byte> bytes, const std::string& name, int side) {
  const ImageHeader header = read_image_header(bytes).value_or(ImageHeader{});
  const DecodeOptions options{header.orientation, side};
  if (sniff_file_kind(bytes) == FileKind::Png) return parse_png(bytes, name, options);
  if (is_jpeg(bytes)) return parse_jpeg(bytes, name, options);
  throw Error(fmt::format("{}: is neither PNG nor JPEG inside; convert it or remove it", name));
}

Image with_channels(Image image, int channels) {
  if (image.channels == channels) return image;
  const size_t pixels = static_cast<size_t>(image.height) * static_cast<size_t>(image.width);
  Image out{image.height, image.width, channels,
            std::vector<uint8_t>(pixels * static_cast<size_t>(channels))};
  const uint8_t* from = image.pixels.data();
  uint8_t* to = out.pixels.data();
  if (channels == 1) {
    // .299, .587, .114 in 16 bits, rounded
    for (size_t i = 0; i < pixels; ++i, from += 3) {
      to[i] = static_cast<uint8_t>((from[0] * 19595u + from[1] * 38470u + from[2] * 7471u + 0x8000u) >> 16);
    }
  } else {
    for (size_t i = 0; i < pixels; ++i, to += 3) to[0] = to[1] = to[2] = from[i];
  }
  return out;
}

Image make_grid(std::span<const Image> images, int columns) {
  DYDIT_CHECK(!images.empty() && columns > 0,
              "grid of {} images in {} columns: at least one of each is wanted", images.size(), columns);
  const Image& first = images.front();
  for (const Image& image : images) {
    const bool same =
        image.height == first.height && image.width == first.width && image.channels == first.channels;
    DYDIT_CHECK(same && image.pixels.size() == first.pixels.size(),
                "grid: images must be of one size, got {}x{}x{} and {}x{}x{}", first.height, first.width,
                first.channels, image.height, image.width, image.channels);
  }
  if (images.size() == 1) return first;

  const size_t across = std::min(images.size(), static_cast<size_t>(columns));
  const size_t down = (images.size() + across - 1) / across;
  const size_t cell_width = static_cast<size_t>(first.width) + kGridPadding;
  const size_t cell_height = static_cast<size_t>(first.height) + kGridPadding;
  const size_t width = across * cell_width + kGridPadding;
  const size_t height = down * cell_height + kGridPadding;
  constexpr size_t kMax = std::numeric_limits<int>::max();
  DYDIT_CHECK(width <= kMax && height <= kMax, "grid of {}x{} pixels is too large; make it of fewer images",
              width, height);
  const auto channels = static_cast<size_t>(first.channels);
  const size_t row_bytes = static_cast<size_t>(first.width) * channels;
  Image grid{static_cast<int>(height), static_cast<int>(width), first.channels,
             std::vector<uint8_t>(width * height * channels, 0)};
  for (size_t i = 0; i < images.size(); ++i) {
    const size_t left = i % across * cell_width + kGridPadding;
    const size_t top = i / across * cell_height + kGridPadding;
    for (size_t row = 0; row < static_cast<size_t>(first.height); ++row) {
      std::memcpy(grid.pixels.data() + ((top + row) * width + left) * channels,
                  images[i].pixels.data() + row * row_bytes, row_bytes);
    }
  }
  return grid;
}

void check_image_size(int64_t width, int64_t height, int channels, size_t file_bytes, bool large,
                      const std::string& name) {
  const uint64_t size = pixel_bytes(width, height, channels);
  const uint64_t limit = std::max(usual_pixel_bytes(file_bytes), large ? kLargePixelBytes : 0);
  DYDIT_CHECK(size > 0, "{}: an image of {}x{} pixels has none", name, width, height);
  if (size <= limit) return;
  throw TooLarge(
      fmt::format("{}: an image of {}x{} pixels in a file of {} bytes is not decoded; scale it down first",
                  name, width, height, file_bytes));
}

}  // namespace dydit
