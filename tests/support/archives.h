// tar, gzip and npz made in memory for tests, and the vectors of tests/data/images.npz.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <zlib.h>

#include "dydit/io/bytes.h"
#include "dydit/io/file.h"
#include "dydit/io/npz_reader.h"
#include "dydit/io/png.h"
#include "tests/support/files.h"
#include "tests/support/zip_builder.h"

namespace dydit::test {

struct TarEntry {
  std::string name;
  std::string bytes;
  char type = '0';
  std::string target = {};  // of a link
};

/// A ustar header with a right checksum; `size` is what it claims.
inline std::string tar_header(const TarEntry& entry, uint64_t size) {
  std::string header(512, '\0');
  header.replace(0, std::min<size_t>(entry.name.size(), 100), entry.name, 0, 100);
  header.replace(124, 11, fmt::format("{:011o}", size));
  header[156] = entry.type;
  header.replace(157, entry.target.size(), entry.target);
  header.replace(257, 8, std::string("ustar\00000", 8));
  header.replace(148, 8, 8, ' ');
  unsigned sum = 0;
  for (const char c : header) sum += static_cast<unsigned char>(c);
  header.replace(148, 7, fmt::format("{:06o}", sum) + '\0');
  return header;
}

inline std::string build_tar(const std::vector<TarEntry>& entries) {
  std::string out;
  for (const TarEntry& entry : entries) {
    out += tar_header(entry, entry.bytes.size()) + entry.bytes;
    out.resize((out.size() + 511) / 512 * 512);
  }
  return out + std::string(1024, '\0');
}

/// zlib's deflate with its window bits: 31 gzip, -15 raw.
inline std::string deflated(const std::string& bytes, int window) {
  z_stream stream{};
  EXPECT_EQ(deflateInit2(&stream, 6, Z_DEFLATED, window, 8, Z_DEFAULT_STRATEGY), Z_OK);
  std::string out(deflateBound(&stream, bytes.size()), '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data()));
  stream.avail_in = static_cast<uInt>(bytes.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  EXPECT_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}
inline std::string gzipped(const std::string& bytes) { return deflated(bytes, 31); }

inline std::string npy(const std::string& descr, const std::string& shape, const std::string& data) {
  std::string header =
      fmt::format("{{'descr': '{}', 'fortran_order': False, 'shape': {}, }}\n", descr, shape);
  std::string out("\x93NUMPY\x01\x00", 8);
  append_little<uint16_t>(out, static_cast<uint16_t>(header.size()));
  return out + header + data;
}

inline ZipMember deflated_member(const std::string& name, const std::string& bytes) {
  const auto crc = crc32(0, reinterpret_cast<const Bytef*>(bytes.data()), static_cast<uInt>(bytes.size()));
  return {name, deflated(bytes, -15), 8, bytes.size(), static_cast<uint32_t>(crc)};
}

inline std::string numbers(const std::vector<int64_t>& values) {
  std::string out;
  for (const int64_t value : values) append_little(out, value);
  return out;
}

inline void write_file(const std::filesystem::path& path, const std::string& bytes) {
  std::filesystem::create_directories(path.parent_path());
  OutputFile file(path);
  file.write(bytes);
  file.commit();
}

/// An array of tests/data/images.npz; `shape` too when wanted.
inline std::string recorded(std::string_view array, std::vector<int64_t>* shape = nullptr) {
  const std::string file = std::string(DYDIT_TESTS_DIR) + "/data/images.npz";
  const auto mapped = MappedFile::open(file);
  const auto found = read_npz_array(ZipArchive(mapped->bytes(), file), array, 1 << 20, file);
  if (!found) throw Error(fmt::format("{} has no array {}", file, array));
  if (shape != nullptr) *shape = found->shape;
  return {reinterpret_cast<const char*>(found->data.data()), found->data.size()};
}

/// The same as noise() of tools/make_image_vectors.py.
inline Image noise_image(int height, int width, int channels) {
  Image image{height, width, channels, {}};
  uint32_t state = 1;
  for (int i = 0; i < height * width * channels; ++i) {
    state = state * 1664525 + 1013904223;
    image.pixels.push_back(static_cast<uint8_t>(state >> 24 & 0xFC));
  }
  return image;
}

inline Image plain_image(int side, int channels, uint8_t value) {
  return {side, side, channels, std::vector<uint8_t>(static_cast<size_t>(side * side * channels), value)};
}

inline std::string png_bytes(const Image& image) {
  TemporaryFolder folder;
  write_png(folder / "a.png", image, {});
  return contents(folder / "a.png");
}

}  // namespace dydit::test
