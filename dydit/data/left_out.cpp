#include "dydit/data/left_out.h"

#include <algorithm>
#include <cctype>
#include <utility>
#include <vector>

#include <fmt/ranges.h>

#include "dydit/io/text.h"

namespace dydit {
namespace {

constexpr const char* kOther = "other file";
constexpr size_t kLongestExtension = 6, kMostKinds = 8;

std::string counted(int64_t count, const std::string& kind) {
  const bool noun = kind.ends_with("link") || kind.ends_with("file");
  return fmt::format("{} {}{}", count, kind, noun && count > 1 ? "s" : "");
}

}  // namespace

std::string lower_extension(std::string_view file_name) {
  return lower_case(file_name.substr(std::min(file_name.rfind('.'), file_name.size())));
}

void LeftOut::add_by_extension(std::string_view file_name) {
  const std::string extension = lower_extension(file_name);
  const bool plain = extension.size() > 1 && extension.size() <= kLongestExtension &&
                     std::all_of(extension.begin() + 1, extension.end(),
                                 [](unsigned char c) { return c < 0x80 && std::isalnum(c); });
  add(plain ? extension : kOther);
}

std::string LeftOut::summary() const {
  std::vector<std::pair<std::string, int64_t>> sorted(kinds.begin(), kinds.end());
  std::stable_sort(sorted.begin(), sorted.end(),
                   [](const auto& a, const auto& b) { return a.second > b.second; });
  if (sorted.size() > kMostKinds) {
    int64_t rest = 0;
    for (size_t i = kMostKinds; i < sorted.size(); ++i) rest += sorted[i].second;
    sorted.resize(kMostKinds);
    sorted.emplace_back("of other kinds", rest);
  }
  std::vector<std::string> parts;
  for (const auto& [kind, count] : sorted) parts.push_back(counted(count, kind));
  return fmt::format("{}", fmt::join(parts, ", "));
}

}  // namespace dydit
