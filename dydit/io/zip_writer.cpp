// See the header; the fields are those of APPNOTE 6.3, section 4.3.
#include "dydit/io/zip_writer.h"

#include <zlib.h>

#include "dydit/io/bytes.h"
#include "dydit/io/zip.h"

namespace dydit {
namespace {

constexpr uint16_t kZipVersion = 45;         // ZIP64 needs 4.5
constexpr uint16_t kDosDate = (1 << 5) | 1;  // 1 January 1980, always
constexpr uint16_t kExtraPadding = 0x4246;   // torch's own "FB": an extra field of zeros
constexpr size_t kExtraHead = 4;             // kind and length of an extra field

uint32_t checksum(uint32_t crc, std::span<const std::byte> bytes) {
  return static_cast<uint32_t>(crc32_z(crc, reinterpret_cast<const Bytef*>(bytes.data()), bytes.size()));
}

// The fields that header and directory entry share, from the version to the length of the extra field.
void append_common(std::string& out, std::string_view name, uint32_t crc, size_t extra_bytes) {
  append_little<uint16_t>(out, kZipVersion);
  append_little<uint16_t>(out, 0);  // flags
  append_little<uint16_t>(out, 0);  // method: stored
  append_little<uint16_t>(out, 0);  // time
  append_little<uint16_t>(out, kDosDate);
  append_little<uint32_t>(out, crc);
  append_little<uint32_t>(out, zip::kSeeExtra);  // stored size
  append_little<uint32_t>(out, zip::kSeeExtra);  // size
  append_little<uint16_t>(out, static_cast<uint16_t>(name.size()));
  append_little<uint16_t>(out, static_cast<uint16_t>(extra_bytes));
}

std::string extra64(std::initializer_list<uint64_t> values) {
  std::string out;
  append_little<uint16_t>(out, zip::kExtra64);
  append_little<uint16_t>(out, static_cast<uint16_t>(values.size() * sizeof(uint64_t)));
  for (const uint64_t value : values) append_little<uint64_t>(out, value);
  return out;
}

}  // namespace

ZipWriter::ZipWriter(const std::filesystem::path& path, const ZipLayout& layout)
    : file_(path), layout_(layout) {}

std::string ZipWriter::local_header(const Member& member) const {
  std::string extra = extra64({member.size, member.size});
  if (layout_.alignment > 1) {
    const size_t begin =
        member.offset + zip::kLocalHeaderBytes + member.name.size() + extra.size() + kExtraHead;
    const size_t padding = (layout_.alignment - begin % layout_.alignment) % layout_.alignment;
    append_little<uint16_t>(extra, kExtraPadding);
    append_little<uint16_t>(extra, static_cast<uint16_t>(padding));
    extra.append(padding, '\0');
  }
  std::string out;
  append_little<uint32_t>(out, zip::kLocalHeader);
  append_common(out, member.name, member.crc, extra.size());
  return out + member.name + extra;
}

std::string ZipWriter::directory_entry(const Member& member) const {
  const std::string extra = layout_.directory64 ? extra64({member.size, member.size, member.offset})
                                                : extra64({member.size, member.size});
  std::string out;
  append_little<uint32_t>(out, zip::kDirectoryEntry);
  append_little<uint16_t>(out, kZipVersion);  // made by
  append_common(out, member.name, member.crc, extra.size());
  out.append(10, '\0');  // comment, disk, attributes
  append_little<uint32_t>(out, layout_.directory64 ? zip::kSeeExtra : static_cast<uint32_t>(member.offset));
  return out + member.name + extra;
}

// The three records that close a ZIP64 file.
std::string ZipWriter::directory_end(uint64_t offset, uint64_t size) const {
  std::string out;
  append_little<uint32_t>(out, zip::kDirectoryEnd64);
  append_little<uint64_t>(out, zip::kDirectoryEnd64Bytes - 12);  // what follows this field
  append_little<uint16_t>(out, kZipVersion);                     // made by
  append_little<uint16_t>(out, kZipVersion);                     // needed
  append_little<uint64_t>(out, 0);                               // this disk, the directory's disk
  append_little<uint64_t>(out, members_.size());                 // here
  append_little<uint64_t>(out, members_.size());                 // in all
  append_little<uint64_t>(out, size);
  append_little<uint64_t>(out, offset);

  append_little<uint32_t>(out, zip::kDirectoryLocator64);
  append_little<uint32_t>(out, 0);  // disk
  append_little<uint64_t>(out, offset + size);
  append_little<uint32_t>(out, 1);  // disks in all

  const uint16_t count = layout_.directory64 ? 0xFFFF : static_cast<uint16_t>(members_.size());
  append_little<uint32_t>(out, zip::kDirectoryEnd);
  append_little<uint32_t>(out, 0);      // this disk, the directory's disk
  append_little<uint16_t>(out, count);  // here
  append_little<uint16_t>(out, count);  // in all
  append_little<uint32_t>(out, zip::kSeeExtra);
  append_little<uint32_t>(out, zip::kSeeExtra);
  append_little<uint16_t>(out, 0);  // comment
  return out;
}

void ZipWriter::add(std::string_view name, std::span<const std::byte> bytes) {
  members_.push_back({std::string(name), file_.size(), bytes.size(), checksum(0, bytes)});
  file_.write(local_header(members_.back()));
  file_.write(bytes);
}

void ZipWriter::add(std::string_view name, std::string_view text) { add(name, bytes_of(text)); }

void ZipWriter::open(std::string_view name, size_t head_bytes) {
  members_.push_back({std::string(name), file_.size()});
  file_.write(local_header(members_.back()) + std::string(head_bytes, '\0'));
}

void ZipWriter::append(std::span<const std::byte> bytes) {
  Member& member = members_.back();
  member.crc = checksum(member.crc, bytes);
  member.size += bytes.size();
  file_.write(bytes);
}

void ZipWriter::close(std::string_view head) {
  Member& member = members_.back();
  // Checksums of neighbours combine.
  member.crc = static_cast<uint32_t>(
      crc32_combine64(checksum(0, bytes_of(head)), member.crc, static_cast<z_off64_t>(member.size)));
  member.size += head.size();
  file_.write_at(member.offset, bytes_of(local_header(member).append(head)));
}

void ZipWriter::commit(const std::function<void()>& before) {
  const uint64_t begin = file_.size();
  for (const Member& member : members_) file_.write(directory_entry(member));
  file_.write(directory_end(begin, file_.size() - begin));
  if (before) before();
  file_.commit();
}

}  // namespace dydit
