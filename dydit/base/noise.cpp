// Philox counters turned into normals, two at a time (Box-Muller).
#include "dydit/base/noise.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <numbers>

#include <ATen/core/PhiloxRNGEngine.h>

namespace dydit {

void fill_normal(std::span<float> out, uint64_t seed, uint64_t sample, uint64_t draw, uint64_t first) {
  assert(first % 4 == 0);  // a counter gives four numbers
  at::philox_engine engine(seed, sample, (draw << 32) + first / 4);
  for (size_t i = 0; i < out.size(); i += 2) {
    // (0, 1]: the logarithm never sees 0.
    const double u1 = (static_cast<double>(engine()) + 1.0) * 0x1p-32;
    const double u2 = static_cast<double>(engine()) * 0x1p-32;
    const double radius = std::sqrt(-2.0 * std::log(u1));
    const double angle = 2.0 * std::numbers::pi * u2;
    out[i] = static_cast<float>(radius * std::cos(angle));
    if (i + 1 < out.size()) out[i + 1] = static_cast<float>(radius * std::sin(angle));
  }
}

float open_uniform(uint32_t bits) {
  // The upper 24 bits and a half. From 2^23 on the half is rounded away, and for the last value up to 1.
  return std::min((static_cast<float>(bits >> 8) + 0.5f) * 0x1p-24f, 1.0f - 0x1p-24f);
}

void fill_uniform(std::span<float> out, uint64_t seed, uint64_t sample, uint64_t draw) {
  at::philox_engine engine(seed, sample, draw << 32);
  for (float& value : out) value = open_uniform(engine());
}

}  // namespace dydit
