// A folder on disk or a tar archive as one tree of names, without dot files. At most three folders deep:
// ROOT/SPLIT/CLASS below one leading folder.
#pragma once

#include <cstddef>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace dydit {

/// Bytes and what keeps them in memory.
struct FileBytes {
  std::span<const std::byte> bytes;
  std::shared_ptr<const void> owner;
};

struct TreeFile {
  std::string path;                  // of a file on disk, or in the archive
  std::span<const std::byte> bytes;  // in the archive
  bool link = false;                 // in the archive: has no bytes of its own

  std::string_view name() const { return std::string_view(path).substr(path.rfind('/') + 1); }
};

struct Folder {
  std::map<std::string, std::unique_ptr<Folder>> folders;
  std::vector<TreeFile> files;  // sorted by name
};

class Tree {
 public:
  /// Lists a folder on disk; links are followed.
  static Tree of_folder(const std::filesystem::path& path);
  /// Reads a tar archive; `name` names it in messages.
  static Tree of_tar(FileBytes tar, const std::string& name);

  const Folder& root() const { return root_; }
  /// The bytes of a file of this tree. Throws Error when it cannot be read.
  FileBytes read(const TreeFile& file) const;
  /// How messages name a file.
  std::string display(const TreeFile& file) const;

 private:
  Folder root_;
  std::shared_ptr<const void> owner_;  // of a tar's bytes
  std::string tar_;                    // its name; empty: on disk
};

}  // namespace dydit
