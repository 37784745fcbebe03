// Zip archives out: stored (uncompressed) members with sizes in ZIP64, none of them held in memory. Equal
// members make equal files.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dydit/io/file.h"

namespace dydit {

struct ZipLayout {
  size_t alignment = 1;      // of members' first bytes; above 1, torch's padding goes in front
  bool directory64 = false;  // also offsets and the number of members in ZIP64, as torch writes them; numpy
                             // writes one member and keeps them small
};

class ZipWriter {
 public:
  explicit ZipWriter(const std::filesystem::path& path, const ZipLayout& layout = {});

  /// A whole member.
  void add(std::string_view name, std::span<const std::byte> bytes);
  void add(std::string_view name, std::string_view text);
  /// A member bit by bit: close() comes back to fill in its first `head_bytes`, which only then are known, so
  /// the target cannot be a stream.
  void open(std::string_view name, size_t head_bytes);
  void append(std::span<const std::byte> bytes);
  void close(std::string_view head);

  /// Writes the directory, calls `before` (which may throw to leave the target as it was) and renames into
  /// place.
  void commit(const std::function<void()>& before = {});

 private:
  struct Member {
    std::string name;
    uint64_t offset;  // of its header
    uint64_t size = 0;
    uint32_t crc = 0;
  };
  std::string local_header(const Member& member) const;
  std::string directory_entry(const Member& member) const;
  std::string directory_end(uint64_t offset, uint64_t size) const;

  OutputFile file_;
  ZipLayout layout_;
  std::vector<Member> members_;
};

}  // namespace dydit
