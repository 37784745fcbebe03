// Products of 8-bit integers, compiled for the levels that have VNNI's dot products of them.
//
// A row of activations is cut into the segments of its layer's inputs (a head, a channel group, or the whole
// row), each with a scale of its own: value = scale (byte - 128). Weights lie in panels of 16 columns,
// [K/4][16][4], with a scale for every column and segment. Sums of a segment are exact in int32; segments are
// scaled and added in float32 in their order, so a row's result depends on that row alone.
#pragma once

#include <cstdint>

#include "dydit/engine/cpu/kernels.h"

namespace dydit::cpu {

inline constexpr int kQuad = 4;        // inputs that a lane takes at once
inline constexpr int kInt8Zero = 128;  // the byte of 0

/// bytes <- rows of x: `size` values, beyond them zeros to whole quads; `scales` of each row.
struct Quantize {
  const void* x;
  int64_t ldx;  // elements from row to row
  int rows, size;
  const float* factors = nullptr;  // (size), of each value before it is rounded; null: 1
  uint8_t* bytes;
  int64_t ldb;
  float* scales;
  int64_t scale_stride;  // from row to row
};

/// Of activations in float32 and, null where the level has no dot products of it, in bfloat16: what they are
/// quantised from, and what a product's epilogue writes. Gemm::a are bytes, segments first quads.
struct Int8Kernels {
  void (*gemm_float)(const Gemm&);
  void (*gemm_bf16)(const Gemm&);
  void (*quantize_float)(const Quantize&);
  void (*quantize_bf16)(const Quantize&);
  int64_t (*peak)(int64_t rounds, float* sink);
};

/// Those of this processor at the level of instructions in force; null: it has no VNNI.
const Int8Kernels* int8_kernels();

}  // namespace dydit::cpu
