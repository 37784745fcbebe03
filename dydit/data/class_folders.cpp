// ROOT/CLASS/*.png|jpg|jpeg. ROOT may lie one folder below the path given, or in the folder of a split.
#include <algorithm>
#include <cctype>
#include <limits>
#include <utility>

#include <fmt/ranges.h>

#include "dydit/base/error.h"
#include "dydit/data/source.h"
#include "dydit/io/image.h"
#include "dydit/io/text.h"

namespace dydit {
namespace {

constexpr size_t kMostListed = 8;

bool is_image(const TreeFile& file) {
  const std::string_view name = file.name();
  std::string extension(name.substr(std::min(name.rfind('.'), name.size())));
  std::transform(extension.begin(), extension.end(), extension.begin(),
                 [](unsigned char c) { return std::tolower(c); });
  return extension == ".png" || extension == ".jpg" || extension == ".jpeg";
}

bool has_image(const Folder& folder) {
  return std::any_of(folder.files.begin(), folder.files.end(), is_image);
}

std::string folder_list(const Folder& folder) {
  std::vector<std::string> names;
  for (const auto& [name, child] : folder.folders) {
    names.push_back(names.size() == kMostListed ? "..." : printable(name));
    if (names.size() > kMostListed) break;
  }
  return names.empty() ? "no folders" : fmt::format("{}", fmt::join(names, ", "));
}

const Folder* child_of(const Folder& folder, const std::string& name) {
  const auto found = folder.folders.find(name);
  return found == folder.folders.end() ? nullptr : found->second.get();
}

// The only folder in `root` when it holds folders itself.
const Folder* leading_folder(const Folder& root) {
  if (root.folders.size() != 1) return nullptr;
  const Folder* only = root.folders.begin()->second.get();
  return only->folders.empty() ? nullptr : only;
}

const Folder& class_root(const Folder& root, const std::string& split, const std::string& name) {
  const Folder* leading = leading_folder(root);
  if (split.empty()) return leading != nullptr ? *leading : root;
  const Folder* found = child_of(root, split);
  if (found == nullptr && leading != nullptr) found = child_of(*leading, split);
  DYDIT_CHECK(found != nullptr, "{}: has no folder {} for --split; it has: {}", name, quote(split),
              folder_list(leading != nullptr ? *leading : root));
  return *found;
}

void check_class(const Folder& root, const std::string& class_name, const std::string& name) {
  const Folder& folder = *child_of(root, class_name);
  for (const auto& [sub, child] : folder.folders) {
    DYDIT_CHECK(
        !has_image(*child),
        "{}: images lie one folder too deep, in {}/{}; ROOT/CLASS/*.png is wanted. If these are splits, "
        "name one with --split: {}",
        name, printable(class_name), printable(sub), folder_list(root));
  }
  DYDIT_CHECK(has_image(folder),
              "{}: class folder {} has no .png, .jpg or .jpeg file ({} other files); fill it or remove it",
              name, quote(class_name), folder.files.size());
}

}  // namespace

ImageSource open_class_folders(std::shared_ptr<const Tree> tree, const std::string& split,
                               const std::string& name) {
  const Folder& root = class_root(tree->root(), split, name);
  DYDIT_CHECK(!root.folders.empty(), "{}: has no class folders; ROOT/CLASS/*.png or *.jpg is wanted", name);
  ImageSource source;
  std::vector<const TreeFile*> images;  // they stay where the tree has them
  for (const auto& [class_name, folder] : root.folders) {
    check_class(root, class_name, name);
    for (const TreeFile& file : folder->files) {
      if (!is_image(file)) continue;
      images.push_back(&file);
      source.labels.push_back(static_cast<int>(source.class_names.size()));
    }
    source.class_names.push_back(class_name);
  }
  source.image = [tree = std::move(tree), images = std::move(images)](int64_t index) {
    const TreeFile& file = *images[static_cast<size_t>(index)];
    return decode_image(tree->read(file).bytes, tree->display(file));
  };
  return source;
}

}  // namespace dydit
