// The readers under test. Each has small valid files to start from, words of its format, large files that
// claim too much, and a way to make a mutant's checksums right again, since otherwise few mutants get past
// them.
#pragma once

#include <cstddef>
#include <functional>
#include <span>
#include <string>
#include <vector>

namespace dydit::fuzz {

using Bytes = std::span<const std::byte>;

/// A file made on demand that asks for far more time or memory than its bytes deserve.
struct Hostile {
  std::string name;
  std::function<std::string()> make;
};

enum class Finish { Half, Always };  // which mutants `finish` is called on

struct Target {
  std::string name;
  std::vector<std::string> seeds;
  std::vector<std::string> tokens;
  std::vector<Hostile> hostile;
  /// Reads a whole input and touches all that it was given; throws Error for one that is refused.
  std::function<void(Bytes)> read;
  std::function<void(std::string&)> finish = nullptr;
  Finish when = Finish::Half;
  size_t refused_seeds = 0;  // the last of the seeds, which are to be refused
};

std::vector<Target> all_targets();

inline Bytes bytes_of(const std::string& text) { return std::as_bytes(std::span(text.data(), text.size())); }

}  // namespace dydit::fuzz
