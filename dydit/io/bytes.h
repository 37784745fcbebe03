// Little-endian numbers at any address: file fields are rarely aligned, so every one goes through memcpy. And
// bytes seen as text, text as bytes.
#pragma once

#include <bit>
#include <concepts>
#include <cstddef>
#include <cstring>
#include <span>
#include <string>
#include <string_view>

namespace dydit {

static_assert(std::endian::native == std::endian::little, "the file formats here are little-endian");

/// The number at `address`; the caller has checked that sizeof(T) bytes are there.
template <std::integral T>
T load_little(const std::byte* address) {
  T value;
  std::memcpy(&value, address, sizeof(T));
  return value;
}

template <std::integral T>
void append_little(std::string& out, T value) {
  char bytes[sizeof(T)];
  std::memcpy(bytes, &value, sizeof(T));
  out.append(bytes, sizeof(T));
}

inline std::string_view text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}
inline std::span<const std::byte> bytes_of(std::string_view text) { return std::as_bytes(std::span(text)); }

/// A byte of plain text: no control character but a tab or one that ends a line.
inline bool is_text_byte(char c) {
  return static_cast<unsigned char>(c) >= 0x20 || c == '\n' || c == '\r' || c == '\t';
}
inline bool all_zero(std::span<const std::byte> bytes) {
  return text_of(bytes).find_first_not_of('\0') == std::string_view::npos;
}

}  // namespace dydit
