// tar archives that lie in memory: ustar, GNU long names, pax paths, links and sizes. Nothing is ever
// extracted; a member's bytes are a view into the archive.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

namespace dydit {

struct TarMember {
  enum class Kind { File, Folder, Link, Other };
  std::string name;  // as the archive has it: may be absolute or hold ".."
  Kind kind = Kind::File;
  std::span<const std::byte> bytes;  // of a file
  std::string target;  // of a link: a member's name, or where a symbolic one leads from its folder
  bool symbolic = false;
};

/// True when the first block is a tar header with a right checksum.
bool is_tar(std::span<const std::byte> bytes);

/// The members in the order of the archive. Throws Error (names the file) when it is damaged or cut short.
std::vector<TarMember> parse_tar(std::span<const std::byte> bytes, const std::string& name);

}  // namespace dydit
