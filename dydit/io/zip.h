// Zip archives as torch and numpy write them: a directory at the end (ZIP64 or not). torch stores members
// uncompressed, so that a member's bytes are a view into the file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace dydit {

/// Signatures and marks of the zip format (APPNOTE 6.3, section 4.3).
namespace zip {
inline constexpr uint32_t kLocalHeader = 0x04034b50;
inline constexpr uint32_t kDirectoryEntry = 0x02014b50;
inline constexpr uint32_t kDirectoryEnd = 0x06054b50;
inline constexpr uint32_t kDirectoryEnd64 = 0x06064b50;
inline constexpr uint32_t kDirectoryLocator64 = 0x07064b50;
inline constexpr uint16_t kExtra64 = 1;            // the extra field that holds 64-bit sizes
inline constexpr uint32_t kSeeExtra = 0xFFFFFFFF;  // in a 32-bit size or offset: look in the extra field
inline constexpr size_t kLocalHeaderBytes = 30;
inline constexpr size_t kDirectoryEntryBytes = 46;
inline constexpr size_t kDirectoryEndBytes = 22;
inline constexpr size_t kDirectoryEnd64Bytes = 56;
inline constexpr size_t kDirectoryLocator64Bytes = 20;
}  // namespace zip

/// The directory of a zip file that lies in memory. The buffer and `name` outlive the archive.
class ZipArchive {
 public:
  /// Reads the directory; throws Error (names the file) when it is damaged.
  ZipArchive(std::span<const std::byte> bytes, const std::string& name);

  /// The bytes of a member, or nothing when there is none of that name. Throws Error when it is compressed,
  /// encrypted or does not lie within the file.
  std::optional<std::span<const std::byte>> find(std::string_view member) const;

  /// A member as it is stored: method 0 plain, 8 deflated.
  struct Packed {
    uint16_t method;
    uint32_t crc;
    uint64_t size;  // unpacked
    std::span<const std::byte> bytes;
  };
  /// The same for a member that may be compressed.
  std::optional<Packed> find_packed(std::string_view member) const;

  /// The names of all members, in alphabetical order.
  std::vector<std::string_view> names() const;

  /// The first member (by name) whose name ends so; empty when none does.
  std::string_view find_suffix(std::string_view suffix) const;

 private:
  struct Member {
    uint16_t flags;
    uint16_t method;
    uint32_t crc;
    uint64_t stored_size;
    uint64_t size;
    uint64_t header;  // offset of the local header
  };
  struct Directory {
    uint64_t offset;
    uint64_t size;
    uint64_t count;
  };

  Directory locate_directory() const;
  Directory locate_directory64(uint64_t locator) const;
  void add_member(std::span<const std::byte> entry, std::string_view member,
                  std::span<const std::byte> extra);
  [[noreturn]] void damaged(std::string_view what) const;

  std::span<const std::byte> bytes_;
  const std::string& name_;
  std::map<std::string_view, Member> members_;
};

}  // namespace dydit
