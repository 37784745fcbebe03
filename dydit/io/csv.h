// Rows of CSV: cells with commas between.
#pragma once

#include <string>
#include <vector>

#include <fmt/ranges.h>

namespace dydit {

using CsvCells = std::vector<std::string>;  // numbers as they are, text through csv_text

inline std::string csv_line(const CsvCells& cells) { return fmt::format("{}\n", fmt::join(cells, ",")); }

/// `text` as one cell, whatever it holds: in quotes, a quote doubled.
inline std::string csv_text(std::string text) {
  for (size_t at = 0; (at = text.find('"', at)) != std::string::npos; at += 2) text.insert(at, 1, '"');
  return '"' + text + '"';
}

}  // namespace dydit
