// Which dydit this is.
#pragma once

#include <string_view>

namespace dydit {

extern const std::string_view kVersion;  // "0.1.0"

}  // namespace dydit
