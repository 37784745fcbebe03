// Numbers that a person typed.
#pragma once

#include <charconv>
#include <optional>
#include <string_view>

namespace dydit {

/// The number that `text` is from its first to its last character; nothing for other text, or for a number
/// that T cannot hold.
template <typename T>
std::optional<T> parse_number(std::string_view text) {
  T value{};
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || stop != end) return std::nullopt;
  return value;
}

}  // namespace dydit
