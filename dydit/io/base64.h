// Bytes inside text, for pages and JSON.
#pragma once

#include <string>
#include <string_view>

namespace dydit {

/// RFC 4648, with padding.
std::string base64(std::string_view bytes);

}  // namespace dydit
