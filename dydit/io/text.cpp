// UTF-8 by the table of well-formed byte sequences (Unicode standard, section 3.9).
#include "dydit/io/text.h"

#include <algorithm>

#include <fmt/format.h>

#include "dydit/base/error.h"

namespace dydit {
namespace {

// Length of the well-formed sequence at the start of `text`, or 0.
size_t utf8_sequence_length(std::string_view text) {
  auto at = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned lead = at(0);
  if (lead < 0x80) return 1;
  const size_t length = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  if (lead < 0xC2 || lead > 0xF4 || text.size() < length) return 0;
  // The second byte's range shuts out overlong forms, surrogates and what lies beyond U+10FFFF.
  const unsigned low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  const unsigned high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  if (at(1) < low || at(1) > high) return 0;
  for (size_t i = 2; i < length; ++i) {
    if (at(i) < 0x80 || at(i) > 0xBF) return 0;
  }
  return length;
}

// Of a well-formed sequence.
uint32_t code_point(std::string_view sequence) {
  const auto lead = static_cast<unsigned char>(sequence[0]);
  if (sequence.size() == 1) return lead;
  uint32_t code = lead & (0x7F >> sequence.size());
  for (const char c : sequence.substr(1)) code = code << 6 | (static_cast<unsigned char>(c) & 0x3F);
  return code;
}

// What a terminal obeys instead of showing it.
bool is_control(uint32_t code) {
  const auto within = [&](uint32_t first, uint32_t last) { return code >= first && code <= last; };
  return code < 0x20 || within(0x7F, 0x9F) || within(0x200E, 0x200F) || within(0x2028, 0x202E) ||
         within(0x2066, 0x2069);
}

std::string hex_escape(std::string_view bytes) {
  std::string out;
  for (const char byte : bytes) out += fmt::format("\\x{:02x}", static_cast<unsigned char>(byte));
  return out;
}

}  // namespace

bool is_utf8(std::string_view text) {
  while (!text.empty()) {
    const size_t length = utf8_sequence_length(text);
    if (length == 0) return false;
    text.remove_prefix(length);
  }
  return true;
}

uint32_t take_code_point(std::string_view& text) {
  const size_t length = utf8_sequence_length(text);
  const uint32_t code =
      length == 0 ? 0xDC00u + static_cast<unsigned char>(text[0]) : code_point(text.substr(0, length));
  text.remove_prefix(std::max<size_t>(1, length));
  return code;
}

std::string printable(std::string_view text, size_t longest) {
  std::string out;
  while (!text.empty() && out.size() < longest) {
    const size_t length = utf8_sequence_length(text);
    const std::string_view sequence = text.substr(0, std::max<size_t>(1, length));
    if (length == 0 || is_control(code_point(sequence))) {
      out += hex_escape(sequence);
    } else {
      out += sequence;
    }
    text.remove_prefix(sequence.size());
  }
  return text.empty() ? out : out + "...";
}

std::string quote(std::string_view text) { return '"' + printable(text) + '"'; }

std::string shell_quote(std::string_view text) {
  constexpr std::string_view kPlain =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-/+,=:@";
  if (!text.empty() && text.find_first_not_of(kPlain) == text.npos) return std::string(text);
  const bool escaped = printable(text, text.npos) != text;
  std::string word;
  while (!text.empty()) {
    const size_t length = utf8_sequence_length(text);
    const std::string_view sequence = text.substr(0, std::max<size_t>(1, length));
    if (escaped && (length == 0 || is_control(code_point(sequence)))) {
      word += hex_escape(sequence);
    } else if (sequence == "'") {
      word += escaped ? "\\'" : "'\\''";
    } else {
      if (escaped && sequence == "\\") word += '\\';
      word += sequence;
    }
    text.remove_prefix(sequence.size());
  }
  return (escaped ? "$'" : "'") + word + "'";
}

std::string_view trimmed(std::string_view text, std::string_view blanks) {
  text.remove_prefix(std::min(text.find_first_not_of(blanks), text.size()));
  return text.substr(0, text.find_last_not_of(blanks) + 1);
}

std::vector<std::string_view> comma_parts(std::string_view text) {
  std::vector<std::string_view> parts;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t comma = std::min(text.find(',', begin), text.size());
    parts.push_back(trimmed(text.substr(begin, comma - begin)));
    begin = comma + 1;
  }
  return parts;
}

std::string lower_case(std::string_view text) {
  std::string lower(text);
  for (char& c : lower) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  return lower;
}

std::string_view checked_text(std::string_view bytes, const std::string& name) {
  using namespace std::string_view_literals;
  if (bytes.starts_with("\xEF\xBB\xBF")) bytes.remove_prefix(3);
  const auto sixteen = bytes.starts_with("\xFF\xFE") || bytes.starts_with("\xFE\xFF");
  DYDIT_CHECK(!sixteen && !bytes.starts_with("\0\0\xFE\xFF"sv),
              "{}: is UTF-16 or UTF-32; UTF-8 is wanted. Save it as UTF-8", name);
  size_t number = 1;
  for (std::string_view rest = bytes; !rest.empty(); ++number) {
    const std::string_view line = rest.substr(0, rest.find('\n'));
    DYDIT_CHECK(line.find('\0') == line.npos, "{}: line {} holds a byte 0; UTF-8 text is wanted", name,
                number);
    DYDIT_CHECK(is_utf8(line), "{}: line {} is not UTF-8: {}. Save it as UTF-8", name, number, quote(line));
    rest.remove_prefix(std::min(line.size() + 1, rest.size()));
  }
  return bytes;
}

}  // namespace dydit
