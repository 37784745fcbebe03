// ROOT/CLASS/*.png|jpg. ROOT is the path given, the folder of a split in it, or where the first folders that
// stand alone lead to.
#include <algorithm>
#include <mutex>
#include <utility>

#include <fmt/ranges.h>

#include "dydit/base/error.h"
#include "dydit/data/crop.h"
#include "dydit/data/source.h"
#include "dydit/io/recognize.h"
#include "dydit/io/text.h"
#include "dydit/io/unicode.h"

namespace dydit {
namespace {

constexpr size_t kMostListed = 8;

bool is_image(const TreeFile& file) { return is_image_name(file.name()); }

bool has_image(const Folder& folder) {
  return std::any_of(folder.files.begin(), folder.files.end(), is_image);
}

bool has_image_below(const Folder& folder) {
  return std::any_of(folder.folders.begin(), folder.folders.end(), [](const auto& child) {
    return has_image(*child.second) || has_image_below(*child.second);
  });
}

std::string folder_list(const Folder& folder) {
  std::vector<std::string> names;
  for (const auto& [name, child] : folder.folders) {
    names.push_back(names.size() == kMostListed ? "..." : printable(name));
    if (names.size() > kMostListed) break;
  }
  return names.empty() ? "no folders" : fmt::format("{}", fmt::join(names, ", "));
}

// The folder of that name, in whatever form of Unicode.
const Folder* child_of(const Folder& folder, const std::string& name) {
  if (const auto found = folder.folders.find(name); found != folder.folders.end()) return found->second.get();
  for (const auto& [child_name, child] : folder.folders) {
    if (unicode_key(child_name) == unicode_key(name)) return child.get();
  }
  return nullptr;
}

// Where class folders are looked for: folders passed on the way, and the last of them.
struct Way {
  std::vector<const Folder*> passed;
  std::string path;
  const Folder* end;

  // To the only folder there, as long as it holds folders itself.
  bool step_down() {
    if (end->folders.size() != 1) return false;
    const auto& [name, only] = *end->folders.begin();
    if (only->folders.empty()) return false;
    go(name, *only);
    return true;
  }
  void go(const std::string& name, const Folder& folder) {
    passed.push_back(end);
    path += (path.empty() ? "" : "/") + name;
    end = &folder;
  }
};

Way find_class_root(const Folder& root, const std::string& split, const std::string& name) {
  Way way{{}, "", &root};
  if (!split.empty()) {
    const Folder* found = child_of(root, split);
    while (found == nullptr && way.step_down()) found = child_of(*way.end, split);
    DYDIT_CHECK(found != nullptr, "{}: has no folder {} for --split; it has: {}", name, quote(split),
                folder_list(*way.end));
    way.go(split, *found);
    way.passed.clear();  // beside a split lie the others
  }
  while (way.step_down()) {
  }
  return way;
}

// "; NAME is WHAT: WAY OUT" of the first file that is known as something else than an image; else empty.
std::string what_lies_there(const Tree& tree, const Folder& folder) {
  for (const TreeFile& file : folder.files) {
    if (is_image(file) || file.size == 0) continue;
    const auto seen = recognize_file(tree.read(file).bytes, file.path);
    if (seen && !seen->what.starts_with("a text")) {
      return fmt::format("; {} is {}: {}", printable(file.name()), seen->what, seen->way_out);
    }
    if (&file - folder.files.data() >= static_cast<std::ptrdiff_t>(kMostListed)) break;
  }
  return "";
}

void check_class(const Tree& tree, const Folder& root, const std::string& class_name,
                 const std::string& name) {
  check_class_name(class_name, fmt::format("{}: the name of class folder", name));
  const Folder& folder = *child_of(root, class_name);
  if (has_image(folder)) return;
  DYDIT_CHECK(
      !has_image_below(folder),
      "{}: images lie too deep, in folders of {}, which has none itself; ROOT/CLASS/*.png is wanted. If "
      "these are splits, name one with --split: {}",
      name, quote(class_name), folder_list(root));
  throw Error(fmt::format(
      "{}: class folder {} has no .png, .jpg or .jpeg file ({} other files); fill it or remove it{}", name,
      quote(class_name), folder.files.size(), what_lies_there(tree, folder)));
}

struct Pictures {
  std::vector<const TreeFile*> files;  // they stay where the tree has them
  int64_t below = 0;                   // of them in folders below their class

  void add_own(const Folder& folder, LeftOut& left_out) {
    for (const TreeFile& file : folder.files) {
      is_image(file) ? files.push_back(&file) : left_out.add_by_extension(file.name());
    }
  }
  // Those of a class: its own, then those of its folders, in order.
  void add(const Folder& folder, bool own, LeftOut& left_out) {
    const size_t before = files.size();
    add_own(folder, left_out);
    below += own ? 0 : static_cast<int64_t>(files.size() - before);
    for (const auto& [name, child] : folder.folders) add(*child, /*own=*/false, left_out);
  }
};

void check_root(const Tree& tree, const Folder& root, const std::string& name) {
  if (!root.folders.empty()) return;
  const auto images = std::count_if(root.files.begin(), root.files.end(), is_image);
  const bool shard = std::any_of(root.files.begin(), root.files.end(), [](const TreeFile& file) {
    return file.name().ends_with(".cls") || file.name().ends_with(".json");
  });
  DYDIT_CHECK(
      images == 0 || !shard,
      "{}: has no class folders: {} images with their labels in files beside them (WebDataset); put each "
      "class into a folder of its own, ROOT/CLASS/*.png",
      name, images);
  throw Error(fmt::format("{}: has no class folders{}; ROOT/CLASS/*.png or *.jpg is wanted{}", name,
                          images > 0 ? fmt::format(", but {} images", images) : "",
                          what_lies_there(tree, root)));
}

}  // namespace

bool is_image_name(std::string_view file_name) {
  const std::string extension = lower_extension(file_name);
  return extension == ".png" || extension == ".jpg" || extension == ".jpeg" || extension == ".jpe" ||
         extension == ".jfif";
}

ImageSource open_class_folders(std::shared_ptr<const Tree> tree, const std::string& split,
                               const std::string& name, Labels labels) {
  const Way way = find_class_root(tree->root(), split, name);
  const Folder& root = *way.end;
  const bool flat = labels == Labels::Optional && has_image(root);
  if (!flat) check_root(*tree, root, name);
  ImageSource source;
  source.left_out = tree->left_out();
  std::vector<const Folder*> above = way.passed;
  if (!flat) above.push_back(&root);
  for (const Folder* folder : above) {
    for (const TreeFile& file : folder->files) {
      if (is_image(file)) source.left_out.add("beside the class folders");
      if (!is_image(file)) source.left_out.add_by_extension(file.name());
    }
  }
  Pictures pictures;
  if (flat) {
    pictures.add_own(root, source.left_out);
    source.labels.assign(pictures.files.size(), kNoLabel);
    if (!root.folders.empty()) source.left_out.add("folders", static_cast<int64_t>(root.folders.size()));
  } else {
    for (const auto& [class_name, folder] : root.folders) {
      check_class(*tree, root, class_name, name);
      pictures.add(*folder, /*own=*/true, source.left_out);
      source.labels.resize(pictures.files.size(), static_cast<int>(source.classes.names.size()));
      source.classes.names.push_back(class_name);
    }
  }
  if (way.path.find('/') != way.path.npos) {
    source.notes.push_back(fmt::format("classes  lie in {}", printable(way.path)));
  }
  if (pictures.below > 0) {
    source.notes.push_back(fmt::format("images   {} of {} lie in folders below their class", pictures.below,
                                       pictures.files.size()));
  }
  const auto file_at =
      [files = std::make_shared<const std::vector<const TreeFile*>>(std::move(pictures.files))](
          int64_t index) -> const TreeFile& { return *(*files)[static_cast<size_t>(index)]; };
  source.size = [file_at](int64_t index) { return file_at(index).size; };
  source.bytes = [tree, file_at](int64_t index) { return tree->read(file_at(index)); };
  source.name = [file_at](int64_t index) { return std::string(file_at(index).name()); };
  source.header = [tree, file_at](int64_t index) -> std::optional<ImageHeader> {
    constexpr size_t kUsualHeader = size_t{1} << 16;
    try {
      const auto header = read_image_header(tree->read_start(file_at(index), kUsualHeader).bytes);
      return header ? header : read_image_header(tree->read(file_at(index)).bytes);
    } catch (const Error&) {  // decoding it says why
      return std::nullopt;
    }
  };
  source.image = [tree, file_at, alone = std::make_shared<std::mutex>()](int64_t index, int side) {
    const FileBytes file = tree->read(file_at(index));
    const auto header = read_image_header(file.bytes);
    const std::string display = tree->display(file_at(index));
    if (!header || !is_large(*header, file.bytes.size())) return decode_image(file.bytes, display);
    const std::lock_guard lock(*alone);  // memory for one at a time
    return halve(decode_image(file.bytes, display, side), side);
  };
  return source;
}

}  // namespace dydit
