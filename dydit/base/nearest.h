// "Did you mean": the candidate with the smallest edit distance.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace dydit {

/// The candidate nearest to `name` (Levenshtein distance, first of equals); empty without candidates.
std::string nearest_name(std::string_view name, std::span<const std::string> candidates);

}  // namespace dydit
