// See the header.
#include "dydit/pipeline/classes.h"

#include <algorithm>
#include <charconv>
#include <map>
#include <set>

#include <fmt/ranges.h>

#include "dydit/base/error.h"
#include "dydit/base/nearest.h"
#include "dydit/io/text.h"

namespace dydit {
namespace {

constexpr std::string_view kNameMark = "name:";
constexpr size_t kLabelsShown = 10;

struct Item {
  std::string text;
  bool quoted = false;
};

std::string trimmed(std::string_view text) {
  const size_t begin = std::min(text.find_first_not_of(' '), text.size());
  return std::string(text.substr(begin, text.find_last_not_of(' ') + 1 - begin));
}

// "a, b" -> {"a", "b"}
std::vector<std::string> parts_of(std::string_view name) {
  std::vector<std::string> parts;
  for (size_t begin = 0; begin <= name.size();) {
    const size_t comma = std::min(name.find(',', begin), name.size());
    parts.push_back(trimmed(name.substr(begin, comma - begin)));
    begin = comma + 1;
  }
  return parts;
}

// The same name, however its commas are spaced.
std::string normal(std::string_view name) { return fmt::format("{}", fmt::join(parts_of(name), ", ")); }

// The text in quotes that `rest` begins with, which is taken off it.
std::string take_quoted(std::string_view& rest, std::string_view list) {
  std::string text;
  for (size_t i = 1; i < rest.size(); ++i) {
    if (rest[i] != '"') {
      text += rest[i];
    } else if (rest.substr(i + 1).starts_with('"')) {
      text += rest[i++];
    } else {
      rest.remove_prefix(i + 1);
      return text;
    }
  }
  throw UsageError(fmt::format("class list {}: a quote is not closed", quote(list)));
}

std::vector<Item> items_of(std::string_view list) {
  std::vector<Item> items;
  std::string_view rest = list;
  for (bool more = true; more;) {
    rest.remove_prefix(std::min(rest.find_first_not_of(' '), rest.size()));
    Item item;
    if (rest.starts_with('"')) item = {take_quoted(rest, list), true};
    const size_t comma = std::min(rest.find(','), rest.size());
    const std::string plain = trimmed(rest.substr(0, comma));
    DYDIT_USAGE_CHECK(!item.quoted || plain.empty(), "class list {}: {} follows a quote; expected a comma",
                      quote(list), quote(plain));
    if (!item.quoted) item.text = plain;
    DYDIT_USAGE_CHECK(!item.text.empty(), "class list {}: an item is empty", quote(list));
    items.push_back(item);
    more = comma < rest.size();
    rest.remove_prefix(std::min(comma + 1, rest.size()));
  }
  return items;
}

bool is_number(std::string_view text) {
  if (text.starts_with('-')) text.remove_prefix(1);
  return !text.empty() && text.find_first_not_of("0123456789") == text.npos;
}

class Resolver {
 public:
  Resolver(std::span<const std::string> names, int num_classes) : names_(names), num_classes_(num_classes) {
    for (size_t i = 0; i < names.size(); ++i) {
      const std::vector<std::string> parts = parts_of(names[i]);
      most_parts_ = std::max(most_parts_, parts.size());
      std::set<std::string> all(parts.begin(), parts.end());
      all.insert({names[i], normal(names[i])});
      whole_.insert(normal(names[i]));
      for (const std::string& name : all) labels_[name].push_back(static_cast<int>(i));
    }
  }

  std::vector<int> resolve(const std::vector<Item>& items) const {
    std::vector<int> labels;
    for (size_t i = 0; i < items.size();) {
      size_t taken = 1;
      const Item& item = items[i];
      labels.push_back(item.quoted            ? by_name(normal(item.text))
                       : is_number(item.text) ? by_number(item.text)
                                              : by_longest_name(items, i, taken));
      i += taken;
    }
    return labels;
  }

 private:
  int by_number(const std::string& text) const {
    int label = -1;
    std::from_chars(text.data(), text.data() + text.size(), label);
    const bool in_range = label >= 0 && label < num_classes_;
    if (!in_range && labels_.count(text) > 0) return by_name(text);
    DYDIT_USAGE_CHECK(in_range, "class {}: this model has classes 0 to {}", text, num_classes_ - 1);
    return label;
  }

  // As many items as make up the whole name of a class; else the one. A number is a label, so what holds one
  // is no name, unless name: says so.
  int by_longest_name(const std::vector<Item>& items, size_t first, size_t& taken) const {
    std::string joined = items[first].text;
    const bool marked = joined.starts_with(kNameMark) && labels_.count(joined) == 0;
    if (marked) joined.erase(0, kNameMark.size());
    std::string longest = joined;
    const size_t end = std::min(items.size(), first + most_parts_);
    for (size_t i = first + 1; i < end && !items[i].quoted && (marked || !is_number(items[i].text)); ++i) {
      joined += ", " + items[i].text;
      if (whole_.count(joined) == 0) continue;
      longest = joined;
      taken = i - first + 1;
    }
    return by_name(longest);
  }

  int by_name(const std::string& name) const {
    DYDIT_USAGE_CHECK(is_utf8(name), "class {}: is not UTF-8", quote(name));
    DYDIT_USAGE_CHECK(!names_.empty(),
                      "class '{}': this model has no class names; give 0 to {} or a --class-names FILE",
                      printable(name), num_classes_ - 1);
    const auto found = labels_.find(name);
    DYDIT_USAGE_CHECK(found != labels_.end(), "class '{}' is unknown; nearest: '{}'", printable(name),
                      printable(nearest_name(name, names_)));
    const std::span<const int> labels = found->second;
    DYDIT_USAGE_CHECK(labels.size() == 1, "class '{}' is a name of {} classes; give a label: {}{}",
                      printable(name), labels.size(),
                      fmt::join(labels.first(std::min(labels.size(), kLabelsShown)), ", "),
                      labels.size() > kLabelsShown ? ", ..." : "");
    return labels[0];
  }

  std::span<const std::string> names_;
  int num_classes_;
  std::map<std::string, std::vector<int>>
      labels_;                   // of all classes that are called so, as a whole or in part
  std::set<std::string> whole_;  // names, their commas spaced alike
  size_t most_parts_ = 1;
};

}  // namespace

std::vector<int> resolve_classes(std::string_view list, std::span<const std::string> names, int num_classes) {
  return Resolver(names, num_classes).resolve(items_of(list));
}

}  // namespace dydit
