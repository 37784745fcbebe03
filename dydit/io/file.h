// Files on disk: read-only mappings, and outputs that appear whole or not at all.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace dydit {

/// A file mapped read-only. Throws Error when it is missing, a directory, empty or cannot be mapped.
class MappedFile {
 public:
  static std::shared_ptr<const MappedFile> open(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  /// Takes the pages of [data, data + size) out of this process's memory; touched again, they come from the
  /// file. What lies outside the mapping is left alone.
  void drop_pages(const void* data, size_t size) const;
  const std::filesystem::path& path() const { return path_; }

 private:
  MappedFile(std::filesystem::path path, const std::byte* data, size_t size);
  std::filesystem::path path_;
  const std::byte* data_;
  size_t size_;
};

/// Synced: the bytes are on the disk before the name changes, so that not even a power cut leaves half a
/// file.
enum class Durability { Normal, Synced };

/// A file being written. The bytes go to a temporary name beside the target, commit() renames it over the
/// target; without commit() the destructor removes it and the target stays as it was. A target that exists
/// and is not a regular file (a pipe, /dev/stdout) is written directly. Through a symbolic link the file it
/// leads to is replaced, the link stays.
/// Every failure throws an Error that names the target and the system's reason.
class OutputFile {
 public:
  explicit OutputFile(std::filesystem::path target);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  void write(std::span<const std::byte> bytes);
  void write(std::string_view text);
  /// Overwrites bytes already written (to fill in a header); an Error on a target that cannot seek.
  void write_at(uint64_t offset, std::span<const std::byte> bytes);
  uint64_t size() const { return size_; }
  void commit(Durability durability = Durability::Normal);

 private:
  std::filesystem::path target_;
  std::filesystem::path temporary_;  // empty when the target is written directly
  int descriptor_ = -1;
  uint64_t size_ = 0;
};

/// A folder that this process alone works in, as long as the object lives; the system frees it with the
/// process.
class FolderLock {
 public:
  /// Throws Error when another process holds it or the folder cannot be opened. Where the file system has no
  /// locks nothing is held.
  explicit FolderLock(const std::filesystem::path& folder);
  ~FolderLock();
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

 private:
  int descriptor_;
};

/// SHA-256 as 64 hexadecimal digits, the same as sha256sum prints.
std::string sha256_hex(std::span<const std::byte> bytes);

enum class FileKind { Safetensors, TorchZip, TorchLegacy, Png, Npz, Unknown };

/// Tells a file by its content, never by its extension. TorchLegacy: a bare pickle stream (first byte 0x80).
FileKind sniff_file_kind(std::span<const std::byte> bytes);

}  // namespace dydit
