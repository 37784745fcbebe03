// npz as the ADM evaluator reads it: one stored (uncompressed) member arr_0.npy, npy version 1.0, uint8,
// C order, (N, H, W, C), ZIP64. Images are streamed, so the file may be larger than memory.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

#include "dydit/io/image.h"
#include "dydit/io/zip_writer.h"

namespace dydit {

/// What stands before an array's numbers: npy version 1.0, numbers of numpy's `type` ("|u1", "<f8"), up to
/// four sizes, C order.
std::string npy_header(std::string_view type, std::span<const int64_t> shape);

class NpzImageWriter {
 public:
  NpzImageWriter(const std::filesystem::path& path, int height, int width, int channels);
  /// Appends one image of the size given above.
  void append(const Image& image);
  /// Writes the shape (as many images as were appended) and the zip directory, then renames into place.
  void commit();

 private:
  ZipWriter zip_;
  int height_, width_, channels_;
  int64_t count_ = 0;
};

}  // namespace dydit
