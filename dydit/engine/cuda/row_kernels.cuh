// Passes over rows, one warp a row: a lane holds C / 128 times four values that lie side by side, so x is
// moved by 16 bytes a lane and bfloat16 by 8, a warp's lanes next to each other. The row stays in registers
// between sum, mean and variance, so it is read once. What bounds these passes is memory: 12 bytes an element
// where a branch ends and the next begins, 6 where tokens are gathered.
#pragma once

#include "dydit/engine/cuda/device.h"
#include "dydit/engine/cuda/launch.h"

namespace dydit::cuda {

inline constexpr int kRowWarps = 4;      // rows a block takes at a time
inline constexpr int kMaxBlocks = 2048;  // then blocks take several
inline constexpr int kLaneFloats = 4;
inline constexpr int kChunk = kWarp * kLaneFloats;  // values that a warp moves at a time

DYDIT_DEVICE float sum_of_warp(float value) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}

DYDIT_DEVICE int lane_index() { return thread_index() % kWarp; }
DYDIT_DEVICE int warp_index() { return thread_index() / kWarp; }

DYDIT_DEVICE int rows_of(const Rows& rows) {
  if (rows.on_device == nullptr) return rows.count;
  return *rows.on_device < rows.count ? *rows.on_device : rows.count;
}

/// Floats from the beginning of a modulation's vectors to those of a row's sample.
DYDIT_DEVICE int64_t modulation_of(const Modulation& modulation, int row, int tokens) {
  const int sample = row / tokens;
  return modulation.stride * (modulation.index == nullptr ? sample : modulation.index[sample]);
}

/// Where a row's addend lies in y, -1: nowhere.
DYDIT_DEVICE int position_of(const Addend& addend, int row) {
  if (addend.y == nullptr) return -1;
  return addend.inverse == nullptr ? row : addend.inverse[row];
}

/// x + gate y for four values.
DYDIT_DEVICE Float4 added(const Float4& x, const Float4& gate, const Bf16x4& y) {
  return {x.x + gate.x * low_float(y.low), x.y + gate.y * high_float(y.low), x.z + gate.z * low_float(y.high),
          x.w + gate.w * high_float(y.high)};
}

template <typename T>
DYDIT_DEVICE const T& at(const float* values, int column) {
  return *reinterpret_cast<const T*>(values + column);
}
DYDIT_DEVICE const Bf16x4& at(const Bf16* values, int column) {
  return *reinterpret_cast<const Bf16x4*>(values + column);
}

/// The column of a lane's chunk, C or more where the row has ended: only its last chunk can be incomplete.
DYDIT_DEVICE int column_of(int chunk) { return chunk * kChunk + lane_index() * kLaneFloats; }

template <int kChunks>
struct LaneRow {
  Float4 chunks[kChunks];
};

template <int kChunks>
DYDIT_DEVICE LaneRow<kChunks> load_row(const float* row, int C) {
  LaneRow<kChunks> x;
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    const int column = column_of(i);
    x.chunks[i] = i < kChunks - 1 || column < C ? at<Float4>(row, column) : Float4{0, 0, 0, 0};
  }
  return x;
}

/// x += gate y, which are the row's own, and the row in memory with it.
template <int kChunks>
DYDIT_DEVICE void add_to_row(LaneRow<kChunks>& x, float* row, const float* gate, const Bf16* y, int C) {
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    const int column = column_of(i);
    if (i == kChunks - 1 && column >= C) continue;
    x.chunks[i] =
        added(x.chunks[i], gate == nullptr ? Float4{1, 1, 1, 1} : at<Float4>(gate, column), at(y, column));
    *reinterpret_cast<Float4*>(row + column) = x.chunks[i];
  }
}

/// out <- layer_norm(x) scale1 + shift: the mean first, then the variance around it.
template <int kChunks>
DYDIT_DEVICE void norm_row(Bf16* out, const LaneRow<kChunks>& x, const float* shift, const float* scale1,
                           int C, float eps) {
  float sum = 0;
#pragma unroll
  for (const Float4& v : x.chunks) sum += (v.x + v.y) + (v.z + v.w);
  const float mean = sum_of_warp(sum) / static_cast<float>(C);
  float squares = 0;
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    const Float4& v = x.chunks[i];
    const Float4 d = {v.x - mean, v.y - mean, v.z - mean, v.w - mean};
    if (i < kChunks - 1 || column_of(i) < C) squares += (d.x * d.x + d.y * d.y) + (d.z * d.z + d.w * d.w);
  }
  const float scale = fast_rsqrt(sum_of_warp(squares) / static_cast<float>(C) + eps);
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    const int column = column_of(i);
    if (i == kChunks - 1 && column >= C) continue;
    const Float4 v = x.chunks[i], a = at<Float4>(scale1, column), b = at<Float4>(shift, column);
    *reinterpret_cast<Bf16x4*>(out + column) = {
        pack_bf16((v.x - mean) * scale * a.x + b.x, (v.y - mean) * scale * a.y + b.y),
        pack_bf16((v.z - mean) * scale * a.z + b.z, (v.w - mean) * scale * a.w + b.w)};
  }
}

// check_kernels residual_norm_kernel: registers <= 96, shared <= 0, LDG.E.128
template <int kChunks>
DYDIT_KERNEL DYDIT_BOUNDS(kRowWarps* kWarp, 5)
    residual_norm_kernel(Bf16* out, float* x, Addend addend, Modulation modulation, Rows rows, float eps) {
  const int count = rows_of(rows), C = rows.C;
  for (int row = block_x() * kRowWarps + warp_index(); row < count; row += grid_x() * kRowWarps) {
    const int position = position_of(addend, row);
    if (out == nullptr && position < 0) continue;
    const int64_t offset = modulation_of(modulation, row, rows.tokens);
    float* const here = x + int64_t{row} * C;
    LaneRow<kChunks> values = load_row<kChunks>(here, C);
    if (position >= 0) {
      const float* const gate = modulation.gate == nullptr ? nullptr : modulation.gate + offset;
      add_to_row<kChunks>(values, here, gate, addend.y + int64_t{position} * C, C);
    }
    if (out != nullptr)
      norm_row<kChunks>(out + int64_t{row} * C, values, modulation.shift + offset, modulation.scale1 + offset,
                        C, eps);
  }
}

// check_kernels norm_gather_kernel: registers <= 96, shared <= 0, LDG.E.128
template <int kChunks>
DYDIT_KERNEL DYDIT_BOUNDS(kRowWarps* kWarp, 5)
    norm_gather_kernel(Bf16* out, const float* x, const int* chosen, Modulation modulation, Rows rows,
                       float eps) {
  const int count = rows_of(rows), C = rows.C;
  for (int p = block_x() * kRowWarps + warp_index(); p < count; p += grid_x() * kRowWarps) {
    const int row = chosen == nullptr ? p : chosen[p];
    if (row < 0) continue;
    const int64_t offset = modulation_of(modulation, row, rows.tokens);
    const LaneRow<kChunks> values = load_row<kChunks>(x + int64_t{row} * C, C);
    norm_row<kChunks>(out + int64_t{p} * C, values, modulation.shift + offset, modulation.scale1 + offset, C,
                      eps);
  }
}

// The token router. A block takes bands of 16 rows; its warps share the inputs, 16 at a time in turns, so a
// row's sums are the same four whatever the bands, and are added in one order. A lane's four values that lie
// side by side in x are its part of the matrix fragment: the order of inputs within a sixteen is free as long
// as w1 is packed in the same.

inline constexpr int kRouterWarps = 4;
inline constexpr int kBandRows = 16;
inline constexpr int kDepth = 16;      // inputs of a fragment
inline constexpr int kTileHidden = 8;  // hidden values of one
inline constexpr int kRowLanes = 4;    // that finish a row

/// Floats from row to row of a warp's sums: 4 more than a multiple of 8, so that eight rows' lanes meet no
/// bank twice.
DYDIT_BOTH constexpr int sums_stride(int tiles) { return tiles * kTileHidden + 4; }
DYDIT_BOTH constexpr int sums_bytes(int tiles, int bands) {
  return kRouterWarps * bands * kBandRows * sums_stride(tiles) * static_cast<int>(sizeof(float));
}

/// What a lane holds of two rows of a band, 8 apart, of one sixteen of inputs.
struct RouterInputs {
  Float4 x[2];
  Bf16x4 y[2];
};

/// Two values each as hi + lo, both of bfloat16.
struct SplitPair {
  uint32_t hi, lo;
};
DYDIT_DEVICE SplitPair split(float a, float b) {
  const uint32_t hi = pack_bf16(a, b);
  return {hi, pack_bf16(a - low_float(hi), b - high_float(hi))};
}

/// The two rows of a band that a lane reads.
struct RouterRows {
  int row[2];             // -1: there is none
  int position[2];        // of the addend, -1: none
  int64_t modulation[2];  // offset of its gate
};

DYDIT_DEVICE RouterRows router_rows(const Addend& addend, const Modulation& modulation, const Rows& rows,
                                    int first, int count) {
  RouterRows lane;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = first + half * kBandRows / 2 + lane_index() / kRowLanes;
    lane.row[half] = row < count ? row : -1;
    lane.position[half] = row < count ? position_of(addend, row) : -1;
    lane.modulation[half] = row < count ? modulation_of(modulation, row, rows.tokens) : 0;
  }
  return lane;
}

DYDIT_DEVICE RouterInputs router_inputs(const float* x, const Addend& addend, const RouterRows& lane, int C,
                                        int column) {
  RouterInputs in;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    in.x[half] = {0, 0, 0, 0};
    in.y[half] = {0, 0};
    if (lane.row[half] >= 0) in.x[half] = at<Float4>(x + int64_t{lane.row[half]} * C, column);
    if (lane.position[half] >= 0) in.y[half] = at(addend.y + int64_t{lane.position[half]} * C, column);
  }
  return in;
}

/// Finishes a sixteen of inputs: x += gate y in memory, and the sum as fragments of its two parts.
DYDIT_DEVICE void router_fragments(uint32_t (&hi)[4], uint32_t (&lo)[4], float* x, const RouterInputs& in,
                                   const Modulation& modulation, const RouterRows& lane, int C, int column) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    Float4 v = in.x[half];
    if (lane.position[half] >= 0) {
      Float4 gate = {1, 1, 1, 1};
      if (modulation.gate != nullptr) gate = at<Float4>(modulation.gate + lane.modulation[half], column);
      v = added(v, gate, in.y[half]);
      *reinterpret_cast<Float4*>(x + int64_t{lane.row[half]} * C + column) = v;
    }
    const SplitPair first = split(v.x, v.y), second = split(v.z, v.w);
    hi[half] = first.hi, hi[half + 2] = second.hi;
    lo[half] = first.lo, lo[half + 2] = second.lo;
  }
}

// check_kernels residual_router_kernel: registers <= 208, shared <= 38912, LDG.E.128, HMMA.16816.F32.BF16
static_assert(sums_bytes(9, 2) <= 38912);
template <int kTiles, int kBands>
DYDIT_KERNEL DYDIT_BOUNDS(kRouterWarps* kWarp, kBands == 1 ? 4 : 2)
    residual_router_kernel(float* logits, float* x, Addend addend, TokenRouter router, Modulation modulation,
                           Rows rows) {
  const int count = rows_of(rows), C = rows.C, lane = lane_index(), warp = warp_index();
  const int first = block_x() * kBands * kBandRows;
  if (first >= count) return;
  RouterRows lanes[kBands];
#pragma unroll
  for (int band = 0; band < kBands; ++band)
    lanes[band] = router_rows(addend, modulation, rows, first + band * kBandRows, count);

  float sums[kBands][kTiles][4] = {};
  const Words4* const __restrict__ w1 = reinterpret_cast<const Words4*>(router.w1);
  const int depth = C / kDepth, in_depth = lane % kRowLanes * kLaneFloats;
  RouterInputs next[kBands];  // on their way while the last ones are multiplied
#pragma unroll
  for (int band = 0; band < kBands; ++band)
    if (warp < depth) next[band] = router_inputs(x, addend, lanes[band], C, warp * kDepth + in_depth);
  for (int k = warp; k < depth; k += kRouterWarps) {
    uint32_t hi[kBands][4], lo[kBands][4];
#pragma unroll
    for (int band = 0; band < kBands; ++band)
      router_fragments(hi[band], lo[band], x, next[band], modulation, lanes[band], C, k * kDepth + in_depth);
    if (k + kRouterWarps < depth) {
#pragma unroll
      for (int band = 0; band < kBands; ++band)
        next[band] = router_inputs(x, addend, lanes[band], C, (k + kRouterWarps) * kDepth + in_depth);
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const Words4 w = w1[(k * kTiles + tile) * kWarp + lane];
#pragma unroll
      for (int band = 0; band < kBands; ++band) {
        multiply_add(sums[band][tile], hi[band], w.x, w.y);
        multiply_add(sums[band][tile], hi[band], w.z, w.w);
        multiply_add(sums[band][tile], lo[band], w.x, w.y);
      }
    }
  }

  constexpr int kStride = sums_stride(kTiles), kRows = kBands * kBandRows;
  auto* const shared = static_cast<float*>(shared_memory());  // (warps, rows, stride)
#pragma unroll
  for (int band = 0; band < kBands; ++band) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      float* const to = shared + (warp * kRows + band * kBandRows + lane / kRowLanes) * kStride +
                        tile * kTileHidden + lane % kRowLanes * 2;
      to[0] = sums[band][tile][0], to[1] = sums[band][tile][1];
      to[kBandRows / 2 * kStride] = sums[band][tile][2],
                         to[kBandRows / 2 * kStride + 1] = sums[band][tile][3];
    }
  }
  sync_block();
  const int row = thread_index() / kRowLanes;
  if (row >= kRows) return;  // whole warps
  float logit = 0;
  for (int h = thread_index() % kRowLanes; h < router.R; h += kRowLanes) {
    float hidden = router.b1[h];
#pragma unroll
    for (int w = 0; w < kRouterWarps; ++w) hidden += shared[(w * kRows + row) * kStride + h];
    logit += router.w2[h] * (hidden > 0 ? hidden : 0);
  }
  logit += shuffle_xor(logit, 1);
  logit += shuffle_xor(logit, 2);
  if (thread_index() % kRowLanes == 0 && first + row < count) logits[first + row] = logit + *router.b2;
}

// Choice of tokens: one block a sample.

/// Orders logits as select_tokens does: totally, NaN included; -0 equals 0, unlike the bits.
DYDIT_BOTH int32_t order_key(float logit) {
  const int32_t bits = logit == 0 ? 0 : std::bit_cast<int32_t>(logit);
  return bits < 0 ? bits ^ 0x7fffffff : bits;
}

inline constexpr int kKeys = 4;  // compared at a time
struct alignas(16) Keys {
  int32_t keys[kKeys];
};
DYDIT_BOTH constexpr int padded_keys(int patches) { return divided_up(patches, kKeys) * kKeys; }

/// How many logits come before that of `patch`: larger ones, and equal ones in front of it.
DYDIT_DEVICE int rank_of(const Keys* keys, int patches, int patch) {
  const int32_t own = keys[patch / kKeys].keys[patch % kKeys];
  int rank = 0;
  for (int i = 0; i < divided_up(patches, kKeys); ++i) {
    const Keys others = keys[i];
#pragma unroll
    for (int j = 0; j < kKeys; ++j)
      rank += others.keys[j] > own || (others.keys[j] == own && i * kKeys + j < patch) ? 1 : 0;
  }
  return rank;
}

inline constexpr int kChoiceThreads = 1024;
inline constexpr int kChoiceWarps = kChoiceThreads / kWarp;
DYDIT_BOTH constexpr int choice_bytes(int patches) {
  return (padded_keys(patches) + kChoiceWarps) * static_cast<int>(sizeof(int32_t));
}

// Shared memory is that of 1024 patches.
// check_kernels choose_tokens_kernel: registers <= 64, shared <= 4224, VOTE
static_assert(choice_bytes(1024) <= 4224);
DYDIT_KERNEL DYDIT_BOUNDS(kChoiceThreads, 1)
    choose_tokens_kernel(ChosenTokens chosen, const float* logits, TokenRule rule, int T) {
  const int sample = block_x(), patches = T - rule.extras, threads = block_threads();
  auto* const keys = static_cast<Keys*>(shared_memory());
  auto* const flat = static_cast<int32_t*>(shared_memory());
  int32_t* const totals = flat + padded_keys(patches);  // (warps) tokens that are on
  const float* const own_logits = logits + int64_t{sample} * T + rule.extras;
  if (rule.keep >= 0) {
    for (int i = thread_index(); i < padded_keys(patches); i += threads)
      flat[i] = i < patches ? order_key(own_logits[i]) : INT32_MIN;  // behind all: never in front of an equal
    sync_block();
  }
  int before = 0;  // tokens that are on in front of these
  for (int begin = 0; begin < T; begin += threads) {
    const int token = begin + thread_index(), patch = token - rule.extras;
    bool on = token < T && patch < 0;
    if (token < T && patch >= 0)
      on = rule.keep < 0 ? own_logits[patch] > rule.threshold : rank_of(keys, patches, patch) < rule.keep;
    const uint32_t in_warp = ballot(on);
    if (lane_index() == 0) totals[warp_index()] = count_bits(in_warp);
    sync_block();
    int position = before + count_bits(in_warp & ((1u << lane_index()) - 1));
    for (int w = 0; w < threads / kWarp; ++w) {
      position += w < warp_index() ? totals[w] : 0;
      before += totals[w];
    }
    sync_block();  // before the next totals
    if (token >= T) continue;
    const int row = sample * T + token;
    const bool has_position = on && position < rule.capacity;
    chosen.inverse[row] = has_position ? sample * rule.capacity + position : -1;
    if (has_position) chosen.rows[sample * rule.capacity + position] = row;
  }
  for (int p = before + thread_index(); p < rule.capacity; p += threads)
    chosen.rows[sample * rule.capacity + p] = -1;
  if (thread_index() == 0) chosen.counts[sample] = before;
}

}  // namespace dydit::cuda
