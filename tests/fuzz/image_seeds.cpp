// PNG put together chunk by chunk; JPEG through libjpeg, with the coding switches that readers meet.
#include <cstdio>  // jpeglib.h wants it first
#include <cstdlib>
#include <jpeglib.h>

#include "seeds.h"

namespace dydit::fuzz {
namespace {

int samples_of(int color) {
  switch (color) {
    case 2:
      return 3;
    case 4:
      return 2;
    case 6:
      return 4;
    default:
      return 1;
  }
}

}  // namespace

std::string png_file(const PngForm& form, std::string rows) {
  const std::string header = big_endian(form.width, 4) + big_endian(form.height, 4) +
                             static_cast<char>(form.depth) + static_cast<char>(form.color) +
                             std::string(2, '\0') + static_cast<char>(form.interlace);
  if (rows.empty()) {
    const size_t row =
        1 + (size_t{form.width} * static_cast<size_t>(form.depth * samples_of(form.color)) + 7) / 8;
    // Interlaced rows are shorter and more; twice as much is enough for small images, and the rest is passed
    // over.
    for (size_t i = 0; i < row * form.height * (form.interlace == 0 ? 1 : 2); ++i)
      rows += static_cast<char>(i % row == 0 || form.interlace != 0 ? i / row % 4 : i % 4);
  }
  return "\x89PNG\r\n\x1a\n" + png_chunk("IHDR", header) + form.chunks +
         png_chunk("IDAT", deflated(rows, 15)) + png_chunk("IEND", "");
}

// An EXIF block that turns the picture by a quarter.
std::string quarter_turn() {
  return std::string("MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0", 26);
}

std::vector<std::string> png_seeds() {
  const std::string text = png_chunk("tEXt", std::string("Software\0dydit", 14));
  const std::string packed =
      png_chunk("zTXt", std::string("parameters\0\0", 12) + deflated(std::string(300, 'p'), 15));
  const std::string international =
      png_chunk("iTXt", std::string("class\0\0\0de\0Klasse\0gr\xc3\xbc\xc3\x9f", 24));
  const std::string international_packed =
      png_chunk("iTXt", std::string("k\0\1\0\0\0", 6) + deflated("text", 15));
  const std::string palette = png_chunk("PLTE", "abcdefghijkl");
  return {
      png_file({.chunks = text + international}),
      png_file({.color = 0, .chunks = packed + international_packed}),
      png_file({.depth = 2, .color = 3, .chunks = palette + png_chunk("tRNS", "\x80\xff")}),
      png_file({.depth = 16, .color = 6, .chunks = png_chunk("gAMA", big_endian(45455, 4))}),
      png_file({.width = 9, .height = 9, .depth = 1, .color = 0, .interlace = 1}),
      png_file({.width = 9, .height = 9, .color = 2, .interlace = 1}),
      png_file({.color = 4}),
      png_file({.chunks = png_chunk("eXIf", quarter_turn())}),
      png_file(
          {.width = 9, .height = 5, .color = 2, .interlace = 1, .chunks = png_chunk("eXIf", quarter_turn())}),
      png_file({.depth = 16, .color = 2, .chunks = png_chunk("tRNS", "\0\1\0\2\0\3")})};
}

std::string jpeg_file(const JpegForm& form) {
  jpeg_compress_struct jpeg{};
  jpeg_error_mgr errors{};
  jpeg.err = jpeg_std_error(&errors);
  jpeg_create_compress(&jpeg);
  unsigned char* data = nullptr;
  unsigned long size = 0;
  jpeg_mem_dest(&jpeg, &data, &size);
  jpeg.image_width = jpeg.image_height = static_cast<JDIMENSION>(form.side);
  jpeg.input_components = form.channels;
  jpeg.in_color_space = form.channels == 1 ? JCS_GRAYSCALE : form.channels == 4 ? JCS_CMYK : JCS_RGB;
  jpeg_set_defaults(&jpeg);
  jpeg_set_quality(&jpeg, 60, TRUE);
  jpeg.arith_code = form.arithmetic ? TRUE : FALSE;
  jpeg.restart_interval = static_cast<unsigned>(form.restart_interval);
  if (form.progressive) jpeg_simple_progression(&jpeg);
  if (form.full_chroma) jpeg.comp_info[0].h_samp_factor = jpeg.comp_info[0].v_samp_factor = 1;
  jpeg_start_compress(&jpeg, TRUE);
  std::string row(static_cast<size_t>(form.side * form.channels), '\0');
  for (int y = 0; y < form.side; ++y) {
    for (size_t i = 0; i < row.size() && !form.flat; ++i)
      row[i] = static_cast<char>(17 * y + 31 * static_cast<int>(i));
    auto* pointer = reinterpret_cast<JSAMPROW>(row.data());
    jpeg_write_scanlines(&jpeg, &pointer, 1);
  }
  jpeg_finish_compress(&jpeg);
  jpeg_destroy_compress(&jpeg);
  std::string out(reinterpret_cast<const char*>(data), size);
  std::free(data);
  return out;
}

std::vector<std::string> jpeg_seeds() {
  const std::string exif = std::string("Exif\0\0", 6) + quarter_turn();
  const std::string turn = "\xff\xe1" + big_endian(exif.size() + 2, 2) + exif;
  return {jpeg_file({}),
          jpeg_file({}).insert(2, turn),
          jpeg_file({.channels = 4}).insert(2, turn),
          jpeg_file({.channels = 1}),
          jpeg_file({.progressive = true}),
          jpeg_file({.side = 17, .restart_interval = 1, .full_chroma = true}),
          jpeg_file({.arithmetic = true}),
          jpeg_file({.side = 20, .channels = 1, .progressive = true}),
          jpeg_file({.channels = 4})};
}

}  // namespace dydit::fuzz
