#include "repair.h"

#include <algorithm>
#include <cstring>

#include <fmt/format.h>
#include <zlib.h>

#include "dydit/io/bytes.h"
#include "seeds.h"
#include "targets.h"

namespace dydit::fuzz {
namespace {

const std::byte* at(const std::string& file, size_t offset) {
  return reinterpret_cast<const std::byte*>(file.data() + offset);
}

// The octal size of a tar header, as far as it is one.
uint64_t tar_size(const std::string& file, size_t header) {
  uint64_t size = 0;
  for (size_t i = header + 124; i < header + 135 && file[i] >= '0' && file[i] <= '7'; ++i)
    size = size * 8 + static_cast<uint64_t>(file[i] - '0');
  return size;
}

}  // namespace

void repair_safetensors(std::string& file) {
  const size_t end = file.rfind('}');
  if (end == file.npos || end < 8) return;
  const uint64_t length = end + 1 - 8;
  std::memcpy(file.data(), &length, sizeof(length));
}

void repair_png(std::string& file) {
  for (size_t begin = 8; file.size() >= begin + 12;) {
    const uint32_t length = __builtin_bswap32(load_little<uint32_t>(at(file, begin)));
    if (length > file.size() - begin - 12) return;
    const auto* data = reinterpret_cast<const Bytef*>(file.data() + begin + 4);
    const uint32_t crc = __builtin_bswap32(static_cast<uint32_t>(crc32(0, data, length + 4)));
    std::memcpy(file.data() + begin + 8 + length, &crc, sizeof(crc));
    begin += 12 + size_t{length};
  }
}

void repair_tar(std::string& file) {
  for (size_t header = 0; file.size() >= header + 512;) {
    if (file.find_first_not_of('\0', header) >= header + 512) return;
    std::fill_n(file.begin() + static_cast<std::ptrdiff_t>(header) + 148, 8, ' ');
    unsigned sum = 0;
    for (size_t i = header; i < header + 512; ++i) sum += static_cast<unsigned char>(file[i]);
    file.replace(header + 148, 7, fmt::format("{:06o}", sum) + '\0');
    header += 512 + (tar_size(file, header) + 511) / 512 * 512;
  }
}

void repair_events(std::string& file) {
  std::string out;
  size_t begin = 0;
  while (file.size() >= begin + 16) {
    const uint64_t length =
        std::min<uint64_t>(load_little<uint64_t>(at(file, begin)), file.size() - begin - 16);
    out += event_record(file.substr(begin + 12, length));
    begin += 16 + length;
  }
  file = out + file.substr(begin);
}

}  // namespace dydit::fuzz
