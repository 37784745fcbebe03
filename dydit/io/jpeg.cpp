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

#include "dydit/base/error.h"
#include "dydit/io/image.h"
#include "dydit/io/text.h"

namespace dydit {
namespace {

// An honest progressive file has about ten scans. Each passes over the whole image, however few bytes it has.
constexpr int64_t kMaxScans = 100;
constexpr int64_t kMaxScannedPixels = int64_t{1} << 28;
// Of the pixels and libjpeg's coefficients together, and as much for each byte of the file.
constexpr int64_t kFreeBytes = int64_t{60} << 20;
constexpr int64_t kBytesPerFileByte = 4;

struct Reader {
  jpeg_decompress_struct jpeg{};
  jpeg_error_mgr errors{};
  jpeg_progress_mgr progress{};
  std::array<char, JMSG_LENGTH_MAX> complaint{};
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
  if (scans <= std::max<int64_t>(1, std::min(kMaxScans, kMaxScannedPixels / pixels))) return;
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

bool read_pixels(Reader& reader, uint8_t* pixels, size_t row_bytes) {
  if (setjmp(reader.jump) != 0) return false;
  jpeg_start_decompress(&reader.jpeg);
  while (reader.jpeg.output_scanline < reader.jpeg.output_height) {
    JSAMPROW row = pixels + reader.jpeg.output_scanline * row_bytes;
    jpeg_read_scanlines(&reader.jpeg, &row, 1);
  }
  jpeg_finish_decompress(&reader.jpeg);
  return true;
}

}  // namespace

bool is_jpeg(std::span<const std::byte> bytes) {
  return bytes.size() >= 3 && bytes[0] == std::byte{0xFF} && bytes[1] == std::byte{0xD8} &&
         bytes[2] == std::byte{0xFF};
}

Image parse_jpeg(std::span<const std::byte> bytes, const std::string& name) {
  DYDIT_CHECK(is_jpeg(bytes), "{}: is not a JPEG file (wrong first bytes)", name);
  const auto check = [&](const Reader& reader, bool done) {
    DYDIT_CHECK(done, "{}: broken JPEG file: {}. Fetch or write it again.", name,
                printable(reader.complaint.data()));
  };
  Reader reader;
  check(reader, read_header(reader, bytes));
  const J_COLOR_SPACE space = reader.jpeg.jpeg_color_space;
  DYDIT_CHECK(space != JCS_CMYK && space != JCS_YCCK, "{}: is a CMYK JPEG; convert it to RGB first", name);
  DYDIT_CHECK(space == JCS_GRAYSCALE || space == JCS_YCbCr || space == JCS_RGB,
              "{}: is a JPEG of {} unnamed components; convert it to RGB first", name,
              reader.jpeg.num_components);
  const int channels = space == JCS_GRAYSCALE ? 1 : 3;
  reader.jpeg.out_color_space = channels == 1 ? JCS_GRAYSCALE : JCS_RGB;
  const int height = static_cast<int>(reader.jpeg.image_height),
            width = static_cast<int>(reader.jpeg.image_width);
  check_image_size(width, height, channels, bytes.size(), name);
  const size_t row_bytes = static_cast<size_t>(width) * static_cast<size_t>(channels);
  Image image{height, width, channels, std::vector<uint8_t>(row_bytes * static_cast<size_t>(height))};
  // check_image_size leaves something over.
  reader.jpeg.mem->max_memory_to_use =
      static_cast<long>(kFreeBytes + kBytesPerFileByte * static_cast<int64_t>(bytes.size()) -
                        static_cast<int64_t>(image.pixels.size()));
  check(reader, read_pixels(reader, image.pixels.data(), row_bytes));
  return image;
}

}  // namespace dydit
