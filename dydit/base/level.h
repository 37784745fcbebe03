// Levels of arithmetic: how the CPU engine computes what --dtype asks for.
#pragma once

#include <string_view>
#include <vector>

#include <c10/core/ScalarType.h>

#include "dydit/base/isa.h"

namespace dydit {

/// Storage and arithmetic are two things: bfloat16 weights are multiplied by dot products of bfloat16, which
/// round the activations, or by float32's multiply-adds, which do not.
struct Level {
  std::string_view name;
  at::ScalarType weights;      // of the blocks' qkv, proj, fc1 and fc2, as stored
  at::ScalarType activations;  // what they are multiplied with, and attention's type

  bool operator==(const Level&) const = default;
};
inline constexpr Level kLevelF32 = {"f32", at::kFloat, at::kFloat};
inline constexpr Level kLevelBf16Dot = {"bf16-dot", at::kBFloat16, at::kBFloat16};
inline constexpr Level kLevelBf16Fma = {"bf16-fma", at::kBFloat16, at::kFloat};
// Products of bytes by VNNI; attention and what is kept as the activations' type says.
inline constexpr Level kLevelInt8F32 = {"int8-f32", at::kChar, at::kFloat};
inline constexpr Level kLevelInt8Bf16 = {"int8-bf16", at::kChar, at::kBFloat16};

/// The table: whether a processor with these instructions multiplies bfloat16 faster than float32. Intel's
/// dot products without tiles take twice the time of float32's multiply-adds, AMD's half of it. By identity
/// and not by measurement, so that a processor gives the same numbers every day; `dydit bench --levels` tells
/// whether the table is right for the one at hand.
constexpr bool bf16_dot_pays(Isa isa, bool intel) {
  return isa >= Isa::Amx || (isa >= Isa::Avx512Bf16 && !intel);
}
/// The same of the processor at hand, at the level of instructions in force.
inline bool bf16_dot_pays() { return bf16_dot_pays(active_isa(), is_intel()); }

/// How the processor at hand computes in kFloat, kBFloat16 or kChar.
inline Level level_of(at::ScalarType dtype) {
  const bool dots = bf16_dot_pays();
  if (dtype == at::kChar) return dots ? kLevelInt8Bf16 : kLevelInt8F32;
  return dtype == at::kFloat ? kLevelF32 : dots ? kLevelBf16Dot : kLevelBf16Fma;
}

/// All that it can do, whether it pays or not.
inline std::vector<Level> levels_at(Isa isa, bool vnni) {
  std::vector<Level> levels = {kLevelF32, kLevelBf16Fma};
  if (isa >= Isa::Avx512Bf16) levels.push_back(kLevelBf16Dot);
  if (vnni) levels.push_back(kLevelInt8F32);
  if (vnni && isa >= Isa::Avx512Bf16) levels.push_back(kLevelInt8Bf16);
  return levels;
}

}  // namespace dydit
