// A folder on disk, a tar or a zip archive as one tree of names, without what systems leave about (.DS_Store,
// Thumbs.db, ...).
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dydit/data/left_out.h"

namespace dydit {

/// Bytes and what keeps them in memory.
struct FileBytes {
  std::span<const std::byte> bytes;
  std::shared_ptr<const void> owner;
};

struct TreeFile {
  std::string path;                  // of a file on disk, or in the archive
  std::span<const std::byte> bytes;  // in a tar
  uint64_t size = 0;                 // when the tree was listed

  std::string_view name() const { return std::string_view(path).substr(path.rfind('/') + 1); }
};

struct Folder {
  std::map<std::string, std::unique_ptr<Folder>> folders;
  std::vector<TreeFile> files;  // sorted by name
};

class Tree {
 public:
  /// Lists a folder on disk; links are followed, but for those to a folder that they lie in.
  static Tree of_folder(const std::filesystem::path& path);
  /// Reads a tar archive; `name` names it in messages. A link to a file of the archive is that file.
  static Tree of_tar(FileBytes tar, const std::string& name);
  /// Reads the directory of a zip archive, whose members may be deflated.
  static Tree of_zip(FileBytes zip, const std::string& name);

  const Folder& root() const { return root_; }
  /// Links that lead nowhere, paths too deep, hidden files.
  const LeftOut& left_out() const { return left_out_; }
  /// The bytes of a file of this tree. Throws Error when it cannot be read or has changed since.
  FileBytes read(const TreeFile& file) const;
  /// The first bytes of it, `most` of them where there are so many, or all.
  FileBytes read_start(const TreeFile& file, size_t most) const;
  /// How messages name a file.
  std::string display(const TreeFile& file) const;

 private:
  struct Zip;
  Folder root_;
  LeftOut left_out_;
  std::shared_ptr<const void> owner_;  // of a tar's bytes
  std::shared_ptr<const Zip> zip_;
  std::string archive_;  // its name; empty: on disk
};

}  // namespace dydit
