#include "dydit/data/tree.h"

#include <algorithm>
#include <utility>

#include <system_error>

#include "dydit/base/error.h"
#include "dydit/io/file.h"
#include "dydit/io/tar.h"
#include "dydit/io/text.h"

namespace dydit {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxFolders = 4;  // one more than needed, to say that something lies too deep

// Dot files, ".." and what macOS leaves in archives.
bool is_hidden(std::string_view name) { return name.empty() || name.starts_with('.') || name == "__MACOSX"; }

void list(const fs::path& path, size_t depth, Folder& folder) {
  std::error_code error;
  fs::directory_iterator entries(path, error);
  DYDIT_CHECK(!error, "{}: cannot list the folder: {}", path.string(), error.message());
  for (; entries != fs::directory_iterator(); entries.increment(error)) {
    const std::string name = entries->path().filename().string();
    if (is_hidden(name)) continue;
    if (entries->is_directory(error)) {
      auto& child = *(folder.folders[name] = std::make_unique<Folder>());
      if (depth < kMaxFolders) list(entries->path(), depth + 1, child);
    } else {
      folder.files.push_back({entries->path().string(), {}});
    }
  }
  DYDIT_CHECK(!error, "{}: cannot list the folder: {}", path.string(), error.message());
}

// The folders and the file of an archive's path; empty for a path that is hidden or too deep.
std::vector<std::string> split_path(std::string_view path) {
  std::vector<std::string> parts;
  while (!path.empty()) {
    const size_t slash = std::min(path.find('/'), path.size());
    const std::string_view part = path.substr(0, slash);
    path.remove_prefix(std::min(slash + 1, path.size()));
    if (part.empty() || part == ".") continue;
    if (is_hidden(part) || parts.size() > kMaxFolders) return {};
    parts.emplace_back(part);
  }
  return parts;
}

// By name; of files of one name the last stays, as when a tar is unpacked.
void sort_files(Folder& folder) {
  std::vector<TreeFile>& files = folder.files;
  const auto by_name = [](const TreeFile& a, const TreeFile& b) { return a.name() < b.name(); };
  const auto same_name = [](const TreeFile& a, const TreeFile& b) { return a.name() == b.name(); };
  std::reverse(files.begin(), files.end());
  std::stable_sort(files.begin(), files.end(), by_name);
  files.erase(std::unique(files.begin(), files.end(), same_name), files.end());
  for (auto& [name, child] : folder.folders) sort_files(*child);
}

}  // namespace

Tree Tree::of_folder(const fs::path& path) {
  Tree tree;
  list(path, 0, tree.root_);
  sort_files(tree.root_);
  return tree;
}

Tree Tree::of_tar(FileBytes tar, const std::string& name) {
  Tree tree;
  tree.owner_ = std::move(tar.owner);
  tree.tar_ = name;
  for (TarMember& member : parse_tar(tar.bytes, name)) {
    std::vector<std::string> parts = split_path(member.name);
    if (parts.empty() || member.kind == TarMember::Kind::Other) continue;
    const bool is_folder = member.kind == TarMember::Kind::Folder;
    if (!is_folder) parts.pop_back();
    Folder* folder = &tree.root_;
    for (const std::string& part : parts) {
      std::unique_ptr<Folder>& child = folder->folders[part];
      if (child == nullptr) child = std::make_unique<Folder>();
      folder = child.get();
    }
    if (!is_folder) {
      folder->files.push_back({std::move(member.name), member.bytes, member.kind == TarMember::Kind::Link});
    }
  }
  sort_files(tree.root_);
  return tree;
}

FileBytes Tree::read(const TreeFile& file) const {
  if (tar_.empty()) {
    auto mapped = MappedFile::open(file.path);
    const auto bytes = mapped->bytes();
    return {bytes, std::move(mapped)};
  }
  DYDIT_CHECK(!file.link, "{}: is a link; make the tar with --dereference --hard-dereference", display(file));
  DYDIT_CHECK(!file.bytes.empty(), "{}: is empty (0 bytes)", display(file));
  return {file.bytes, owner_};
}

std::string Tree::display(const TreeFile& file) const {
  return tar_.empty() ? file.path : fmt::format("{}: {}", tar_, printable(file.path));
}

}  // namespace dydit
