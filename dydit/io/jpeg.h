// JPEG in, through libjpeg-turbo.
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string>

#include "dydit/io/image.h"

namespace dydit {

bool is_jpeg(std::span<const std::byte> bytes);

/// Size, colours and EXIF orientation (APP1); nothing when the file ends before its frame header.
std::optional<ImageHeader> parse_jpeg_header(std::span<const std::byte> bytes);

/// The pixels of a gray or colour JPEG, baseline or progressive, with libjpeg's defaults (as PIL decodes),
/// turned and, when it is large, scaled down as the options say. CMYK is taken as Adobe writes it, inverted,
/// and becomes RGB. Throws Error that names the file: broken or cut short (even where libjpeg would go on);
/// TooLarge.
Image parse_jpeg(std::span<const std::byte> bytes, const std::string& name, const DecodeOptions& options);

}  // namespace dydit
