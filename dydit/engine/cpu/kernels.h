// Kernels of the CPU engine, compiled once for every instruction level and chosen at run time.
//
// Weights lie in panels: 16 output columns, all of their inputs, in pairs of inputs: [K/2][16][2] for
// bfloat16 activations, [K/2][2][16] for float32. The last columns of a head, if no more than 8, make a
// narrow panel, whose lines have twice the inputs: [K/4][8][4] and [K/2][8][2]. No panel mixes two heads or
// two channel groups, and no pair of inputs does either, so any set of active heads and groups is a list of
// panels (output side) and of segments (input side): nothing is repacked when a plan changes its mind. A
// row's result depends on that row alone, bit for bit.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dydit/base/bf16.h"

namespace dydit::cpu {

inline constexpr int kPanel = 16;       // output columns of a panel
inline constexpr int kNarrowPanel = 8;  // of a narrow one
inline constexpr int kTileRows = 6;     // rows of a register tile, but for bfloat16 with AMX
inline constexpr int kTilePanels = 4;   // panels of a register tile
inline constexpr int kMaxTerms = 5;     // of a forecast

// Whether the last panel of so many columns can be narrow. Static: see kernels.cpp on inline functions.
static constexpr bool ends_narrow(int columns) {
  return columns % kPanel > 0 && columns % kPanel <= kNarrowPanel;
}

struct Panel {
  const void* weights;
  const float* bias;  // (16), of a narrow panel (8)
  int column;         // of the output where its first column goes
  int width;          // columns in use, 1..16, of a narrow panel 1..8
  // Of 8-bit weights only (int8.h), (segments, 16): a column's scale, and -128 times the sum of its weights.
  const float* scales = nullptr;
  const int32_t* offsets = nullptr;
};

enum class Epilogue {
  Store,     // out <- v
  Gelu,      // out <- gelu_tanh(v)
  GeluErf,   // out <- gelu(v), the exact form
  Relu,      // out <- max(v, 0)
  Residual,  // out[row] (float32) += gate v
};

/// v = a w + bias for rows [row_begin, row_end) and `panels`, through the epilogue.
struct Gemm {
  const void* a = nullptr;  // rows of the segments' inputs, one after the other, each padded to whole pairs
  int64_t lda = 0;          // elements from row to row
  int row_begin = 0, row_end = 0;
  const Panel* panels = nullptr;
  int num_panels = 0;
  bool narrow = false;            // all of the panels, or none
  const int* segments = nullptr;  // first pair of every active input segment within a panel
  int num_segments = 0, segment_pairs = 0;
  Epilogue epilogue = Epilogue::Store;
  void* out = nullptr;  // type of `a`; Residual: float32
  int64_t ldo = 0;      // elements from row to row of `out`
  // Residual only. Row r adds to out row rows[r] (null: r), which belongs to sample rows[r] / sample_rows;
  // gates[sample] holds a factor for every column (gates null: 1).
  const int* rows = nullptr;
  int sample_rows = 1;
  const float* const* gates = nullptr;
  // With gates: rows of v, before gate and residual, of each sample (null: not kept), in the type of `a`.
  void* const* features = nullptr;
  int64_t feature_stride = 0;  // elements from row to row
  // Panels, as narrow as these, that this thread will probably multiply next: fetched into its second-level
  // cache meanwhile.
  const Panel* next = nullptr;
  int num_next = 0;
  // 8-bit rows only: scales of row r's active segments, one after the other, at r scale_stride.
  const float* scales = nullptr;
  int64_t scale_stride = 0;
  float* expanded = nullptr;  // gemm_float_bf16 only: room for a register tile's panels in float32
};

/// softmax(scale q k^T) v of one head of one sample.
struct Attention {
  const void *q, *k, *v;  // N rows of D values
  int64_t stride;         // elements from token to token of q, k, v
  void* out;              // N rows of D values, padded to a whole pair with zero
  int64_t out_stride;
  int N, D;
  float scale;
  void* scratch;  // attention_scratch() bytes, 64-byte aligned
  // From q, k and v to those that this thread will probably take next (0: none): fetched into its
  // second-level cache meanwhile.
  int64_t next = 0;
};

/// A branch or range that is not computed: x += gate (w_0 f_0 + w_1 f_1 + ...), in this order.
struct ForecastTerms {
  const float* gate;  // (C); null: 1
  int count;
  const void* features[kMaxTerms];  // each (rows, C)
  float weights[kMaxTerms];
};

/// Element types: activations x weights. Those of bfloat16 activations are null where the level has no dot
/// products of them.
struct Kernels {
  int bf16_tile_rows;              // rows of a register tile of gemm_bf16
  int tile_panels;                 // panels of the others': so many share a pass over the rows
  bool narrow_bf16, narrow_float;  // whether the kernels of that type take narrow panels
  void (*gemm_bf16)(const Gemm&);  // bfloat16 x bfloat16
  // float32 x bfloat16: the weights are expanded once for all rows, and give what they would in float32.
  void (*gemm_float_bf16)(const Gemm&);
  void (*gemm_float)(const Gemm&);  // float32 x float32
  void (*attention_bf16)(const Attention&);
  void (*attention_float)(const Attention&);
  // out (C) <- layer_norm(x, eps) (1 + scale) + shift, of one row.
  void (*norm_bf16)(Bf16* out, const float* x, const float* shift, const float* scale, int C, float eps);
  void (*norm_float)(float* out, const float* x, const float* shift, const float* scale, int C, float eps);
  // x (rows, C), `stride` apart, += all of the forecasts, one after the other, their features' rows from
  // `first` on: one pass over x for as many branches as follow each other.
  void (*forecast_bf16)(float* x, int64_t stride, int first, int rows, int C, const ForecastTerms* forecasts,
                        int count);
  void (*forecast_float)(float* x, int64_t stride, int first, int rows, int C, const ForecastTerms* forecasts,
                         int count);
  // out (C) <- a - b
  void (*subtract_bf16)(Bf16* out, const float* a, const float* b, int C);
  void (*subtract_float)(float* out, const float* a, const float* b, int C);
  float (*dot)(const float* a, const float* b, int size);
  // The fastest multiply-adds of a register tile, no memory: returns how many were done in `rounds` rounds.
  int64_t (*peak_bf16)(int64_t rounds, float* sink);
  int64_t (*peak_float)(int64_t rounds, float* sink);
};

/// The kernels for the instruction level in force (dydit/base/isa.h).
const Kernels& kernels();

inline constexpr int kAttentionRows = 32;  // whose scores attention holds at a time, at most

/// Bytes of scratch memory that attention over N tokens of D channels takes, for elements of `element` bytes.
size_t attention_scratch(int N, int D, size_t element);

}  // namespace dydit::cpu
