// JPEG through libjpeg-turbo. As in png.cpp, errors come by longjmp: a function that calls setjmp has only
// trivial locals. Scans and memory are bounded, since a progressive file may ask for much of both.
#include "dydit/io/jpeg.h"

#include <algorithm>
#include <array>
#include <csetjmp>
#include <cstdint>
#include <cstdio>  // jpeglib.h wants it first
#include <jerror.h>
#include <jpeglib.h>
#include <string_view>
#include <utility>
#include <vector>

#include "dydit/base/error.h"
#include "dydit/io/bytes.h"
#include "dydit/io/exif.h"
#include "dydit/io/text.h"

namespace dydit {
namespace {

// An honest progressive file has about ten scans. Each passes over the whole image, however few bytes it has.
constexpr int64_t kMaxScans = 100;
constexpr int64_t kMaxScannedPixels = int64_t{1} << 28;
// Of the pixels and libjpeg's coefficients together, and as much for each byte of the file.
constexpr int64_t kFreeBytes = int64_t{60} << 20;
constexpr int64_t kBytesPerFileByte = 4;
// The same for a large photograph, of which one is read at a time: ten scans of 100 megapixels and more.
constexpr int64_t kMaxLargeScannedPixels = int64_t{1} << 31;
constexpr int64_t kLargeBytes = kLargePixelBytes;

struct Reader {
  jpeg_decompress_struct jpeg{};
  jpeg_error_mgr errors{};
  jpeg_progress_mgr progress{};
  std::array<char, JMSG_LENGTH_MAX> complaint{};
  int64_t max_scanned_pixels = kMaxScannedPixels;
  jmp_buf jump;
  ~Reader() { jpeg_destroy_decompress(&jpeg); }  // fine on a struct of zeros
};

Reader& reader_of(j_common_ptr jpeg) { return *static_cast<Reader*>(jpeg->client_data); }

[[noreturn]] void on_error(j_common_ptr jpeg) {
  jpeg->err->format_message(jpeg, reader_of(jpeg).complaint.data());
  longjmp(reader_of(jpeg).jump, 1);
}

// Missing or wrong pixel data is only a warning to libjpeg, which fills in gray; to us it is a broken image.
void on_message(j_common_ptr jpeg, int level) {
  const int code = jpeg->err->msg_code;
  if (level < 0 && (code == JWRN_JPEG_EOF || code == JWRN_HIT_MARKER || code == JWRN_HUFF_BAD_CODE))
    on_error(jpeg);
}

void on_progress(j_common_ptr jpeg) {
  const auto* image = reinterpret_cast<j_decompress_ptr>(jpeg);
  const int64_t scans = image->input_scan_number,
                pixels = int64_t{image->image_width} * int64_t{image->image_height};
  if (scans <= std::max<int64_t>(1, std::min(kMaxScans, reader_of(jpeg).max_scanned_pixels / pixels))) return;
  std::snprintf(reader_of(jpeg).complaint.data(), JMSG_LENGTH_MAX, "%d scans of %d x %d pixels are too many",
                static_cast<int>(scans), static_cast<int>(image->image_width),
                static_cast<int>(image->image_height));
  longjmp(reader_of(jpeg).jump, 1);
}

// False when libjpeg gave up; the complaint says why.
bool read_header(Reader& reader, std::span<const std::byte> bytes) {
  reader.jpeg.err = jpeg_std_error(&reader.errors);
  reader.errors.error_exit = on_error;
  reader.errors.emit_message = on_message;
  reader.jpeg.client_data = &reader;
  if (setjmp(reader.jump) != 0) return false;
  jpeg_create_decompress(&reader.jpeg);
  reader.progress.progress_monitor = on_progress;
  reader.jpeg.progress = &reader.progress;
  jpeg_mem_src(&reader.jpeg, reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size());
  jpeg_read_header(&reader.jpeg, TRUE);
  return true;
}

bool calculate_size(Reader& reader) {
  if (setjmp(reader.jump) != 0) return false;
  jpeg_calc_output_dimensions(&reader.jpeg);
  return true;
}

// Rows go to their places at once, or through `row` where they are turned or CMYK.
struct Rows {
  uint8_t* pixels;
  size_t width, channels;  // of the pixels
  const Turn* turn;
  uint8_t* row;  // (width, channels of the file); null: rows are stored as they are shown
};

// As PIL: Adobe's inverted inks, black taken from each colour.
void rgb_from_cmyk(const uint8_t* inks, uint8_t* rgb) {
  const unsigned white = inks[3];
  for (int c = 0; c < 3; ++c) {
    const unsigned product = (255u - inks[c]) * white + 128;
    rgb[c] = static_cast<uint8_t>(white - (((product >> 8) + product) >> 8));
  }
}

void place_row(const Rows& rows, size_t y, bool cmyk) {
  const auto channels = static_cast<std::ptrdiff_t>(rows.channels);
  std::ptrdiff_t at = (rows.turn->start + static_cast<std::ptrdiff_t>(y) * rows.turn->down) * channels;
  const uint8_t* own = rows.row;
  for (size_t x = 0; x < rows.width; ++x, at += rows.turn->right * channels, own += cmyk ? 4 : channels) {
    if (cmyk) {
      rgb_from_cmyk(own, rows.pixels + at);
    } else {
      std::copy(own, own + channels, rows.pixels + at);
    }
  }
}

bool read_pixels(Reader& reader, const Rows& rows) {
  if (setjmp(reader.jump) != 0) return false;
  jpeg_start_decompress(&reader.jpeg);
  while (reader.jpeg.output_scanline < reader.jpeg.output_height) {
    const size_t y = reader.jpeg.output_scanline;
    JSAMPROW row = rows.row != nullptr ? rows.row : rows.pixels + y * rows.width * rows.channels;
    jpeg_read_scanlines(&reader.jpeg, &row, 1);
    if (rows.row != nullptr) place_row(rows, y, reader.jpeg.out_color_space == JCS_CMYK);
  }
  jpeg_finish_decompress(&reader.jpeg);
  return true;
}

// The least of 1/1, 1/2, 1/4 and 1/8 that brings a large picture within the usual bound; not so far that its
// short side falls below `side`.
void choose_scale(jpeg_decompress_struct& jpeg, int channels, size_t file_bytes, int side) {
  const auto scaled = [&](JDIMENSION length, unsigned by) { return (uint64_t{length} + by - 1) / by; };
  for (const unsigned by : {2u, 4u, 8u}) {
    const uint64_t width = scaled(jpeg.image_width, by), height = scaled(jpeg.image_height, by);
    if (std::min(width, height) < static_cast<uint64_t>(side)) break;
    jpeg.scale_num = 1;
    jpeg.scale_denom = by;
    if (width * height * static_cast<uint64_t>(channels) <= usual_pixel_bytes(file_bytes)) break;
  }
}

// Bytes of a marker segment, its length not among them; what is left when the file is cut.
std::span<const std::byte> segment(std::span<const std::byte> bytes, size_t at) {
  const size_t length = std::to_integer<size_t>(bytes[at]) << 8 | std::to_integer<size_t>(bytes[at + 1]);
  return bytes.subspan(at + 2, std::min(std::max<size_t>(length, 2) - 2, bytes.size() - at - 2));
}

}  // namespace

bool is_jpeg(std::span<const std::byte> bytes) { return text_of(bytes).starts_with("\xFF\xD8\xFF"); }

std::optional<ImageHeader> parse_jpeg_header(std::span<const std::byte> bytes) {
  constexpr std::string_view kExif("Exif\0\0", 6);
  ImageHeader header;
  for (size_t at = 2; bytes.size() - at >= 4;) {
    if (bytes[at] != std::byte{0xFF}) return std::nullopt;
    const auto marker = std::to_integer<unsigned>(bytes[at + 1]);
    if (marker == 0xFF || marker == 0x01 || (marker >= 0xD0 && marker <= 0xD8)) {  // padding; no segment
      at += marker == 0xFF ? 1 : 2;
      continue;
    }
    const auto body = segment(bytes, at + 2);
    const bool frame = marker >= 0xC0 && marker <= 0xCF && marker != 0xC4 && marker != 0xC8 && marker != 0xCC;
    if (frame) {
      if (body.size() < 6) return std::nullopt;
      const auto number = [&](size_t i) {
        return std::to_integer<int>(body[i]) << 8 | std::to_integer<int>(body[i + 1]);
      };
      header.height = number(1);
      header.width = number(3);
      const int components = std::to_integer<int>(body[5]);
      header.channels = components == 1 ? 1 : 3;
      header.cmyk = components == 4;
      if (header.height == 0 || header.width == 0) return std::nullopt;
      if (swaps_sides(header.orientation)) std::swap(header.height, header.width);
      return header;
    }
    if (marker == 0xD9 || marker == 0xDA) return std::nullopt;  // the end, or pixels without a frame
    if (marker == 0xE1 && text_of(body).starts_with(kExif))
      header.orientation = exif_orientation(body.subspan(kExif.size()));
    at += 4 + body.size();
  }
  return std::nullopt;
}

Image parse_jpeg(std::span<const std::byte> bytes, const std::string& name, const DecodeOptions& options) {
  DYDIT_CHECK(is_jpeg(bytes), "{}: is not a JPEG file (wrong first bytes)", name);
  const auto check = [&](const Reader& reader, bool done) {
    DYDIT_CHECK(done, "{}: broken JPEG file: {}. Fetch or write it again.", name,
                printable(reader.complaint.data()));
  };
  Reader reader;
  check(reader, read_header(reader, bytes));
  jpeg_decompress_struct& jpeg = reader.jpeg;
  const J_COLOR_SPACE space = jpeg.jpeg_color_space;
  const bool cmyk = space == JCS_CMYK || space == JCS_YCCK;
  DYDIT_CHECK(cmyk || space == JCS_GRAYSCALE || space == JCS_YCbCr || space == JCS_RGB,
              "{}: is a JPEG of {} unnamed components; convert it to RGB first", name, jpeg.num_components);
  const int channels = space == JCS_GRAYSCALE ? 1 : 3;
  jpeg.out_color_space = channels == 1 ? JCS_GRAYSCALE : cmyk ? JCS_CMYK : JCS_RGB;
  const uint64_t stored = uint64_t{jpeg.image_width} * jpeg.image_height * static_cast<uint64_t>(channels);
  const bool large = options.side > 0 && stored > usual_pixel_bytes(bytes.size());
  if (large) {
    choose_scale(jpeg, channels, bytes.size(), options.side);
    reader.max_scanned_pixels = kMaxLargeScannedPixels;
  }
  check(reader, calculate_size(reader));
  Image image{static_cast<int>(jpeg.output_height), static_cast<int>(jpeg.output_width), channels, {}};
  check_image_size(image.width, image.height, channels, bytes.size(), large, name);
  const size_t pixels = static_cast<size_t>(image.width) * static_cast<size_t>(image.height);
  image.pixels.resize(pixels * static_cast<size_t>(channels));
  // check_image_size leaves something over.
  const int64_t limit =
      std::max(large ? kLargeBytes : 0, kFreeBytes + kBytesPerFileByte * static_cast<int64_t>(bytes.size()));
  jpeg.mem->max_memory_to_use = static_cast<long>(limit - static_cast<int64_t>(image.pixels.size()));
  const Turn turn = make_turn(options.orientation, image.height, image.width);
  const bool plain = options.orientation == 1 && !cmyk;
  std::vector<uint8_t> row(
      plain ? 0 : static_cast<size_t>(image.width) * (cmyk ? 4u : static_cast<size_t>(channels)));
  check(reader, read_pixels(reader, {image.pixels.data(), static_cast<size_t>(image.width),
                                     static_cast<size_t>(channels), &turn, plain ? nullptr : row.data()}));
  if (swaps_sides(options.orientation)) std::swap(image.height, image.width);
  return image;
}

}  // namespace dydit
