// Files of the project's shared folder: DYDIT_SHARED, or `shared` beside the repository.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <string>

namespace dydit::test {

inline std::filesystem::path shared_path(const std::string& name) {
  const char* folder = std::getenv("DYDIT_SHARED");
  const std::filesystem::path root = folder != nullptr
                                         ? std::filesystem::path(folder)
                                         : std::filesystem::path(DYDIT_TESTS_DIR) / "../../shared";
  return root / name;
}

}  // namespace dydit::test

/// Ends a test where this machine lacks the file; ctest's summary says so.
#define SKIP_WITHOUT(path) \
  if (!std::filesystem::exists(path)) GTEST_SKIP() << (path) << " is not there; set DYDIT_SHARED"
