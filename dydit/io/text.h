// Text from outside: is it UTF-8, how does it look inside a one-line message, and as a word of a command.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace dydit {

/// Well-formed UTF-8 (no overlong forms, no surrogates, at most U+10FFFF).
bool is_utf8(std::string_view text);

/// Takes the first code point off `text`, which is not empty; a byte that is no UTF-8 is U+DC00 and its
/// value.
uint32_t take_code_point(std::string_view& text);

/// `text` in double quotes for a message: control characters escaped, cut to one readable line.
std::string quote(std::string_view text);

/// The same without the quotes, for names joined with other text, and cut to about `longest` characters.
/// Escaped is what a terminal would obey or could not show: C0 and C1 controls, line and paragraph
/// separators, marks that turn the direction of writing, bytes that are no UTF-8.
std::string printable(std::string_view text, size_t longest = 120);

/// One word of a POSIX shell; where it holds control characters, of bash, ksh and zsh ($'...').
std::string shell_quote(std::string_view text);

/// `text` without blanks around it.
std::string_view trimmed(std::string_view text, std::string_view blanks = " ");

/// What stands between the commas, without blanks around it: "a, b" -> {"a", "b"}.
std::vector<std::string_view> comma_parts(std::string_view text);

/// With the letters A to Z as a to z.
std::string lower_case(std::string_view text);

/// The text of a file that a person wrote: UTF-8, a byte order mark passed over. Throws Error that begins
/// with `name` and names the line: UTF-16, UTF-32 or bytes that are no UTF-8.
std::string_view checked_text(std::string_view bytes, const std::string& name);

}  // namespace dydit
