// Text that comes out of files: is it UTF-8, and how does it look inside a one-line message.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace dydit {

/// Well-formed UTF-8 (no overlong forms, no surrogates, at most U+10FFFF).
bool is_utf8(std::string_view text);

/// `text` in double quotes for a message: control characters escaped, cut to one readable line.
std::string quote(std::string_view text);

/// The same without the quotes, for names joined with other text, and cut to about `longest` characters.
std::string printable(std::string_view text, size_t longest = 120);

}  // namespace dydit
