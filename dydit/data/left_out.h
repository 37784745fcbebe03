// What of a data set's files is not read, by kind: said once, so that nothing is passed over in silence.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

namespace dydit {

struct LeftOut {
  std::map<std::string, int64_t> kinds;  // ".webp", "link", "broken", ...: files of each
  int64_t hidden = 0;                    // what systems leave about: .DS_Store, Thumbs.db, ._NAME, __MACOSX

  void add(const std::string& kind, int64_t files = 1) { kinds[kind] += files; }
  /// A file by its extension; one without an extension, or with a strange one, as "other file".
  void add_by_extension(std::string_view file_name);
  /// "7 .webp, 1 link, 2 other files": the most numerous kinds one by one. Empty when there are none.
  std::string summary() const;
};

/// ".jpg" of "IMG_1.JPG"; empty without one.
std::string lower_extension(std::string_view file_name);

}  // namespace dydit
