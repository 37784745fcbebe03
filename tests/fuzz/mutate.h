// Mutants of valid files: a function of (seed, index) alone, so that any input can be made again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace dydit::fuzz {

/// splitmix64.
class Random {
 public:
  explicit Random(uint64_t state) : state_(state) {}
  uint64_t next();
  /// 0 .. limit - 1; 0 for a limit of 0.
  size_t below(size_t limit) { return limit == 0 ? 0 : next() % limit; }
  bool one_in(size_t n) { return below(n) == 0; }

 private:
  uint64_t state_;
};

/// One of `seeds` after one to a dozen edits: flipped bits, set bytes, interesting numbers of 1 to 8 bytes in
/// both byte orders and as decimal text, blocks removed, copied and inserted, cuts, splices with another
/// seed, and `tokens` of the format. At most some kilobytes longer than the longest seed.
std::string mutate(const std::vector<std::string>& seeds, const std::vector<std::string>& tokens,
                   Random& random);

}  // namespace dydit::fuzz
