// Where labelled images come from, as they are stored: each kind of path has one function that finds the
// images and their classes; Dataset crops and caches what they give.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "dydit/data/classes.h"
#include "dydit/data/left_out.h"
#include "dydit/data/tree.h"
#include "dydit/io/image.h"

namespace dydit {

/// Optional: where the images have no classes, all labels are kNoLabel: images directly in a folder (what
/// lies in its folders is left out), or an npz of images alone.
enum class Labels { Needed, Optional };
inline constexpr int kNoLabel = -1;

struct ImageSource {
  std::vector<int> labels;  // (images)
  DataClasses classes;
  /// All may be called from several threads at once.
  /// Size and colours of an image, its pixels unread; nothing where it is broken.
  std::function<std::optional<ImageHeader>(int64_t index)> header;
  /// Decodes one image, gray or RGB of any size; of a large one no more than an image of `side` needs. Throws
  /// Error that names it.
  std::function<Image(int64_t index, int side)> image;
  /// Its file's name, or its number.
  std::function<std::string(int64_t index)> name;
  /// Its bytes as they are stored, and how many there are. The first throws Error as `image` does.
  std::function<FileBytes(int64_t index)> bytes;
  std::function<uint64_t(int64_t index)> size;
  LeftOut left_out;
  std::vector<std::string> notes;  // lines to tell
};

/// Tells the kind of `path` by its content.
ImageSource open_source(const std::filesystem::path& path, const std::string& split,
                        Labels labels = Labels::Needed);

/// True for the names of files that are read as images: .png, .jpg, .jpeg, .jpe, .jfif.
bool is_image_name(std::string_view file_name);

/// ROOT/CLASS/*.png|jpg in a folder or archive; `name` is the path for messages.
ImageSource open_class_folders(std::shared_ptr<const Tree> tree, const std::string& split,
                               const std::string& name, Labels labels);

/// data_batch_*.bin or test_batch.bin of CIFAR-10, in a folder or archive. False when there are none.
bool has_cifar_files(const Tree& tree);
ImageSource open_cifar(const Tree& tree, const std::string& split, const std::string& name);
/// One file of records, each a label and 32x32 planar RGB.
ImageSource open_cifar_file(FileBytes file, const std::string& name);

/// Arrays images and labels (or arr_0 and arr_1) of an npz file.
ImageSource open_npz(FileBytes file, const std::string& name, Labels labels);

/// What a packed file of `size` bytes may unpack to.
uint64_t unpack_limit(size_t size);

}  // namespace dydit
