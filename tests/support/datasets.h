// Small sets of images as entries of an archive, and as folders.
#pragma once

#include <vector>

#include "dydit/data/dataset.h"
#include "tests/support/archives.h"

namespace dydit::test {

inline std::vector<uint8_t> read(const Dataset& data, int64_t index) {
  std::vector<uint8_t> out(static_cast<size_t>(data.channels() * data.side() * data.side()));
  data.read(index, out);
  return out;
}

inline std::string png(uint8_t value, int side = 2, int channels = 3) {
  return png_bytes(plain_image(side, channels, value));
}

// Two classes of two images, of value 10 * class + position, and what is to be ignored.
inline std::vector<TarEntry> small_set() {
  return {{"b/y.PNG", png(11)},         {"b/x.png", png(10)},       {"a/2.png", png(1)},
          {"a/1.png", png(0)},          {"a/notes.txt", "ignored"}, {".DS_Store", "ignored"},
          {"a/._1.png", "AppleDouble"}, {"._a", "AppleDouble"},     {"__MACOSX/a/1.png", "ignored"}};
}

inline std::vector<TarEntry> below(const std::string& folder, std::vector<TarEntry> entries) {
  for (TarEntry& entry : entries) entry.name = folder + entry.name;
  return entries;
}

inline void write_folder(const std::filesystem::path& root, const std::vector<TarEntry>& entries) {
  for (const TarEntry& entry : entries) {
    if (entry.type == '5') {
      std::filesystem::create_directories(root / entry.name);
    } else {
      write_file(root / entry.name, entry.bytes);
    }
  }
}

inline void expect_small_set(const Dataset& data) {
  EXPECT_EQ(data.class_names(), (std::vector<std::string>{"a", "b"}));
  ASSERT_EQ(data.size(), 4);
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(data.label(i), i / 2);
    EXPECT_EQ(read(data, i), std::vector<uint8_t>(12, static_cast<uint8_t>(i / 2 * 10 + i % 2)));
  }
}

}  // namespace dydit::test
