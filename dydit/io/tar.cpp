// tar by POSIX 1003.1 (ustar, pax) with GNU's long names: blocks of 512 bytes, a header, then the member's
// bytes. Headers of type x, g, L and K describe the member that follows. Every size is a claim that is
// compared with what is left before it is used.
#include "dydit/io/tar.h"

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <optional>
#include <string_view>

#include "dydit/base/error.h"
#include "dydit/base/numbers.h"
#include "dydit/io/bytes.h"
#include "dydit/io/text.h"

namespace dydit {
namespace {

constexpr size_t kBlock = 512;

// Fields of a header block: offset and length.
struct Field {
  size_t at, length;
};
constexpr Field kName{0, 100}, kSize{124, 12}, kChecksum{148, 8}, kLink{157, 100}, kMagic{257, 5},
    kPrefix{345, 155};
constexpr size_t kType = 156;

// A field up to its first NUL.
std::string_view field(std::span<const std::byte> header, Field where) {
  const std::string_view text = text_of(header.subspan(where.at, where.length));
  return text.substr(0, text.find('\0'));
}

// Octal digits between blanks, or GNU's base 256 (first bit set).
std::optional<uint64_t> number(std::span<const std::byte> header, Field where) {
  const std::string_view raw = text_of(header.subspan(where.at, where.length));
  if ((static_cast<unsigned char>(raw[0]) & 0x80) != 0) {
    uint64_t value = static_cast<unsigned char>(raw[0]) & 0x7F;
    for (const char c : raw.substr(1)) {
      if (value >> 55 != 0) return std::nullopt;
      value = value << 8 | static_cast<unsigned char>(c);
    }
    return value;
  }
  const std::string_view text = trimmed(field(header, where));
  uint64_t value = 0;  // of at most 12 digits: no overflow
  if (std::from_chars(text.begin(), text.end(), value, 8).ptr != text.end()) return std::nullopt;
  return value;
}

// The sum of all bytes, those of the checksum itself taken as blanks.
bool checksum_fits(std::span<const std::byte> header) {
  uint64_t sum = 0;
  for (size_t i = 0; i < kBlock; ++i) {
    const bool own = i >= kChecksum.at && i < kChecksum.at + kChecksum.length;
    sum += own ? uint64_t{' '} : std::to_integer<uint64_t>(header[i]);
  }
  return number(header, kChecksum) == sum;
}

class TarParser {
 public:
  TarParser(std::span<const std::byte> bytes, const std::string& name) : rest_(bytes), file_(name) {}

  std::vector<TarMember> parse() {
    while (true) {
      if (rest_.size() < kBlock) damaged("it ends without its closing blocks");
      const auto header = rest_.first(kBlock);
      if (all_zero(header)) return std::move(members_);
      if (!checksum_fits(header))
        damaged(fmt::format("the header after {} members is wrong", members_.size()));
      rest_ = rest_.subspan(kBlock);
      take(header);
    }
  }

 private:
  [[noreturn]] void damaged(const std::string& what) const {
    throw Error(
        fmt::format("{}: damaged tar file: {}. Was the download cut short? Fetch it again.", file_, what));
  }

  void take(std::span<const std::byte> header) {
    const char type = static_cast<char>(header[kType]);
    const bool describes = type == 'x' || type == 'g' || type == 'L' || type == 'K';
    std::string name = describes || path_.empty() ? header_name(header) : std::move(path_);
    const auto own_size = number(header, kSize);
    if (!own_size) damaged(fmt::format("the size of {} is no number", quote(name)));
    const uint64_t size = describes || !size_ ? *own_size : *size_;
    const auto bytes = cut(has_bytes(type) ? size : 0, name);
    if (describes) {
      if (type == 'x') read_pax(text_of(bytes));
      const std::string_view text = text_of(bytes).substr(0, text_of(bytes).find('\0'));
      if (type == 'L') path_ = text;
      if (type == 'K') link_ = text;
      return;
    }
    if (link_.empty()) link_ = field(header, kLink);
    add(std::move(name), type, bytes);
    path_.clear();
    link_.clear();
    size_.reset();
  }

  void add(std::string name, char type, std::span<const std::byte> bytes) {
    using enum TarMember::Kind;
    DYDIT_CHECK(type != 'S', "{}: {} is stored as a sparse file; make the tar without --sparse", file_,
                quote(name));
    const bool file = type == '0' || type == '\0' || type == '7';
    // Archives older than ustar mark a folder by the slash alone.
    const bool folder = type == '5' || (file && name.ends_with('/'));
    const bool link = type == '1' || type == '2';
    members_.push_back({std::move(name),
                        folder ? Folder
                        : file ? File
                        : link ? Link
                               : Other,
                        bytes, link ? std::move(link_) : "", type == '2'});
  }

  // Links, devices and folders may state a size without having bytes.
  static bool has_bytes(char type) { return !(type >= '1' && type <= '6'); }

  std::span<const std::byte> cut(uint64_t size, std::string_view name) {
    if (size > rest_.size()) damaged(fmt::format("{} of {} bytes passes its end", quote(name), size));
    const auto bytes = rest_.first(size);
    const size_t padded = (size + kBlock - 1) / kBlock * kBlock;
    rest_ = rest_.subspan(std::min(padded, rest_.size()));
    return bytes;
  }

  static std::string header_name(std::span<const std::byte> header) {
    const std::string_view name = field(header, kName);
    // GNU's own format keeps other things in the prefix; its magic goes on with a blank.
    const bool posix = field(header, kMagic) == "ustar" && header[kMagic.at + kMagic.length] == std::byte{0};
    const std::string_view prefix = posix ? field(header, kPrefix) : "";
    return prefix.empty() ? std::string(name) : fmt::format("{}/{}", prefix, name);
  }

  // Records "LENGTH KEY=VALUE\n", LENGTH counting all of the record.
  void read_pax(std::string_view text) {
    while (!text.empty()) {
      const size_t blank = text.find(' ');
      const auto length = decimal(text.substr(0, blank));
      if (blank == text.npos || !length || *length <= blank + 1 || *length > text.size()) {
        damaged("a pax header is wrong");
      }
      const std::string_view record = text.substr(blank + 1, *length - blank - 2);  // without the newline
      text.remove_prefix(*length);
      const size_t equals = record.find('=');
      if (equals == record.npos) damaged("a pax header has a record without '='");
      const std::string_view key = record.substr(0, equals), value = record.substr(equals + 1);
      if (key == "path") path_ = value;
      if (key == "linkpath") link_ = value;
      if (key == "size" && !(size_ = decimal(value))) damaged("a pax header has a size that is no number");
      DYDIT_CHECK(!key.starts_with("GNU.sparse."), "{}: holds sparse files; make the tar without --sparse",
                  file_);
    }
  }

  static std::optional<uint64_t> decimal(std::string_view text) {
    return text.size() > 18 ? std::nullopt : parse_number<uint64_t>(text);
  }

  std::span<const std::byte> rest_;
  const std::string& file_;
  std::vector<TarMember> members_;
  // What x and L headers said of the next member.
  std::string path_, link_;
  std::optional<uint64_t> size_;
};

}  // namespace

bool is_tar(std::span<const std::byte> bytes) {
  return bytes.size() >= kBlock && !all_zero(bytes.first(kBlock)) && checksum_fits(bytes.first(kBlock));
}

std::vector<TarMember> parse_tar(std::span<const std::byte> bytes, const std::string& name) {
  return TarParser(bytes, name).parse();
}

}  // namespace dydit
