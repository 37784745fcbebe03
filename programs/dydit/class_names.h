// Class names from a file, one a line.
#pragma once

#include <string>
#include <vector>

#include "cli.h"

namespace dydit {

/// UTF-8 with or without a byte order mark; empty lines do not count. Notes names that several classes have.
/// Throws Error that names the file, and the line where there is one: not UTF-8, control characters, not
/// exactly `num_classes` names.
std::vector<std::string> read_class_names(const Cli& cli, const std::string& path, int num_classes);

}  // namespace dydit
