// Zip files made in memory for tests, with the knobs that a hostile or foreign writer would turn.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "dydit/io/bytes.h"
#include "dydit/io/zip.h"

namespace dydit::test {

struct ZipMember {
  std::string name;
  std::string bytes;
  uint16_t method = 0;    // 8 = deflate
  uint64_t unpacked = 0;  // size of a deflated member once unpacked; 0: that of `bytes`
  uint32_t crc = 0;       // read for deflated members only

  uint64_t size() const { return unpacked == 0 ? bytes.size() : unpacked; }
};

enum class ZipForm { Plain, Zip64 };

inline void append_sizes(std::string& out, const ZipMember& member, bool wide) {
  append_little<uint32_t>(out, member.crc);
  for (const uint64_t size : {uint64_t{member.bytes.size()}, member.size()}) {
    append_little<uint32_t>(out, wide ? zip::kSeeExtra : static_cast<uint32_t>(size));
  }
  append_little<uint16_t>(out, static_cast<uint16_t>(member.name.size()));
}

inline std::string build_zip(const std::vector<ZipMember>& members, ZipForm form = ZipForm::Plain) {
  const bool wide = form == ZipForm::Zip64;
  std::string out;
  std::string directory;
  for (const ZipMember& member : members) {
    const uint64_t offset = out.size();
    append_little<uint32_t>(out, zip::kLocalHeader);
    append_little<uint32_t>(out, 0);  // version, flags
    append_little<uint16_t>(out, member.method);
    append_little<uint32_t>(out, 0);  // time, date
    append_sizes(out, member, false);
    append_little<uint16_t>(out, 0);
    out += member.name + member.bytes;

    append_little<uint32_t>(directory, zip::kDirectoryEntry);
    append_little<uint32_t>(directory, 0);  // made by, version
    append_little<uint16_t>(directory, 0);  // flags
    append_little<uint16_t>(directory, member.method);
    append_little<uint32_t>(directory, 0);  // time, date
    append_sizes(directory, member, wide);
    append_little<uint16_t>(directory, wide ? 28 : 0);
    directory.append(10, '\0');  // comment, disk, attributes
    append_little<uint32_t>(directory, wide ? zip::kSeeExtra : static_cast<uint32_t>(offset));
    directory += member.name;
    if (wide) {
      append_little<uint16_t>(directory, zip::kExtra64);
      append_little<uint16_t>(directory, 24);
      append_little<uint64_t>(directory, member.size());
      append_little<uint64_t>(directory, member.bytes.size());
      append_little<uint64_t>(directory, offset);
    }
  }
  const uint64_t start = out.size();
  out += directory;
  if (wide) {
    append_little<uint32_t>(out, zip::kDirectoryEnd64);
    append_little<uint64_t>(out, zip::kDirectoryEnd64Bytes - 12);
    append_little<uint32_t>(out, 0);
    append_little<uint64_t>(out, 0);
    append_little<uint64_t>(out, members.size());
    append_little<uint64_t>(out, members.size());
    append_little<uint64_t>(out, directory.size());
    append_little<uint64_t>(out, start);
    append_little<uint32_t>(out, zip::kDirectoryLocator64);
    append_little<uint32_t>(out, 0);
    append_little<uint64_t>(out, start + directory.size());
    append_little<uint32_t>(out, 1);
  }
  append_little<uint32_t>(out, zip::kDirectoryEnd);
  append_little<uint32_t>(out, 0);
  append_little<uint16_t>(out, static_cast<uint16_t>(members.size()));
  append_little<uint16_t>(out, static_cast<uint16_t>(members.size()));
  append_little<uint32_t>(out, wide ? zip::kSeeExtra : static_cast<uint32_t>(directory.size()));
  append_little<uint32_t>(out, wide ? zip::kSeeExtra : static_cast<uint32_t>(start));
  append_little<uint16_t>(out, 0);
  return out;
}

}  // namespace dydit::test
