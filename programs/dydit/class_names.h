// Class names from a file, one a line.
#pragma once

#include <string>
#include <vector>

namespace dydit {

/// Throws Error unless the file holds exactly `num_classes` names (empty lines do not count).
std::vector<std::string> read_class_names(const std::string& path, int num_classes);

}  // namespace dydit
