// What the tests of file formats share: a folder that goes away, the one line of an Error, and mutations of a
// valid file, the same ones in every run.
#pragma once

#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <random>
#include <span>
#include <string>
#include <unistd.h>

#include <gtest/gtest.h>

#include "dydit/base/error.h"

namespace dydit::test {

inline std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

inline std::string contents(const std::filesystem::path& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

/// A fresh folder, removed with all that is in it.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "dydit-test-XXXXXX").string();
    EXPECT_NE(::mkdtemp(pattern.data()), nullptr);
    path_ = pattern;
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }
  size_t file_count() const {
    return static_cast<size_t>(std::distance(std::filesystem::directory_iterator(path_), {}));
  }

 private:
  std::filesystem::path path_;
};

/// The message of the Error that `action` throws; fails the test when it throws none or more than one line.
inline std::string error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    const std::string message = error.what();
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    return message;
  }
  ADD_FAILURE() << "no Error was thrown";
  return "";
}

/// `error_of`, and the message must contain `part`.
inline void expect_error(const std::function<void()>& action, const std::string& part) {
  const std::string message = error_of(action);
  EXPECT_NE(message.find(part), std::string::npos) << "message: " << message << "\nwanted: " << part;
}

/// Flips bits, writes extreme bytes and cuts `seed`, `count` times; `parse` may accept what comes or throw
/// Error. Returns how many were refused.
inline int refused_mutations(const std::string& seed, int count,
                             const std::function<void(const std::string&)>& parse) {
  std::mt19937 random(1);
  const auto below = [&](size_t limit) { return random() % limit; };
  int refused = 0;
  for (int i = 0; i < count; ++i) {
    std::string mutant = seed;
    for (size_t edits = 1 + below(3); edits > 0; --edits) {
      char& byte = mutant[below(mutant.size())];
      const char extremes[] = {'\0', '\x7f', '\x80', '\xff'};
      byte = below(2) == 0 ? static_cast<char>(byte ^ (1 << below(8))) : extremes[below(4)];
    }
    if (below(4) == 0) mutant.resize(below(mutant.size()));
    mutant.shrink_to_fit();
    try {
      parse(mutant);
    } catch (const Error&) {
      ++refused;
    }
  }
  return refused;
}

}  // namespace dydit::test
