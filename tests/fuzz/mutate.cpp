// Edits that find faults in readers: mostly small ones, since a file that is wrong everywhere is refused at
// its first byte.
#include "mutate.h"

#include <algorithm>
#include <array>
#include <cstring>

#include <fmt/format.h>

namespace dydit::fuzz {
namespace {

constexpr size_t kMaxGrowth = 4096;

// Counts and sizes near which arithmetic goes wrong.
uint64_t interesting_number(Random& random, size_t size_of_file) {
  switch (random.below(6)) {
    case 0:
      return random.below(9);
    case 1:
      return size_of_file + random.below(9) - 4;
    case 2:
      return uint64_t{0} - 1 - random.below(3);
    case 3: {
      const uint64_t power = uint64_t{1} << random.below(64);
      return power + random.below(3) - 1;
    }
    case 4:
      return random.next() >> random.below(64);
    default:
      return random.below(size_of_file + 1);
  }
}

void write_number(std::string& out, Random& random) {
  const size_t width = size_t{1} << random.below(4);
  if (out.size() < width) return;
  const size_t at = random.below(out.size() - width + 1);
  uint64_t value = 0;
  const bool big_endian = random.one_in(2);
  if (random.one_in(3)) {  // near what is there
    for (size_t i = 0; i < width; ++i) {
      const size_t byte = big_endian ? i : width - 1 - i;
      value = value << 8 | static_cast<unsigned char>(out[at + byte]);
    }
    value += random.below(33) - 16;
  } else {
    value = interesting_number(random, out.size());
  }
  for (size_t i = 0; i < width; ++i, value >>= 8) {
    out[at + (big_endian ? width - 1 - i : i)] = static_cast<char>(value);
  }
}

// Replaces a run of decimal digits, as text formats write their numbers.
void write_decimal(std::string& out, Random& random) {
  const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
  const size_t from = random.below(out.size());
  const auto first = std::find_if(out.begin() + static_cast<std::ptrdiff_t>(from), out.end(), is_digit);
  const auto last = std::find_if_not(first, out.end(), is_digit);
  out.replace(first, last, fmt::format("{}", interesting_number(random, out.size())));
}

std::string block_of(const std::string& from, Random& random) {
  const size_t at = random.below(from.size() + 1);
  const size_t longest = random.one_in(4) ? 256 : 16;
  return from.substr(at, random.below(longest) + 1);
}

void set_byte(std::string& out, Random& random) {
  if (out.empty()) return;
  constexpr std::array<char, 8> kExtremes = {'\0', '\1', '\x7f', '\x80', '\xff', ' ', '\n', '"'};
  char& byte = out[random.below(out.size())];
  byte = random.one_in(2) ? kExtremes[random.below(kExtremes.size())] : static_cast<char>(random.next());
}

void overwrite(std::string& out, const std::string& block, Random& random) {
  const size_t at = random.below(out.size() + 1);
  out.replace(at, block.size(), block);  // stops at the end of `out`
}

void edit(std::string& out, const std::vector<std::string>& seeds, const std::vector<std::string>& tokens,
          Random& random) {
  const size_t place = random.below(out.size() + 1);
  switch (random.below(14)) {
    case 0:
    case 1:
      if (!out.empty()) out[random.below(out.size())] ^= static_cast<char>(1 << random.below(8));
      break;
    case 2:
    case 3:
      set_byte(out, random);
      break;
    case 4:
    case 5:
      write_number(out, random);
      break;
    case 6:
      if (!out.empty()) write_decimal(out, random);
      break;
    case 7:
      out.erase(place, block_of(out, random).size());
      break;
    case 8:
      out.insert(place, block_of(out, random));
      break;
    case 9:
      overwrite(out, block_of(out, random), random);
      break;
    case 10:
      out.insert(place, std::string(1 + random.below(64), static_cast<char>(random.next())));
      break;
    case 11:
      if (random.one_in(3)) out.resize(place);
      break;
    case 12:
      if (!tokens.empty()) out.insert(place, tokens[random.below(tokens.size())]);
      break;
    default:
      if (random.one_in(4)) {  // the start of this file, the end of another
        const std::string& other = seeds[random.below(seeds.size())];
        out = out.substr(0, place) + other.substr(random.below(other.size() + 1));
      } else if (!tokens.empty()) {
        overwrite(out, tokens[random.below(tokens.size())], random);
      }
  }
}

}  // namespace

uint64_t Random::next() {
  uint64_t z = state_ += 0x9E3779B97F4A7C15u;
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
  z = (z ^ z >> 27) * 0x94D049BB133111EBu;
  return z ^ z >> 31;
}

std::string mutate(const std::vector<std::string>& seeds, const std::vector<std::string>& tokens,
                   Random& random) {
  std::string out = seeds[random.below(seeds.size())];
  const size_t longest = out.size() + kMaxGrowth;
  const size_t edits = 1 + random.below(random.one_in(4) ? 12 : 3);
  for (size_t i = 0; i < edits; ++i) edit(out, seeds, tokens, random);
  if (out.size() > longest) out.resize(longest);
  return out;
}

}  // namespace dydit::fuzz
