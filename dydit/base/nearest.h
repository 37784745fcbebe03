// "Did you mean": the candidate with the smallest edit distance.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

namespace dydit {

/// Levenshtein distance.
size_t edit_distance(std::string_view a, std::string_view b);

/// The candidate nearest to `name` (by edit_distance, first of equals); empty without candidates.
std::string nearest_name(std::string_view name, std::span<const std::string> candidates);

}  // namespace dydit
