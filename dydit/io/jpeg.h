// JPEG in, through libjpeg-turbo.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "dydit/io/png.h"

namespace dydit {

bool is_jpeg(std::span<const std::byte> bytes);

/// The pixels of a gray or colour JPEG, baseline or progressive, with libjpeg's defaults (as PIL decodes).
/// Throws Error that names the file: broken or cut short (even where libjpeg would go on), CMYK, too large.
Image parse_jpeg(std::span<const std::byte> bytes, const std::string& name);

}  // namespace dydit
