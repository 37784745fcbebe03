// npz by streaming: the array's header has a fixed length and is filled in when the number of images is
// known.
#include "dydit/io/npz.h"

#include <array>
#include <string_view>

#include <fmt/format.h>

#include "dydit/base/error.h"
#include "dydit/io/bytes.h"

namespace dydit {
namespace {

constexpr std::string_view kMember = "arr_0.npy";
constexpr size_t kNpyHeaderBytes = 128;  // npy wants a multiple of 64; holds any four sizes

}  // namespace

// numpy's format.py: magic, version, length, a Python dict padded with spaces to the newline.
std::string npy_header(std::string_view type, std::span<const int64_t> shape) {
  std::string sizes;
  for (const int64_t size : shape) sizes += fmt::format("{}, ", size);
  if (shape.size() > 1) sizes.resize(sizes.size() - 2);
  std::string header("\x93NUMPY\x01\x00", 8);
  append_little<uint16_t>(header, kNpyHeaderBytes - 10);
  header += fmt::format("{{'descr': '{}', 'fortran_order': False, 'shape': ({}), }}", type, sizes);
  header.resize(kNpyHeaderBytes - 1, ' ');
  return header + '\n';
}

NpzImageWriter::NpzImageWriter(const std::filesystem::path& path, int height, int width, int channels)
    : zip_(path), height_(height), width_(width), channels_(channels) {
  DYDIT_CHECK(height > 0 && width > 0 && channels > 0,
              "{}: images of {}x{}x{} cannot be written; sizes from 1 are "
              "wanted",
              path.string(), height, width, channels);
  zip_.open(kMember, kNpyHeaderBytes);
}

void NpzImageWriter::append(const Image& image) {
  const size_t wanted =
      static_cast<size_t>(height_) * static_cast<size_t>(width_) * static_cast<size_t>(channels_);
  DYDIT_CHECK(image.height == height_ && image.width == width_ && image.channels == channels_ &&
                  image.pixels.size() == wanted,
              "npz: image {} has {}x{}x{} in {} bytes, but the file is of {}x{}x{}", count_, image.height,
              image.width, image.channels, image.pixels.size(), height_, width_, channels_);
  zip_.append(std::as_bytes(std::span(image.pixels)));
  ++count_;
}

void NpzImageWriter::commit() {
  zip_.close(npy_header("|u1", std::array<int64_t, 4>{count_, height_, width_, channels_}));
  zip_.commit();
}

}  // namespace dydit
