// The names of an enum's values: one table beside the enum, read both ways by records, flags and Python.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <fmt/ranges.h>

#include "dydit/base/error.h"

namespace dydit {

template <typename Value, size_t N>
struct EnumNames {
  struct Entry {
    std::string_view name;
    Value value;
  };
  std::string_view what;  // for messages: "sampler"
  Entry entries[N];

  /// Of one of the table's values.
  constexpr std::string_view operator[](Value value) const {
    size_t i = 0;
    while (i + 1 < N && entries[i].value != value) ++i;
    return entries[i].name;
  }
  constexpr std::optional<Value> find(std::string_view name) const {
    for (const Entry& entry : entries) {
      if (entry.name == name) return entry.value;
    }
    return std::nullopt;
  }
  /// Throws UsageError that lists the known names.
  Value at(std::string_view name) const {
    const std::optional<Value> found = find(name);
    DYDIT_USAGE_CHECK(found, "{} '{}' is unknown; choose from {}", what, name, fmt::join(names(), ", "));
    return *found;
  }
  /// All of them, `before` first.
  std::vector<std::string> names(std::vector<std::string> before = {}) const {
    for (const Entry& entry : entries) before.emplace_back(entry.name);
    return before;
  }
};

}  // namespace dydit
