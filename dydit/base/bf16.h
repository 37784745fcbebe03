// bfloat16 as data.
#pragma once

#include <cstdint>

namespace dydit {

/// A value in bfloat16: the upper half of a float.
struct Bf16 {
  uint16_t bits;
};

}  // namespace dydit
