// Little-endian numbers at any address: file fields are rarely aligned, so every one goes through memcpy.
#pragma once

#include <bit>
#include <concepts>
#include <cstddef>
#include <cstring>
#include <string>

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

}  // namespace dydit
