// PNG and JPEG in memory to 8-bit gray or RGB, told by content. The size is judged before the pixels are
// allocated.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "dydit/io/png.h"

namespace dydit {

/// The pixels of a PNG or JPEG; gray stays gray, alpha is dropped, EXIF orientation is left alone (as PIL
/// does). Throws Error that names the file: another kind, broken, too large, CMYK.
Image decode_image(std::span<const std::byte> bytes, const std::string& name);

/// The same with 1 or 3 channels: gray from RGB by ITU-R 601-2 luma in PIL's integers, RGB from gray by
/// repeating it.
Image with_channels(Image image, int channels);

/// Throws Error unless pixels of this size may be allocated for a file of `file_bytes`: 48 MiB and three
/// bytes for each of the file's.
void check_image_size(int64_t width, int64_t height, int channels, size_t file_bytes,
                      const std::string& name);

}  // namespace dydit
