// Scalar building blocks of kernels: plain loops and branch-free maths that the compiler turns into vectors.
// For files compiled once an instruction level (DYDIT_LEVEL); everything has internal linkage, since a shared
// inline function compiled with wide instructions could be the one the linker keeps.
#pragma once

#include "dydit/base/bf16.h"

namespace dydit::DYDIT_LEVEL {
namespace {

constexpr int kLanes = 16;  // partial sums of a reduction, so that it vectorises in a fixed order

inline float load(const float* p, int i) { return p[i]; }
inline float load(const Bf16* p, int i) {
  return __builtin_bit_cast(float, static_cast<uint32_t>(p[i].bits) << 16);
}
inline void store(float* p, int i, float value) { p[i] = value; }
inline void store(Bf16* p, int i, float value) {
  const auto bits = __builtin_bit_cast(uint32_t, value);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to nearest, ties to even
  p[i].bits = static_cast<uint16_t>(value != value ? 0x7fc0 : rounded);
}

inline float sum_lanes(float (&lanes)[kLanes]) {
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int j = 0; j < width; ++j) lanes[j] += lanes[j + width];
  }
  return lanes[0];
}

// sum of fn(i) over [0, size)
template <typename Fn>
inline float sum_of(int size, const Fn& fn) {
  float lanes[kLanes] = {};
  int i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    for (int j = 0; j < kLanes; ++j) lanes[j] += fn(i + j);
  }
  for (int j = 0; i + j < size; ++j) lanes[j] += fn(i + j);
  return sum_lanes(lanes);
}

// e^x to 1e-7 relative: 2^n times a polynomial on [-ln2/2, ln2/2].
inline float exp_approx(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding and taking it away rounds to a whole number
  const float n = (x * 1.44269504f + kRound) - kRound;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return p * __builtin_bit_cast(float, (static_cast<int32_t>(n) + 127) << 23);
}

constexpr float kGeluFactor = 0.7978845608f;  // sqrt(2/pi)
constexpr float kGeluCubic = 0.044715f;

inline float gelu_tanh_argument(float x) { return kGeluFactor * (x + kGeluCubic * x * x * x); }
inline float tanh_approx(float u) { return 1.0f - 2.0f / (exp_approx(2.0f * u) + 1.0f); }

inline float gelu(float x) { return 0.5f * x * (1.0f + tanh_approx(gelu_tanh_argument(x))); }
inline float gelu_slope(float x) {
  const float t = tanh_approx(gelu_tanh_argument(x));
  return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * kGeluFactor * (1.0f + 3.0f * kGeluCubic * x * x);
}

// The normal distribution function to 1e-7: Abramowitz and Stegun, 7.1.26.
inline float normal_cdf(float x) {
  const float z = (x < 0 ? -x : x) * 0.707106781f, t = 1.0f / (1.0f + 0.3275911f * z);
  float p = 1.061405429f;
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const float tail = 0.5f * p * t * exp_approx(-z * z);
  return x < 0 ? tail : 1.0f - tail;
}
inline float gelu_erf(float x) { return x * normal_cdf(x); }
inline float gelu_erf_slope(float x) {
  return normal_cdf(x) + x * 0.3989422804f * exp_approx(-0.5f * x * x);  // 1 / sqrt(2 pi)
}

// The largest of s[0..N)
template <typename T>
inline float largest_of(const T* s, int N) {
  float lanes[kLanes];
  for (int j = 0; j < kLanes; ++j) lanes[j] = load(s, 0);
  int i = 0;
  for (; i + kLanes <= N; i += kLanes) {
    for (int j = 0; j < kLanes; ++j) lanes[j] = load(s, i + j) > lanes[j] ? load(s, i + j) : lanes[j];
  }
  for (; i < N; ++i) lanes[0] = load(s, i) > lanes[0] ? load(s, i) : lanes[0];
  float largest = lanes[0];
  for (int j = 1; j < kLanes; ++j) largest = lanes[j] > largest ? lanes[j] : largest;
  return largest;
}

}  // namespace
}  // namespace dydit::DYDIT_LEVEL
