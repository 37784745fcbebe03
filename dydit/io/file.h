// Files on disk: read-only mappings, and outputs that appear whole or not at all.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace dydit {

/// A file's bytes, read only: a file of up to kCopiedBytes is copied, a larger one is mapped. What another
/// program does to the path (a rename over it, a removal) does not touch them; what it writes into a mapped
/// file itself is noticed by check_unchanged().
class MappedFile {
 public:
  /// Above it memory would be paid twice; below it a copy costs no more than the mapping, and what is done to
  /// the file afterwards can do no harm.
  static constexpr size_t kCopiedBytes = size_t{1} << 20;

  /// Throws Error when the file is missing, a directory, empty, cannot be mapped, or changes while it is
  /// read.
  static std::shared_ptr<const MappedFile> open(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  /// Takes the pages of [data, data + size) out of this process's memory; touched again, they come from the
  /// file. What lies outside the mapping is left alone, and so is a copy.
  void drop_pages(const void* data, size_t size) const;
  /// Throws Error when the file was written or cut short since it was opened: what was made of it may be of
  /// neither the old content nor the new one.
  void check_unchanged() const;
  const std::filesystem::path& path() const { return path_; }

  /// The mapped file in whose bytes `address` lies, or null. For a handler of SIGBUS, which comes when a file
  /// was cut short or its disk fails: touches no lock and no heap.
  static const MappedFile* at(const void* address) noexcept;

 private:
  MappedFile(std::filesystem::path path, int descriptor, size_t size);
  void read_copy();
  void map();
  void check_state(int descriptor) const;
  bool is_mapped() const { return descriptor_ >= 0; }

  std::filesystem::path path_;
  int descriptor_;  // of a mapped file, to ask after its state whatever becomes of its name; -1: copied
  size_t size_;
  int64_t modified_ns_ = 0;
  const std::byte* data_ = nullptr;
};

/// Synced: the bytes are on the disk before the name changes and the folder after it, so that not even a
/// power cut leaves half a file or brings back the old one.
enum class Durability { Normal, Synced };

/// A file being written. The bytes go to a temporary name beside the target, commit() renames it over the
/// target; without commit() the destructor removes it and the target stays as it was. Missing folders are
/// made, and removed again without commit(). A target that exists and is not a regular file (a pipe) is
/// written directly, and one of this process's open descriptors (/dev/stdout, /dev/fd/N) through that
/// descriptor, from where it stands. Through a symbolic link the file it leads to is replaced, the link
/// stays. Every failure throws an Error that names the target and the system's reason.
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
  int open_temporary();
  void abandon() noexcept;
  void sync_folders() const;

  std::filesystem::path target_;
  std::filesystem::path temporary_;                  // empty when the target is written directly
  std::vector<std::filesystem::path> made_folders_;  // the outermost first
  bool is_stream_ = false;                           // the target is an open descriptor of this process
  int descriptor_ = -1;
  uint64_t size_ = 0;
};

/// `text` as a whole file.
void write_output_file(const std::filesystem::path& target, std::string_view text);

/// Fails now, with OutputFile's Error, rather than after the work whose result is to be written to `target`.
/// Leaves nothing behind.
void check_writable(const std::filesystem::path& target);

/// Throws UsageError when `output` is one of the files `inputs`: the same by device and inode, so through
/// links and other spellings, too.
void check_not_input(const std::filesystem::path& output, std::span<const std::filesystem::path> inputs);

/// N when the path leads, link by link, to this process's open file number N: /dev/stdout, /dev/fd/N.
std::optional<int> own_descriptor(std::filesystem::path path);

/// Removes the temporaries of all OutputFiles. For a handler of signals that ends the process next: touches
/// no lock and no heap.
void remove_temporaries() noexcept;

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
