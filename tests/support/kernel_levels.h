// The levels for which kernels are compiled, and what their tests share.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "dydit/base/isa.h"
#include "dydit/base/noise.h"
#include "dydit/engine/cpu/kernels.h"

namespace dydit::cpu {
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
namespace avx512_bf16 {
extern const Kernels kernels;
}
namespace emulated_amx {
extern const Kernels kernels;
}

struct KernelLevel {
  const char* name;
  Isa needs;
  const Kernels& (*kernels)();
};
inline const KernelLevel kLevels[] = {
    {"avx2", Isa::Avx2, []() -> const Kernels& { return avx2::kernels; }},
    {"avx512", Isa::Avx512, []() -> const Kernels& { return avx512::kernels; }},
    {"avx512_bf16", Isa::Avx512Bf16, []() -> const Kernels& { return avx512_bf16::kernels; }},
    {"emulated_amx", Isa::Avx512Bf16, []() -> const Kernels& { return emulated_amx::kernels; }},
    {"in_force", Isa::Avx2, kernels},
};

/// The kernels of each level that this processor runs.
class CpuKernels : public testing::TestWithParam<KernelLevel> {
 protected:
  void SetUp() override {
    if (detect_isa() < GetParam().needs) GTEST_SKIP() << "this processor has no " << GetParam().name;
  }
  const Kernels& kernels() const { return GetParam().kernels(); }
  bool dots_bf16() const { return kernels().gemm_bf16 != nullptr; }
};
inline constexpr const char* kNoDots = "this level has no dot products of bfloat16";

// float32: 2^-24 a rounding, of some tens along a row. bfloat16: rounding a result to 8 bits costs 2^-9 of
// it, and attention's weights were rounded once before.
template <typename T>
constexpr double kTolerance = sizeof(T) == 2 ? 1e-2 : 1e-5;

inline double value_of(float x) { return x; }
inline double value_of(Bf16 x) { return __builtin_bit_cast(float, static_cast<uint32_t>(x.bits) << 16); }
inline void set(float& to, float x) { to = x; }
inline void set(Bf16& to, float x) {  // cut, not rounded: any bfloat16 will do
  to.bits = static_cast<uint16_t>(__builtin_bit_cast(uint32_t, x) >> 16);
}

template <typename T>
std::vector<T> random_values(size_t count, uint64_t index, float scale = 1) {
  std::vector<float> normals(count);
  fill_normal(normals, /*seed=*/3, index, 0);
  std::vector<T> values(count);
  for (size_t i = 0; i < count; ++i) set(values[i], scale * normals[i]);
  return values;
}

template <typename T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

}  // namespace dydit::cpu
