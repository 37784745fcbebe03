// Where labelled images come from, as they are stored: each kind of path has one function that finds the
// images and their classes; Dataset crops and caches what they give.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "dydit/data/tree.h"
#include "dydit/io/png.h"

namespace dydit {

struct ImageSource {
  std::vector<int> labels;  // (images)
  std::vector<std::string> class_names;
  /// Decodes one image, gray or RGB of any size. From several threads at once. Throws Error that names it.
  std::function<Image(int64_t index)> image;
};

/// Tells the kind of `path` by its content.
ImageSource open_source(const std::filesystem::path& path, const std::string& split);

/// ROOT/CLASS/*.png|jpg|jpeg in a folder or tar; `name` is the path for messages.
ImageSource open_class_folders(std::shared_ptr<const Tree> tree, const std::string& split,
                               const std::string& name);

/// data_batch_*.bin or test_batch.bin of CIFAR-10, in a folder or tar. False when there are none.
bool has_cifar_files(const Tree& tree);
ImageSource open_cifar(const Tree& tree, const std::string& split, const std::string& name);
/// One file of records, each a label and 32x32 planar RGB.
ImageSource open_cifar_file(FileBytes file, const std::string& name);

/// Arrays images and labels (or arr_0 and arr_1) of an npz file.
ImageSource open_npz(FileBytes file, const std::string& name);

/// What a packed file of `size` bytes may unpack to.
uint64_t unpack_limit(size_t size);

}  // namespace dydit
