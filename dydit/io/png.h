// PNG out (8-bit gray or RGB, with text chunks) and back in, pixels or text, through libpng.
#pragma once

#include <cstddef>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>

#include "dydit/io/image.h"

namespace dydit {

using PngText = std::map<std::string, std::string>;

// What is read and therefore written at most: pixels a side, bytes of an uncompressed text.
inline constexpr int kMaxPngSide = 1 << 16;
inline constexpr size_t kMaxPngTextBytes = size_t{32} << 20;

/// The image as a PNG with one text chunk an entry (tEXt, or iTXt when the value is not ASCII), before the
/// pixels. `file` is what messages call it.
std::string png_bytes(const Image& image, const PngText& text, const std::string& file);
void write_png(const std::filesystem::path& path, const Image& image, const PngText& text);

struct PngInfo {
  int height = 0;
  int width = 0;
  int channels = 0;
  PngText text;
};

/// Size and text chunks (tEXt, zTXt, iTXt) of a PNG; the pixels are not decoded. Throws Error on a broken
/// file.
PngInfo parse_png_info(std::span<const std::byte> bytes, const std::string& name);

/// Size, colours, alpha and EXIF orientation (eXIf); nothing when the file does not begin with its header.
std::optional<ImageHeader> parse_png_header(std::span<const std::byte> bytes);

/// The pixels of any PNG as 8-bit gray or RGB, turned as the options say: palettes and few bits are expanded,
/// 16 bits cut to the upper 8, alpha is dropped. Throws Error that names the file: broken, cut short, too
/// large (check_image_size).
Image parse_png(std::span<const std::byte> bytes, const std::string& name, const DecodeOptions& options);

}  // namespace dydit
