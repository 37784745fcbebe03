// PNG out (8-bit gray or RGB, with text chunks) and back in, pixels or text, through libpng.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <vector>

namespace dydit {

struct Image {
  int height = 0;
  int width = 0;
  int channels = 3;             // 1 gray, 3 RGB
  std::vector<uint8_t> pixels;  // (height, width, channels), row-major
};

using PngText = std::map<std::string, std::string>;

/// Writes `image` with one text chunk an entry (tEXt, or iTXt when the value is not Latin-1), before the
/// pixels.
void write_png(const std::filesystem::path& path, const Image& image, const PngText& text);

struct PngInfo {
  int height = 0;
  int width = 0;
  int channels = 0;
  PngText text;
};

/// Size and text chunks (tEXt, zTXt, iTXt) of a PNG; the pixels are not decoded. Throws Error on a broken
/// file.
PngInfo read_png_info(const std::filesystem::path& path);
PngInfo parse_png_info(std::span<const std::byte> bytes, const std::string& name);

/// The pixels of any PNG as 8-bit gray or RGB: palettes and few bits are expanded, 16 bits cut to the upper
/// 8, alpha is dropped. Throws Error that names the file: broken, cut short, too large (check_image_size).
Image parse_png(std::span<const std::byte> bytes, const std::string& name);

/// torchvision's make_grid on equally sized images: `columns` a row, 2 px of black around each; a single
/// image is returned as it is. Gray stays gray.
Image make_grid(std::span<const Image> images, int columns);

}  // namespace dydit
