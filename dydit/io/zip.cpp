// Zip directory reader. Every offset and length in the file is a claim: it is compared with what is left
// before it is used, always as `claim <= size - offset`, which cannot overflow.
#include "dydit/io/zip.h"

#include <algorithm>

#include "dydit/base/error.h"
#include "dydit/io/bytes.h"
#include "dydit/io/text.h"

namespace dydit {
namespace {

constexpr size_t kMaxComment = 65535;
constexpr uint16_t kEncrypted = 1;  // bit 0 of the flags

// Replaces the sizes and the offset that say "see the extra field". False when the field lacks one.
bool widen(std::span<const std::byte> extra, std::initializer_list<uint64_t*> fields) {
  std::span<const std::byte> wide;
  while (extra.size() >= 4) {
    const auto length = load_little<uint16_t>(extra.data() + 2);
    if (length > extra.size() - 4) return false;
    if (load_little<uint16_t>(extra.data()) == zip::kExtra64) wide = extra.subspan(4, length);
    extra = extra.subspan(4 + length);
  }
  for (uint64_t* field : fields) {
    if (*field != zip::kSeeExtra) continue;
    if (wide.size() < 8) return false;
    *field = load_little<uint64_t>(wide.data());
    wide = wide.subspan(8);
  }
  return true;
}

}  // namespace

void ZipArchive::damaged(std::string_view what) const {
  throw Error(
      fmt::format("{}: damaged zip file: {}. Was the download cut short? Fetch it again.", name_, what));
}

ZipArchive::ZipArchive(std::span<const std::byte> bytes, const std::string& name)
    : bytes_(bytes), name_(name) {
  const Directory directory = locate_directory();
  if (directory.offset > bytes.size() || directory.size > bytes.size() - directory.offset) {
    damaged("its directory lies outside the file");
  }
  std::span<const std::byte> rest = bytes.subspan(directory.offset, directory.size);
  for (uint64_t i = 0; i < directory.count; ++i) {
    if (rest.size() < zip::kDirectoryEntryBytes ||
        load_little<uint32_t>(rest.data()) != zip::kDirectoryEntry) {
      damaged(fmt::format("its directory ends after {} of {} members", i, directory.count));
    }
    const size_t name_length = load_little<uint16_t>(rest.data() + 28);
    const size_t extra_length = load_little<uint16_t>(rest.data() + 30);
    const size_t comment_length = load_little<uint16_t>(rest.data() + 32);
    const size_t length = zip::kDirectoryEntryBytes + name_length + extra_length + comment_length;
    if (length > rest.size()) damaged(fmt::format("entry {} of its directory is cut off", i));
    add_member(rest.first(zip::kDirectoryEntryBytes),
               text_of(rest.subspan(zip::kDirectoryEntryBytes, name_length)),
               rest.subspan(zip::kDirectoryEntryBytes + name_length, extra_length));
    rest = rest.subspan(length);
  }
}

ZipArchive::Directory ZipArchive::locate_directory() const {
  if (bytes_.size() < zip::kDirectoryEndBytes) damaged("it has no directory");
  const size_t last = bytes_.size() - zip::kDirectoryEndBytes;
  for (size_t comment = 0; comment <= std::min(last, kMaxComment); ++comment) {
    const size_t at = last - comment;
    const std::byte* end = bytes_.data() + at;
    if (load_little<uint32_t>(end) != zip::kDirectoryEnd) continue;
    if (load_little<uint16_t>(end + 20) != comment) continue;
    if (at >= zip::kDirectoryLocator64Bytes) {
      const size_t locator = at - zip::kDirectoryLocator64Bytes;
      if (load_little<uint32_t>(bytes_.data() + locator) == zip::kDirectoryLocator64) {
        return locate_directory64(locator);
      }
    }
    return {load_little<uint32_t>(end + 16), load_little<uint32_t>(end + 12),
            load_little<uint16_t>(end + 10)};
  }
  damaged("it has no directory");
}

ZipArchive::Directory ZipArchive::locate_directory64(uint64_t locator) const {
  const auto at = load_little<uint64_t>(bytes_.data() + locator + 8);
  if (at > locator || locator - at < zip::kDirectoryEnd64Bytes ||
      load_little<uint32_t>(bytes_.data() + at) != zip::kDirectoryEnd64) {
    damaged("its ZIP64 directory is not where it says");
  }
  const std::byte* end = bytes_.data() + at;
  return {load_little<uint64_t>(end + 48), load_little<uint64_t>(end + 40), load_little<uint64_t>(end + 32)};
}

void ZipArchive::add_member(std::span<const std::byte> entry, std::string_view member,
                            std::span<const std::byte> extra) {
  Member found{.flags = load_little<uint16_t>(entry.data() + 8),
               .method = load_little<uint16_t>(entry.data() + 10),
               .crc = load_little<uint32_t>(entry.data() + 16),
               .stored_size = load_little<uint32_t>(entry.data() + 20),
               .size = load_little<uint32_t>(entry.data() + 24),
               .header = load_little<uint32_t>(entry.data() + 42)};
  if (!widen(extra, {&found.size, &found.stored_size, &found.header})) {
    damaged(fmt::format("member {} lacks its 64-bit sizes", quote(member)));
  }
  if (!members_.emplace(member, found).second)
    damaged(fmt::format("member {} is listed twice", quote(member)));
}

std::optional<ZipArchive::Packed> ZipArchive::find_packed(std::string_view member) const {
  const auto found = members_.find(member);
  if (found == members_.end()) return std::nullopt;
  const Member& m = found->second;
  DYDIT_CHECK((m.flags & kEncrypted) == 0, "{}: member {} is encrypted; save it without a password", name_,
              quote(member));
  if (m.header > bytes_.size() || bytes_.size() - m.header < zip::kLocalHeaderBytes ||
      load_little<uint32_t>(bytes_.data() + m.header) != zip::kLocalHeader) {
    damaged(fmt::format("member {} is not where the directory says", quote(member)));
  }
  const std::byte* header = bytes_.data() + m.header;
  const uint64_t data = m.header + zip::kLocalHeaderBytes + load_little<uint16_t>(header + 26) +
                        load_little<uint16_t>(header + 28);
  if (data > bytes_.size() || m.stored_size > bytes_.size() - data) {
    damaged(fmt::format("member {} of {} bytes does not fit into the file", quote(member), m.stored_size));
  }
  return Packed{m.method, m.crc, m.size, bytes_.subspan(data, m.stored_size)};
}

std::optional<std::span<const std::byte>> ZipArchive::find(std::string_view member) const {
  const std::optional<Packed> packed = find_packed(member);
  if (!packed) return std::nullopt;
  DYDIT_CHECK(
      packed->method == 0 && packed->bytes.size() == packed->size,
      "{}: member {} is compressed (zip method {}); torch stores members as they are. Save it again with "
      "torch.save, or zip it with -0.",
      name_, quote(member), packed->method);
  return packed->bytes;
}

std::vector<std::string_view> ZipArchive::names() const {
  std::vector<std::string_view> result;
  result.reserve(members_.size());
  for (const auto& [member, unused] : members_) result.push_back(member);
  return result;
}

std::string_view ZipArchive::find_suffix(std::string_view suffix) const {
  for (const auto& [member, unused] : members_) {
    if (member.ends_with(suffix)) return member;
  }
  return {};
}

}  // namespace dydit
