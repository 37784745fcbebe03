#include "dydit/data/classes.h"

#include <algorithm>
#include <map>
#include <optional>
#include <set>

#include <fmt/ranges.h>

#include "dydit/base/error.h"
#include "dydit/base/nearest.h"
#include "dydit/base/numbers.h"
#include "dydit/io/text.h"
#include "dydit/io/unicode.h"

namespace dydit {
namespace {

constexpr size_t kMostListed = 12;

using Names = std::vector<std::string>;

std::string list_of(const Names& names) {
  Names shown;
  for (const std::string& name : names) {
    if (shown.size() == kMostListed) break;
    shown.push_back(quote(name));
  }
  const size_t more = names.size() - shown.size();
  return fmt::format("{}{}", fmt::join(shown, ", "), more > 0 ? fmt::format(" and {} more", more) : "");
}

// The whole number that a name is, written as numbers are or with zeros before it.
std::optional<int> number_of(const std::string& name) {
  const auto number = parse_number<int>(name);
  return number && *number >= 0 ? number : std::nullopt;
}

bool are_numbers(const Names& names) {
  return std::all_of(names.begin(), names.end(),
                     [](const std::string& name) { return number_of(name).has_value(); });
}

// Names that say no more than the labels do.
bool are_labels(const Names& names) {
  for (size_t i = 0; i < names.size(); ++i) {
    if (number_of(names[i]) != static_cast<int>(i)) return false;
  }
  return true;
}

// The labels a name stands for, by its canonical form; parts of names with commas apart.
struct NameTable {
  std::map<std::u32string, std::vector<int>> whole, part;

  explicit NameTable(const Names& names) {
    for (size_t label = 0; label < names.size(); ++label) {
      whole[unicode_key(names[label])].push_back(static_cast<int>(label));
      if (names[label].find(',') == std::string::npos) continue;
      for (const std::string_view piece : comma_parts(names[label])) {
        if (!piece.empty()) part[unicode_key(piece)].push_back(static_cast<int>(label));
      }
    }
  }

  std::vector<int> labels_of(const std::string& name) const {
    const std::u32string key = unicode_key(name);
    for (const auto* table : {&whole, &part}) {
      if (const auto found = table->find(key); found != table->end()) return found->second;
    }
    return {};
  }
};

std::string label_text(const Names& names, int label) {
  return names.empty() ? std::to_string(label)
                       : fmt::format("{} ({})", label, quote(names[static_cast<size_t>(label)]));
}

// "class of the data -> label (class of the model)", a line each.
void add_table(const DataClasses& data, const Names& model, const std::vector<int>& labels, Names& lines) {
  for (size_t i = 0; i < labels.size() && i < kMostListed; ++i) {
    lines.push_back(fmt::format("  {} -> {}", quote(data.names[i]), label_text(model, labels[i])));
  }
  if (labels.size() > kMostListed)
    lines.push_back(fmt::format("  ... and {} more", labels.size() - kMostListed));
}

std::vector<int> by_position(size_t count) {
  std::vector<int> labels(count);
  for (size_t i = 0; i < count; ++i) labels[i] = static_cast<int>(i);
  return labels;
}

std::vector<int> by_number(const DataClasses& data, const ModelClasses& model, const std::string& where) {
  std::vector<int> labels;
  for (const std::string& name : data.names) {
    const std::optional<int> number = number_of(name);
    DYDIT_CHECK(number && *number < model.count,
                "{}: --match-classes number: class {} is no number from 0 to {}; match by name or position",
                where, quote(name), model.count - 1);
    labels.push_back(*number);
  }
  return labels;
}

[[noreturn]] void refuse_unknown(const DataClasses& data, const ModelClasses& model, const Names& unknown,
                                 const std::string& where) {
  const std::string nearest = nearest_name(unknown.front(), model.names);
  throw Error(
      fmt::format("{}: {} of its {} classes {} no class of the model: {} (nearest to {}: {}); the model has "
                  "{}. Rename the "
                  "folders, or take them by position with --match-classes position",
                  where, unknown.size(), data.names.size(), unknown.size() == 1 ? "is" : "are",
                  list_of(unknown), quote(unknown.front()), quote(nearest), list_of(model.names)));
}

// Two classes of the data with one label would be mixed.
void check_distinct(const DataClasses& data, const ModelClasses& model, const std::vector<int>& labels,
                    const std::string& where) {
  std::map<int, size_t> first;
  for (size_t i = 0; i < labels.size(); ++i) {
    const auto [other, fresh] = first.emplace(labels[i], i);
    DYDIT_CHECK(fresh, "{}: classes {} and {} are both class {} of the model; put them into one folder",
                where, quote(data.names[other->second]), quote(data.names[i]),
                label_text(model.names, labels[i]));
  }
}

// By name; nothing when a name is no class of the model, which `unknown` then lists.
std::optional<std::vector<int>> by_name(const DataClasses& data, const ModelClasses& model,
                                        const std::string& where, Names& unknown) {
  const NameTable table(model.names);
  std::vector<int> labels;
  for (const std::string& name : data.names) {
    const std::vector<int> found = table.labels_of(name);
    DYDIT_CHECK(
        found.size() <= 1,
        "{}: class {} could be label {} of the model, whose names repeat; rename the folders, or take "
        "them by position with --match-classes position",
        where, quote(name), fmt::join(found, " or "));
    if (found.empty()) {
      unknown.push_back(name);
    } else {
      labels.push_back(found.front());
    }
  }
  if (!unknown.empty()) return std::nullopt;
  return labels;
}

ClassMatch match_by_name(const DataClasses& data, const ModelClasses& model, const std::string& where) {
  ClassMatch match;
  match.labels = by_position(data.names.size());
  if (data.names == model.names) return match;
  Names unknown;
  if (!model.names.empty()) {
    if (auto labels = by_name(data, model, where, unknown)) {
      check_distinct(data, model, *labels, where);
      match.labels = *std::move(labels);
      if (!data.named) return match;  // numbers that are labels need no table
      match.notes.push_back(fmt::format("classes  matched by name, {} of the model's {}", data.names.size(),
                                        model.names.size()));
      add_table(data, model.names, match.labels, match.notes);
      return match;
    }
  }
  const bool data_named = data.named && !are_labels(data.names);
  const bool model_named = !model.names.empty() && !are_labels(model.names);
  if (data_named && model_named) refuse_unknown(data, model, unknown, where);
  DYDIT_CHECK(
      !data_named || !are_numbers(data.names),
      "{}: the classes are numbers, but not 0, 1, 2, ...: {}; the model has no names that tell what they "
      "are. --match-classes number: a name is its label; position: the first by name is label 0",
      where, list_of(data.names));
  if ((data_named || model_named) && model.count > 0) {  // a model without classes asks for no label
    match.notes.push_back(fmt::format("classes  by position: the {} no names of classes",
                                      model_named ? "data has" : "model has"));
  }
  return match;
}

// A list of classes, taken apart.

constexpr std::string_view kNameMark = "name:";
constexpr size_t kLabelsShown = 10;

struct Item {
  std::string text;
  bool quoted = false;
};

// The same name, however its commas are spaced.
std::string normal(std::string_view name) { return fmt::format("{}", fmt::join(comma_parts(name), ", ")); }

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
    const std::string plain(trimmed(rest.substr(0, comma)));
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

bool is_whole_number(std::string_view text) {
  if (text.starts_with('-')) text.remove_prefix(1);
  return !text.empty() && text.find_first_not_of("0123456789") == text.npos;
}

class Resolver {
 public:
  Resolver(std::span<const std::string> names, int num_classes) : names_(names), num_classes_(num_classes) {
    for (size_t i = 0; i < names.size(); ++i) {
      const std::vector<std::string_view> parts = comma_parts(names[i]);
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
      labels.push_back(item.quoted                  ? by_name(normal(item.text))
                       : is_whole_number(item.text) ? by_number(item.text)
                                                    : by_longest_name(items, i, taken));
      i += taken;
    }
    return labels;
  }

 private:
  int by_number(const std::string& text) const {
    const int label = number_of(text).value_or(-1);
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
    for (size_t i = first + 1; i < end && !items[i].quoted && (marked || !is_whole_number(items[i].text));
         ++i) {
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

DataClasses numbered_classes(int count) {
  DataClasses classes{{}, /*named=*/false};
  for (int i = 0; i < count; ++i) classes.names.push_back(std::to_string(i));
  return classes;
}

ClassMatch match_classes(const DataClasses& data, const ModelClasses& model, const std::string& where) {
  ClassMatch match;
  if (model.rule == MatchRule::Name) {
    match = match_by_name(data, model, where);
  } else {
    const bool number = model.rule == MatchRule::Number;
    match.labels = number ? by_number(data, model, where) : by_position(data.names.size());
    check_distinct(data, model, match.labels, where);
    if (!model.names.empty() && data.names != model.names) {
      match.warnings.push_back(
          fmt::format("classes are matched by {}, whatever their names:", number ? "number" : "position"));
    } else if (number) {
      match.notes.push_back("classes  matched by number");
    }
    Names& lines = match.warnings.empty() ? match.notes : match.warnings;
    const bool fits = data.names.size() <= static_cast<size_t>(model.count);
    if (!lines.empty() && fits) add_table(data, model.names, match.labels, lines);
  }
  match.names = model.names;
  if (match.names.empty() && match.labels == by_position(data.names.size())) match.names = data.names;
  return match;
}

void note_class_names(const DataClasses& data, std::vector<std::string>& notes,
                      std::vector<std::string>& warnings) {
  if (!data.named) return;
  if (are_numbers(data.names) && !are_labels(data.names)) {
    size_t other = 0;
    while (number_of(data.names[other]) == static_cast<int>(other)) ++other;
    notes.push_back(fmt::format("classes  are numbers, sorted as text: {} has label {}",
                                quote(data.names[other]), other));
  }
  std::map<std::u32string, std::string> forms;
  for (const std::string& name : data.names) {
    const auto [twin, fresh] = forms.emplace(unicode_key(name), name);
    if (fresh) continue;
    warnings.push_back(
        fmt::format("class folders {} and {} look the same and are two classes: they differ in their form of "
                    "Unicode alone",
                    quote(twin->second), quote(name)));
  }
}

std::vector<int> resolve_classes(std::string_view list, std::span<const std::string> names, int num_classes) {
  return Resolver(names, num_classes).resolve(items_of(list));
}

void check_class_name(const std::string& name, const std::string& what) {
  DYDIT_CHECK(is_utf8(name), "{} {} is not UTF-8; rename it", what, quote(name));
  DYDIT_CHECK(printable(name, name.npos) == name, "{} {} holds control characters; rename it", what,
              quote(name));
}

}  // namespace dydit
