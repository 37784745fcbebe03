// See the header.
#include "class_names.h"

#include <fstream>

#include "dydit/base/error.h"

namespace dydit {

std::vector<std::string> read_class_names(const std::string& path, int num_classes) {
  std::ifstream file(path);
  DYDIT_CHECK(file, "{}: cannot read class names", path);
  std::vector<std::string> names;
  for (std::string line; std::getline(file, line);) {
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (!line.empty()) names.push_back(line);
  }
  DYDIT_CHECK(static_cast<int>(names.size()) == num_classes, "{}: {} class names, the model has {} classes",
              path, names.size(), num_classes);
  return names;
}

}  // namespace dydit
