// Images that lie somewhere, to be judged or compared with: any source of the trainer, a folder of images
// alone, or an npz without labels.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "dydit/io/image.h"

namespace dydit {

struct ImageSet {
  int64_t size = 0;
  /// Any thread. Throws Error that names the image.
  std::function<Image(int64_t index)> image;
  std::vector<int64_t> labels;           // kNoLabel: unknown
  std::vector<std::string> class_names;  // empty: unknown
  std::string sha256;                    // of a file its own, of a folder of all names and bytes
  std::vector<std::string> notes;        // what was passed over
};

/// Throws Error as open_source does; without any images, too.
ImageSet open_images(const std::filesystem::path& path, const std::string& split);

}  // namespace dydit
