// Vectors of floats at each instruction level, 16 of them at a time, and element-wise maths on them. For
// files compiled once a level (DYDIT_LEVEL); everything has internal linkage, as in kernel_math.h.
#pragma once

#include <immintrin.h>

#include "dydit/base/kernel_math.h"
#include "dydit/engine/cpu/kernels.h"

namespace dydit::cpu::DYDIT_LEVEL {
namespace {

using namespace dydit::DYDIT_LEVEL;  // kernel_math.h

// A vector of floats, and how many make a panel's width.
#ifdef __AVX512F__
using Vector = __m512;
constexpr int kVectors = 1, kMaxPanels = kTilePanels;
inline Vector load_vector(const float* p) { return _mm512_loadu_ps(p); }
inline Vector broadcast(float value) { return _mm512_set1_ps(value); }
inline Vector zero_vector() { return _mm512_setzero_ps(); }
inline void store_vector(float* p, Vector v) { _mm512_storeu_ps(p, v); }
inline Vector multiply_add(Vector a, Vector b, Vector sum) { return _mm512_fmadd_ps(a, b, sum); }
#else
using Vector = __m256;
constexpr int kVectors = 2, kMaxPanels = 1;  // 16 registers
inline Vector load_vector(const float* p) { return _mm256_loadu_ps(p); }
inline Vector broadcast(float value) { return _mm256_set1_ps(value); }
inline Vector zero_vector() { return _mm256_setzero_ps(); }
inline void store_vector(float* p, Vector v) { _mm256_storeu_ps(p, v); }
inline Vector multiply_add(Vector a, Vector b, Vector sum) { return _mm256_fmadd_ps(a, b, sum); }
#endif

constexpr int kLanesOfVector = kPanel / kVectors;

// Element-wise maths; GCC's operators work on either vector type.
#ifdef __AVX512F__
inline Vector fraction_of(Vector x) {  // x - floor(x)
  return _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
}
inline Vector times_power_of_2(Vector x, Vector y) { return _mm512_scalef_ps(x, y); }  // x 2^floor(y)
inline Vector largest(Vector a, Vector b) { return _mm512_max_ps(a, b); }
inline Vector smallest(Vector a, Vector b) { return _mm512_min_ps(a, b); }
inline Vector reciprocal_estimate(Vector x) { return _mm512_rcp14_ps(x); }  // to 2^-14
// 1/x to 2^-27 or so: an estimate and one Newton step.
inline Vector reciprocal(Vector x) {
  const Vector r = reciprocal_estimate(x);
  return r * (2.0f - x * r);
}
#else
inline Vector fraction_of(Vector x) { return x - _mm256_floor_ps(x); }
inline Vector times_power_of_2(Vector x, Vector y) {
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(_mm256_floor_ps(y)), _mm256_set1_epi32(127));
  return x * _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
}
inline Vector largest(Vector a, Vector b) { return _mm256_max_ps(a, b); }
inline Vector smallest(Vector a, Vector b) { return _mm256_min_ps(a, b); }
inline Vector reciprocal(Vector x) { return 1.0f / x; }
inline Vector reciprocal_estimate(Vector x) { return 1.0f / x; }
#endif

// 2^y, 0 far below: to 1e-7 relative for results kept as float, to 9e-5 for Bf16, which is rounded by up to
// 2e-3. Minimax polynomials of 2^r, 0 <= r < 1, that are exact at 0.
template <typename T>
inline Vector exponential_of_2(Vector y) {
#ifndef __AVX512F__
  y = largest(y, broadcast(-126.0f));
#endif
  const Vector r = fraction_of(y);
  Vector p;
  if constexpr (sizeof(T) == sizeof(Bf16)) {
    p = r * 7.70670474e-2f + 2.27644995e-1f;
    p = p * r + 6.95116758e-1f;
  } else {
    p = r * 2.16129149e-4f + 1.24678458e-3f;
    p = p * r + 9.67545155e-3f;
    p = p * r + 5.54852821e-2f;
    p = p * r + 2.40229309e-1f;
    p = p * r + 6.93147063e-1f;
  }
  return times_power_of_2(p * r + 1.0f, y);
}

constexpr float kLog2E = 1.44269504f;

// 0.5 x (1 + tanh u) = x / (1 + 2^(-2 u log2 e)). Below the limit the result is 0 to 1e-17, and denormal
// numbers, which are slow, are not met. As exact as T.
template <typename T>
inline Vector gelu(Vector x) {
  constexpr float kFactor = -2.0f * kLog2E * kGeluFactor, kLimit = 60.0f;
  const Vector y = x * (kFactor + kFactor * kGeluCubic * x * x);
  const Vector below = 1.0f + exponential_of_2<T>(smallest(y, broadcast(kLimit)));
  return x * (sizeof(T) == sizeof(Bf16) ? reciprocal_estimate(below) : reciprocal(below));
}

// The exact form, x times the normal distribution function, as kernel_math.h's normal_cdf has it: max(x, 0)
// less |x| times the tail.
template <typename T>
inline Vector gelu_erf(Vector x) {
  constexpr float kLimit = -60.0f;
  const Vector size = largest(x, zero_vector() - x), z = size * 0.707106781f;
  const Vector t = reciprocal(1.0f + 0.3275911f * z);
  Vector p = t * 1.061405429f - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const Vector tail = 0.5f * p * t * exponential_of_2<T>(largest(-kLog2E * z * z, broadcast(kLimit)));
  return largest(x, zero_vector()) - size * tail;
}

// 16 values, as many vectors as that takes.
struct Lanes {
  Vector v[kVectors];
};
inline Lanes load_lanes(const float* p) {
  Lanes lanes;
  for (int v = 0; v < kVectors; ++v) lanes.v[v] = load_vector(p + v * kLanesOfVector);
  return lanes;
}
inline void store_lanes(float* p, const Lanes& lanes) {
  for (int v = 0; v < kVectors; ++v) store_vector(p + v * kLanesOfVector, lanes.v[v]);
}
inline void store_lanes(Bf16* p, const Lanes& lanes) {
#ifdef __AVX512BF16__
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(lanes.v[0]));
#else
  alignas(64) float values[kPanel];
  store_lanes(values, lanes);
  for (int c = 0; c < kPanel; ++c) store(p, c, values[c]);
#endif
}
#ifdef __AVX512F__
inline __mmask16 first_lanes(int count) { return static_cast<__mmask16>((1u << count) - 1); }
#endif
template <typename T>
inline void store_lanes(T* p, const Lanes& lanes, int count) {  // the first `count`
  if (count >= kPanel) return store_lanes(p, lanes);
#ifdef __AVX512F__
  if constexpr (sizeof(T) == sizeof(float)) return _mm512_mask_storeu_ps(p, first_lanes(count), lanes.v[0]);
#endif
#ifdef __AVX512BF16__
  if constexpr (sizeof(T) == sizeof(Bf16))
    return _mm256_mask_storeu_epi16(p, first_lanes(count), (__m256i)_mm512_cvtneps_pbh(lanes.v[0]));
#endif
  alignas(64) T values[kPanel];
  store_lanes(values, lanes);
  for (int c = 0; c < count; ++c) p[c] = values[c];
}
inline Lanes load_lanes(const float* p, int count, float beyond = 0) {
  if (count >= kPanel) return load_lanes(p);
#ifdef __AVX512F__
  return {{_mm512_mask_loadu_ps(broadcast(beyond), first_lanes(count), p)}};
#else
  alignas(64) float values[kPanel];
  for (int c = 0; c < kPanel; ++c) values[c] = c < count ? p[c] : beyond;
  return load_lanes(values);
#endif
}
inline Lanes load_lanes(const Bf16* p) {
#ifdef __AVX512F__
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {{_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))}};
#else
  Lanes lanes;
  for (int v = 0; v < kVectors; ++v) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + v * kLanesOfVector));
    lanes.v[v] = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  return lanes;
#endif
}
inline Lanes load_lanes(const Bf16* p, int count) {
  if (count >= kPanel) return load_lanes(p);
  Bf16 values[kPanel] = {};
  for (int c = 0; c < count; ++c) values[c] = p[c];
  return load_lanes(values);
}
#ifndef __AVX512F__
// Eight values folded to the first two, as sum_lanes of kernel_math.h folds.
template <typename Fn>
inline __m128 by_halves(__m256 eight, const Fn& fn) {
  const __m128 four = fn(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  return fn(four, _mm_movehl_ps(four, four));
}
#endif
inline float sum_of(const Lanes& lanes) {
#ifdef __AVX512F__
  return _mm512_reduce_add_ps(lanes.v[0]);
#else
  const __m128 two = by_halves(lanes.v[0] + lanes.v[1], [](__m128 a, __m128 b) { return a + b; });
  return two[0] + two[1];
#endif
}
inline float largest_of(const Lanes& lanes) {
#ifdef __AVX512F__
  return _mm512_reduce_max_ps(lanes.v[0]);
#else
  const __m128 two =
      by_halves(largest(lanes.v[0], lanes.v[1]), [](__m128 a, __m128 b) { return _mm_max_ps(a, b); });
  return two[0] > two[1] ? two[0] : two[1];
#endif
}
template <typename Fn>
inline Lanes each(const Lanes& a, const Fn& fn) {
  Lanes out;
  for (int v = 0; v < kVectors; ++v) out.v[v] = fn(a.v[v], v);
  return out;
}
inline Lanes operator+(const Lanes& a, const Lanes& b) {
  return each(a, [&](Vector x, int v) { return x + b.v[v]; });
}
inline Lanes operator*(const Lanes& a, const Lanes& b) {
  return each(a, [&](Vector x, int v) { return x * b.v[v]; });
}
// One rounding, wherever it is inlined: written as a * b + c, the compiler would choose.
inline Lanes multiply_add(const Lanes& a, const Lanes& b, const Lanes& c) {
  return each(a, [&](Vector x, int v) { return multiply_add(x, b.v[v], c.v[v]); });
}
inline Lanes times(const Lanes& a, float b) {
  return each(a, [&](Vector x, int) { return x * b; });
}
inline Lanes multiply_add(const Lanes& a, float b, const Lanes& c) {
  return each(a, [&](Vector x, int v) { return multiply_add(x, broadcast(b), c.v[v]); });
}
inline Lanes largest(const Lanes& a, const Lanes& b) {
  return each(a, [&](Vector x, int v) { return largest(x, b.v[v]); });
}
inline Lanes operator-(const Lanes& a, float b) {
  return each(a, [&](Vector x, int) { return x - b; });
}
template <typename T>
inline Lanes gelu(const Lanes& a) {
  return each(a, [](Vector x, int) { return gelu<T>(x); });
}
template <typename T>
inline Lanes gelu_erf(const Lanes& a) {
  return each(a, [](Vector x, int) { return gelu_erf<T>(x); });
}
inline Lanes relu(const Lanes& a) {
  return each(a, [](Vector x, int) { return largest(x, zero_vector()); });
}

}  // namespace
}  // namespace dydit::cpu::DYDIT_LEVEL
