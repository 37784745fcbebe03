// Are two names the same to the eye? A letter with a mark is one code point or two: systems differ in which
// of them a file's name gets (macOS takes them apart).
#pragma once

#include <string>
#include <string_view>

namespace dydit {

/// Equal for texts that differ in their form of Unicode (NFC, NFD) alone. Bytes that are no UTF-8 stand for
/// themselves.
std::u32string unicode_key(std::string_view text);

}  // namespace dydit
