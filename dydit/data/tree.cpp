#include "dydit/data/tree.h"

#include <algorithm>
#include <fstream>
#include <optional>
#include <unordered_map>
#include <utility>

#include <sys/stat.h>
#include <system_error>

#include "dydit/base/error.h"
#include "dydit/data/source.h"
#include "dydit/io/file.h"
#include "dydit/io/inflate.h"
#include "dydit/io/tar.h"
#include "dydit/io/text.h"
#include "dydit/io/zip.h"

namespace dydit {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxFolders = 64;  // on the way to a file
constexpr int64_t kMaxFiles = int64_t{1} << 26;
constexpr const char* kTooDeep = "more than 64 folders deep";
constexpr const char* kLink = "link";

// Dot files, and what macOS, Windows and network disks leave in folders and archives.
bool is_hidden(std::string_view name) {
  constexpr std::string_view kLeavings[] = {"__MACOSX", "Thumbs.db", "desktop.ini", "@eaDir"};
  return name.empty() || name.starts_with('.') ||
         std::find(std::begin(kLeavings), std::end(kLeavings), name) != std::end(kLeavings);
}

// Lists folders on disk.
class Lister {
 public:
  Lister(LeftOut& left_out, const fs::path& root) : left_out_(left_out), root_(root.string()) {}

  void list(const fs::path& path, Folder& folder) {
    std::error_code error;
    struct stat status {};
    if (::stat(path.c_str(), &status) == 0) above_.emplace_back(status.st_dev, status.st_ino);
    fs::directory_iterator entries(path, error);
    DYDIT_CHECK(!error, "{}: cannot list the folder: {}", path.string(), error.message());
    for (; entries != fs::directory_iterator(); entries.increment(error)) add(*entries, folder);
    DYDIT_CHECK(!error, "{}: cannot list the folder: {}", path.string(), error.message());
    above_.pop_back();
  }

 private:
  void add(const fs::directory_entry& entry, Folder& folder) {
    const std::string name = entry.path().filename().string();
    DYDIT_CHECK(++files_ <= kMaxFiles, "{}: holds more than {} files; is it the right folder?", root_,
                kMaxFiles);
    if (is_hidden(name)) {
      ++left_out_.hidden;
      return;
    }
    struct stat status {};
    // A link that leads nowhere stays: reading it says so.
    const bool there = ::stat(entry.path().c_str(), &status) == 0;
    if (!there || !S_ISDIR(status.st_mode)) {
      folder.files.push_back({entry.path().string(), {}, there ? static_cast<uint64_t>(status.st_size) : 0});
      return;
    }
    const std::pair self(status.st_dev, status.st_ino);
    if (std::find(above_.begin(), above_.end(), self) != above_.end()) {
      left_out_.add(kLink);
      return;
    }
    if (above_.size() > kMaxFolders) {
      left_out_.add(kTooDeep);
      return;
    }
    list(entry.path(), *(folder.folders[name] = std::make_unique<Folder>()));
  }

  LeftOut& left_out_;
  const std::string root_;
  std::vector<std::pair<dev_t, ino_t>> above_;  // the folders that the listed one lies in, and itself
  int64_t files_ = 0;
};

// The folders and the file of an archive's path; empty for what is hidden or too deep, which is counted.
std::vector<std::string> split_path(std::string_view path, LeftOut& left_out) {
  std::vector<std::string> parts;
  while (!path.empty()) {
    const size_t slash = std::min(path.find('/'), path.size());
    const std::string_view part = path.substr(0, slash);
    path.remove_prefix(std::min(slash + 1, path.size()));
    if (part.empty() || part == ".") continue;
    if (is_hidden(part)) {
      ++left_out.hidden;
      return {};
    }
    if (parts.size() > kMaxFolders) {
      left_out.add(kTooDeep);
      return {};
    }
    parts.emplace_back(part);
  }
  return parts;
}

Folder& folder_at(Folder& root, std::span<const std::string> parts) {
  Folder* folder = &root;
  for (const std::string& part : parts) {
    std::unique_ptr<Folder>& child = folder->folders[part];
    if (child == nullptr) child = std::make_unique<Folder>();
    folder = child.get();
  }
  return *folder;
}

// By name; of files of one name the last stays, as when an archive is unpacked.
void sort_files(Folder& folder) {
  std::vector<TreeFile>& files = folder.files;
  const auto by_name = [](const TreeFile& a, const TreeFile& b) { return a.name() < b.name(); };
  const auto same_name = [](const TreeFile& a, const TreeFile& b) { return a.name() == b.name(); };
  std::reverse(files.begin(), files.end());
  std::stable_sort(files.begin(), files.end(), by_name);
  files.erase(std::unique(files.begin(), files.end(), same_name), files.end());
  for (auto& [name, child] : folder.folders) sort_files(*child);
}

// "a/./b/../c" -> "a/c", as a link's target is meant.
std::string plain_path(const std::string& path) {
  std::string plain = fs::path(path).lexically_normal().string();
  while (plain.starts_with("./") || plain.starts_with('/')) plain.erase(0, plain.find('/') + 1);
  return plain;
}

// What a tar's link stands for: a file of the archive, through as many links as it takes; null without.
const TarMember* file_of(const TarMember* member,
                         const std::unordered_map<std::string, const TarMember*>& by_path) {
  constexpr int kMaxLinks = 16;
  for (int links = 0; member->kind == TarMember::Kind::Link; ++links) {
    if (links == kMaxLinks) return nullptr;
    // A hard link names a member; a symbolic one starts at its own folder.
    const std::string base = member->symbolic ? member->name.substr(0, member->name.rfind('/') + 1) : "";
    const auto found = by_path.find(plain_path(base + member->target));
    if (found == by_path.end()) return nullptr;
    member = found->second;
  }
  return member->kind == TarMember::Kind::File ? member : nullptr;
}

}  // namespace

struct Tree::Zip {
  FileBytes file;
  std::string name;
  ZipArchive archive{file.bytes, name};
};

Tree Tree::of_folder(const fs::path& path) {
  Tree tree;
  Lister(tree.left_out_, path).list(path, tree.root_);
  sort_files(tree.root_);
  return tree;
}

Tree Tree::of_tar(FileBytes tar, const std::string& name) {
  using enum TarMember::Kind;
  Tree tree;
  tree.owner_ = std::move(tar.owner);
  tree.archive_ = name;
  const std::vector<TarMember> members = parse_tar(tar.bytes, name);
  const bool links =
      std::any_of(members.begin(), members.end(), [](const TarMember& m) { return m.kind == Link; });
  std::unordered_map<std::string, const TarMember*> by_path;
  for (const TarMember& member : links ? std::span(members) : std::span<const TarMember>())
    by_path[plain_path(member.name)] = &member;
  for (const TarMember& member : members) {
    std::vector<std::string> parts = split_path(member.name, tree.left_out_);
    if (parts.empty()) continue;
    if (member.kind == Folder) {
      folder_at(tree.root_, parts);
      continue;
    }
    const TarMember* file = file_of(&member, by_path);
    if (file == nullptr) {
      tree.left_out_.add(member.kind == Link ? kLink : "other file");
      continue;
    }
    parts.pop_back();
    folder_at(tree.root_, parts).files.push_back({member.name, file->bytes, file->bytes.size()});
  }
  sort_files(tree.root_);
  return tree;
}

Tree Tree::of_zip(FileBytes zip, const std::string& name) {
  Tree tree;
  tree.archive_ = name;
  tree.zip_ = std::make_shared<const Zip>(Zip{std::move(zip), name});
  for (const std::string_view member : tree.zip_->archive.names()) {
    std::vector<std::string> parts = split_path(member, tree.left_out_);
    if (parts.empty()) continue;
    const bool is_folder = member.ends_with('/');
    if (!is_folder) parts.pop_back();
    struct Folder& folder = folder_at(tree.root_, parts);
    if (!is_folder)
      folder.files.push_back({std::string(member), {}, tree.zip_->archive.find_packed(member)->size});
  }
  sort_files(tree.root_);
  return tree;
}

FileBytes Tree::read(const TreeFile& file) const {
  if (zip_ != nullptr) {
    const auto packed = zip_->archive.find_packed(file.path);
    DYDIT_CHECK(
        packed->method == 0 || packed->method == 8,
        "{}: is packed in a way that is not read (zip method {}); unzip the archive and name the folder",
        display(file), packed->method);
    DYDIT_CHECK(packed->size > 0 && !packed->bytes.empty(), "{}: is empty (0 bytes)", display(file));
    DYDIT_CHECK(packed->size <= unpack_limit(packed->bytes.size()),
                "{}: unpacks to {} bytes; unzip the archive and name the folder", display(file),
                packed->size);
    if (packed->method == 0) return {packed->bytes, zip_};
    auto unpacked =
        std::make_shared<const Buffer>(inflate_raw(packed->bytes, packed->size, packed->crc, display(file)));
    return {unpacked->bytes(), unpacked};
  }
  if (!archive_.empty()) {
    DYDIT_CHECK(!file.bytes.empty(), "{}: is empty (0 bytes)", display(file));
    return {file.bytes, owner_};
  }
  auto mapped = MappedFile::open(file.path);
  const auto bytes = mapped->bytes();
  DYDIT_CHECK(file.size == 0 || bytes.size() == file.size,
              "{}: has {} bytes, {} when the data set was opened: it is being changed", file.path,
              bytes.size(), file.size);
  return {bytes, std::move(mapped)};
}

FileBytes Tree::read_start(const TreeFile& file, size_t most) const {
  if (!archive_.empty() || file.size <= most) return read(file);
  auto start = std::make_shared<std::vector<std::byte>>(most);
  std::ifstream stream(file.path, std::ios::binary);
  stream.read(reinterpret_cast<char*>(start->data()), static_cast<std::streamsize>(most));
  return {std::span(*start).first(static_cast<size_t>(stream.gcount())), start};
}

std::string Tree::display(const TreeFile& file) const {
  return archive_.empty() ? file.path : fmt::format("{}: {}", archive_, printable(file.path));
}

}  // namespace dydit
