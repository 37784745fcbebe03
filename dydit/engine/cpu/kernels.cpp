// Compiled once a level with DYDIT_LEVEL (avx2, avx512, avx512_bf16, amx) and that level's flags. Nothing
// inline from the standard library: an inline function compiled here with wide instructions could be the one
// the linker keeps.
#include "dydit/engine/cpu/kernels.h"

#include "dydit/engine/cpu/multiplier.h"
#include "dydit/engine/cpu/vectors.h"

namespace dydit::cpu::DYDIT_LEVEL {
namespace {

inline int ceil_div(int a, int b) { return (a + b - 1) / b; }

// Part i of `total` cut into `parts` parts whose sizes differ by one at most.
struct Range {
  int begin, size;
};
inline Range part_of(int total, int parts, int i) {
  const int size = total / parts, larger = total % parts;
  return {i * size + (i < larger ? i : larger), size + (i < larger ? 1 : 0)};
}

// The sum of fn(16 values) over a row; beyond its end the values are `beyond`.
template <typename Fn>
inline float sum_of_row(const float* x, int C, float beyond, const Fn& fn) {
  constexpr int kSums = 4;  // one alone would have to wait for itself
  Lanes sums[kSums] = {};
  int i = 0;
  for (; i + kSums * kPanel <= C; i += kSums * kPanel) {
#pragma GCC unroll 4
    for (int j = 0; j < kSums; ++j) sums[j] = sums[j] + fn(load_lanes(x + i + j * kPanel));
  }
  for (; i < C; i += kPanel) sums[0] = sums[0] + fn(load_lanes(x + i, C - i, beyond));
  return sum_of((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

template <typename T>
void norm(T* out, const float* x, const float* shift, const float* scale, int C, float eps) {
  const float mean = sum_of_row(x, C, 0, [](const Lanes& v) { return v; }) / static_cast<float>(C);
  const float squares = sum_of_row(x, C, mean, [&](const Lanes& v) { return (v - mean) * (v - mean); });
  const float factor = 1.0f / __builtin_sqrtf(squares / static_cast<float>(C) + eps);
  const auto modulate = [&](int i, int count) {
    const Lanes scales =
        each(load_lanes(scale + i, count), [&](Vector s, int) { return factor * (1.0f + s); });
    const Lanes v = (load_lanes(x + i, count) - mean) * scales + load_lanes(shift + i, count);
    store_lanes(out + i, v, count);
  };
  int i = 0;
  for (; i + kPanel <= C; i += kPanel) modulate(i, kPanel);
  if (i < C) modulate(i, C - i);
}

// A strip of rows at a time, so that x waits in the first-level cache while features stream by.
template <typename T>
void forecast(float* x, int64_t stride, int first, int rows, int C, const ForecastTerms* forecasts,
              int count) {
  constexpr int kStripValues = 4096;
  const int strip = C < kStripValues ? kStripValues / C : 1;
  for (int begin = 0; begin < rows; begin += strip) {
    const int end = begin + strip < rows ? begin + strip : rows;
    for (const ForecastTerms* f = forecasts; f < forecasts + count; ++f) {
      for (int row = begin; row < end; ++row) {
        const int64_t at = int64_t{first + row} * C;
        float* to = x + row * stride;
        for (int c = 0; c < C; c += kPanel) {
          const auto feature = [&](int j) {
            return load_lanes(static_cast<const T*>(f->features[j]) + at + c, C - c);
          };
          Lanes v = times(feature(0), f->weights[0]);
          for (int j = 1; j < f->count; ++j) v = multiply_add(feature(j), f->weights[j], v);
          const Lanes before = load_lanes(to + c, C - c);
          store_lanes(to + c, f->gate ? multiply_add(v, load_lanes(f->gate + c, C - c), before) : before + v,
                      C - c);
        }
      }
    }
  }
}

template <typename T>
void subtract(T* out, const float* a, const float* b, int C) {
  for (int c = 0; c < C; c += kPanel) {
    const Lanes from = load_lanes(b + c, C - c);
    const Lanes v = each(load_lanes(a + c, C - c), [&](Vector x, int i) { return x - from.v[i]; });
    store_lanes(out + c, v, C - c);
  }
}

float dot(const float* a, const float* b, int size) {
  Lanes sum = {};
  for (int i = 0; i < size; i += kPanel)
    sum = multiply_add(load_lanes(a + i, size - i), load_lanes(b + i, size - i), sum);
  return sum_of(sum);
}

template <typename A, typename W>
void gemm(const Gemm& g) {
  Multiplier<A, W> multiplier;
  alignas(64) float sums[multiplier.kRows * kTileColumns];
  const int rows = g.row_end - g.row_begin, row_tiles = ceil_div(rows, multiplier.kRows);
  const int column_tiles = ceil_div(g.num_panels, kMaxPanels);
  for (int ct = 0; ct < column_tiles; ++ct) {
    const Range columns = part_of(g.num_panels, column_tiles, ct);
    const Panel* panels = g.panels + columns.begin;
    const W* weights[kTilePanels] = {};
    const float* bias[kTilePanels] = {};
    for (int j = 0; j < columns.size; ++j) {
      weights[j] = static_cast<const W*>(panels[j].weights);
      bias[j] = panels[j].bias;
    }
    Product<A, W> product = {nullptr,    g.lda,          weights,         bias,
                             g.segments, g.num_segments, g.segment_pairs, g.narrow};
    if (ct == 0) {
      product.ahead.count = g.num_next;
      product.ahead.every = row_tiles;
      for (int j = 0; j < g.num_next; ++j) product.ahead.panels[j] = static_cast<const W*>(g.next[j].weights);
    }
    for (int rt = 0; rt < row_tiles; ++rt) {
      const Range part = part_of(rows, row_tiles, rt);
      const int first = g.row_begin + part.begin;
      product.a = static_cast<const A*>(g.a) + first * g.lda;
      product.ahead.first = rt;
      multiplier.run(part.size, columns.size, {sums, kTileColumns, &g, panels, first}, product);
    }
  }
}

// Weights stored in bfloat16, a register tile's panels at a time, as float32.
void gemm_expanded(const Gemm& g) {
  const int column_tiles = ceil_div(g.num_panels, kMaxPanels), pair = 2 * (g.narrow ? kNarrowPanel : kPanel);
  const int64_t panel_floats = int64_t{g.segments[g.num_segments - 1] + g.segment_pairs} * pair;
  Panel panels[kTilePanels];
  Gemm part = g;
  part.panels = panels;
  part.num_next = 0;
  for (int ct = 0; ct < column_tiles; ++ct) {
    const Range columns = part_of(g.num_panels, column_tiles, ct);
    part.num_panels = columns.size;
    for (int j = 0; j < columns.size; ++j) {
      const Panel& stored = g.panels[columns.begin + j];
      float* out = g.expanded + j * panel_floats;
      panels[j] = stored;
      panels[j].weights = out;
      for (int s = 0; s < g.num_segments; ++s) {
        const int64_t first = int64_t{g.segments[s]} * pair, end = first + int64_t{g.segment_pairs} * pair;
        for (int64_t i = first; i < end; i += kPanel)
          store_lanes(out + i, load_lanes(static_cast<const Bf16*>(stored.weights) + i));
      }
    }
    gemm<float, float>(part);
  }
}

#ifdef __AVX512BF16__
// out[c] <- (rows[0][c], rows[1][c], ...): 16 x 16 lanes. The rows are lost.
inline void transpose(__m512i (&out)[kPanel], __m512i (&rows)[kPanel]) {
#pragma GCC unroll 8
  for (int i = 0; i < kPanel; i += 2) {
    out[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    out[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < kPanel; i += 4) {  // lane c % 4 of four rows, for c / 4 = 0..3
    rows[i] = _mm512_unpacklo_epi64(out[i], out[i + 2]);
    rows[i + 1] = _mm512_unpackhi_epi64(out[i], out[i + 2]);
    rows[i + 2] = _mm512_unpacklo_epi64(out[i + 1], out[i + 3]);
    rows[i + 3] = _mm512_unpackhi_epi64(out[i + 1], out[i + 3]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 4; ++i) {  // quarters of 128 bits: those of four groups of rows side by side
    const __m512i low = _mm512_shuffle_i32x4(rows[i], rows[i + 4], 0x44),
                  high = _mm512_shuffle_i32x4(rows[i], rows[i + 4], 0xee),
                  low2 = _mm512_shuffle_i32x4(rows[i + 8], rows[i + 12], 0x44),
                  high2 = _mm512_shuffle_i32x4(rows[i + 8], rows[i + 12], 0xee);
    out[i] = _mm512_shuffle_i32x4(low, low2, 0x88);
    out[i + 4] = _mm512_shuffle_i32x4(low, low2, 0xdd);
    out[i + 8] = _mm512_shuffle_i32x4(high, high2, 0x88);
    out[i + 12] = _mm512_shuffle_i32x4(high, high2, 0xdd);
  }
}

// Whole pairs of 16 tokens; 5 % of attention when done one by one.
inline void pack_key_panel(uint32_t* out, const Bf16* k, int64_t stride, int tokens, int pairs) {
  for (int first = 0; first < pairs; first += kPanel, k += 2 * kPanel) {
    const int count = pairs - first < kPanel ? pairs - first : kPanel;
    const auto mask = static_cast<__mmask16>((1u << count) - 1);
    __m512i rows[kPanel], columns[kPanel];
#pragma GCC unroll 16
    for (int c = 0; c < kPanel; ++c)
      rows[c] = c < tokens ? _mm512_maskz_loadu_epi32(mask, k + c * stride) : _mm512_setzero_si512();
    transpose(columns, rows);
    for (int p = 0; p < count; ++p, out += kPanel) _mm512_storeu_si512(out, columns[p]);
  }
}

// Keys as panels: 16 tokens of D inputs each. Tokens and channels beyond the last are zero.
void pack_keys(Bf16* panels, const Bf16* k, int64_t stride, int N, int D) {
  auto* out = reinterpret_cast<uint32_t*>(panels);
  const int pairs = ceil_div(D, 2);
  for (int first = 0; first < N; first += kPanel, out += pairs * kPanel) {
    if (D % 2 == 0) {
      pack_key_panel(out, k + first * stride, stride, N - first, pairs);
      continue;
    }
    for (int c = 0; c < kPanel; ++c) {
      const Bf16* row = k + (first + c) * stride;
      for (int p = 0; p < pairs; ++p) {
        uint32_t both = 0;
        if (first + c < N) __builtin_memcpy(&both, row + 2 * p, 2 * p + 1 < D ? 4 : 2);
        out[p * kPanel + c] = both;
      }
    }
  }
}
#endif
void pack_keys(float* panels, const float* k, int64_t stride, int N, int D) {
  const int inputs = ceil_div(D, 2) * 2;
  for (int first = 0; first < N; first += kPanel, panels += inputs * kPanel) {
    for (int c = 0; c < kPanel; ++c) {
      for (int i = 0; i < inputs; ++i) {
        panels[i * kPanel + c] = first + c < N && i < D ? k[(first + c) * stride + i] : 0.0f;
      }
    }
  }
}

// Values as panels: 16 channels of N inputs each.
#ifdef __AVX512BF16__
void pack_values(Bf16* __restrict panels, const Bf16* __restrict v, int64_t stride, int N, int D) {
  auto* out = reinterpret_cast<uint32_t*>(panels);
  for (int first = 0; first < D; first += kPanel) {
    const int channels = D - first < kPanel ? D - first : kPanel;
    for (int i = 0; i < N; i += 2, out += kPanel) {
      const Bf16 *even = v + i * stride + first, *odd = even + stride;
      if (channels == kPanel && i + 1 < N) {
        for (int c = 0; c < kPanel; ++c) out[c] = even[c].bits | static_cast<uint32_t>(odd[c].bits) << 16;
        continue;
      }
      for (int c = 0; c < kPanel; ++c) {
        const uint32_t low = c < channels ? even[c].bits : 0,
                       high = c < channels && i + 1 < N ? odd[c].bits : 0;
        out[c] = low | high << 16;
      }
    }
  }
}
#endif
void pack_values(float* panels, const float* v, int64_t stride, int N, int D) {
  const int inputs = ceil_div(N, 2) * 2;
  for (int first = 0; first < D; first += kPanel, panels += inputs * kPanel) {
    const int channels = D - first < kPanel ? D - first : kPanel;
    for (int i = 0; i < inputs; ++i) {
      for (int c = 0; c < kPanel; ++c) {
        panels[i * kPanel + c] = c < channels && i < N ? v[i * stride + first + c] : 0.0f;
      }
    }
  }
}

inline float largest_of_row(const float* s, int panels) {
  Lanes most = load_lanes(s), other = load_lanes(s + (panels - 1) * kPanel);  // neither waits for the other
  for (int i = 1; i + 1 < panels; i += 2) {
    most = largest(most, load_lanes(s + i * kPanel));
    other = largest(other, load_lanes(s + (i + 1) * kPanel));
  }
  return largest_of(largest(most, other));
}

// `channels` of the values, up to 8, as a narrow panel of N inputs.
template <typename T>
void pack_narrow_values(T* __restrict panel, const T* __restrict v, int64_t stride, int N, int channels) {
  constexpr int kInputs = 8 / sizeof(T);  // of a channel, in a line
  for (int i = 0; i < N; i += kInputs, panel += kNarrowPanel * kInputs) {
    for (int input = 0; input < kInputs; ++input) {
      const T* row = v + (i + input) * stride;
      for (int c = 0; c < kNarrowPanel; ++c)
        panel[c * kInputs + input] = c < channels && i + input < N ? row[c] : T{};
    }
  }
}

// p <- 2^(factor s - offset) over `panels` times 16 scores; returns the sum.
template <typename T>
inline float exponentials(T* p, const float* s, int panels, float factor, float offset) {
  Lanes sum = {};
  for (int i = 0; i < panels; ++i) {
    const Lanes e = each(load_lanes(s + i * kPanel),
                         [&](Vector x, int) { return exponential_of_2<T>(x * factor - offset); });
    sum = sum + e;
    store_lanes(p + i * kPanel, e);
  }
  return sum_of(sum);
}

// Rows whose scores attention holds at a time: as many tiles as fit the first-level cache.
constexpr int attention_rows(int N, int tile_rows) {
  constexpr int kScores = 6144;
  const int tiles = kScores / (N * tile_rows), most = kAttentionRows / tile_rows;
  return (tiles < 1 ? 1 : tiles > most ? most : tiles) * tile_rows;
}

template <_mm_hint kHint, typename T>
[[gnu::always_inline]] inline void call_for_row(const T* row, int D) {
  const auto* bytes = reinterpret_cast<const char*>(row);
  for (int at = 0; at < D * static_cast<int>(sizeof(T)); at += 64) _mm_prefetch(bytes + at, kHint);
}

template <typename T>
void attention(const Attention& a) {
  const int N = a.N, D = a.D, key_pairs = ceil_div(D, 2), value_pairs = ceil_div(N, 2);
  const int key_panels = ceil_div(N, kPanel), tokens = key_panels * kPanel;
  const int value_panels = ceil_div(D, kPanel),
            narrow = kTakesNarrow<T, T> && ends_narrow(D);  // how many of them are: the last, or none
  T* keys = static_cast<T*>(a.scratch);
  T* values = keys + int64_t{key_panels} * key_pairs * kPairElements;
  T* weights = values + int64_t{value_panels} * value_pairs * kPairElements;
  // In float32 weights take the place of their scores: both would not fit the first-level cache.
  auto* scores =
      reinterpret_cast<float*>(weights + (sizeof(T) == sizeof(float) ? 0 : kAttentionRows * tokens));
  const auto values_of = [&](int panel) { return values + int64_t{panel} * value_pairs * kPairElements; };
  pack_keys(keys, static_cast<const T*>(a.k), a.stride, N, D);
  pack_values(values, static_cast<const T*>(a.v), a.stride, N, narrow ? D / kPanel * kPanel : D);
  if (narrow) {
    const int first = D / kPanel * kPanel;
    pack_narrow_values(values_of(value_panels - 1), static_cast<const T*>(a.v) + first, a.stride, N,
                       D - first);
  }

  // Some rows at a time: a tile of keys serves all of them from the first-level cache, and so do their
  // scores.
  Multiplier<T, T> multiplier;
  constexpr int kTile = multiplier.kRows;
  const int whole = 0, block = attention_rows(N, kTile), blocks = ceil_div(N, block);
  const int key_tiles = ceil_div(key_panels, kMaxPanels),
            value_tiles = ceil_div(value_panels - narrow, kMaxPanels);
  const float factor = a.scale * kLog2E;
  const void* const operands[] = {a.q, a.k, a.v};
  for (int b = 0; b < blocks; ++b) {
    const Range rows = part_of(N, blocks, b);
    const int row_tiles = ceil_div(rows.size, kTile);
    const T* q = static_cast<const T*>(a.q) + rows.begin * a.stride;
    T* to = static_cast<T*>(a.out) + rows.begin * a.out_stride;
    for (int i = 0; i < rows.size; ++i) {
      call_for_row<_MM_HINT_T0>(to + i * a.out_stride, D);
      if (a.next == 0) continue;
      for (const void* operand : operands)
        call_for_row<_MM_HINT_T1>(static_cast<const T*>(operand) + a.next + (rows.begin + i) * a.stride, D);
    }
    const T* panels[kTilePanels] = {};
    for (int t = 0; t < key_tiles; ++t) {
      const Range part = part_of(key_panels, key_tiles, t);
      for (int j = 0; j < part.size; ++j)
        panels[j] = keys + int64_t{part.begin + j} * key_pairs * kPairElements;
      for (int rt = 0; rt < row_tiles; ++rt) {
        const Range tile_rows = part_of(rows.size, row_tiles, rt);
        multiplier.run(tile_rows.size, part.size,
                       {scores + tile_rows.begin * tokens + part.begin * kPanel, tokens},
                       {q + tile_rows.begin * a.stride, a.stride, panels, nullptr, &whole, 1, key_pairs});
      }
    }
    float offsets[kAttentionRows], inverse[kAttentionRows];
    for (int i = 0; i < rows.size; ++i) {  // by itself: the rows' maxima do not wait for exponentials
      for (int n = N; n < tokens; ++n) scores[i * tokens + n] = -1e30f;  // no such token
      offsets[i] = factor * largest_of_row(scores + i * tokens, key_panels);
    }
    for (int i = 0; i < rows.size; ++i) {
      inverse[i] =
          1.0f / exponentials(weights + i * tokens, scores + i * tokens, key_panels, factor, offsets[i]);
    }
    alignas(64) float out[kTile * kTileColumns];
    for (int t = 0; t < value_tiles + narrow; ++t) {
      const Range part =
          t < value_tiles ? part_of(value_panels - narrow, value_tiles, t) : Range{value_panels - 1, 1};
      for (int j = 0; j < part.size; ++j) panels[j] = values_of(part.begin + j);
      for (int rt = 0; rt < row_tiles; ++rt) {
        const Range tile_rows = part_of(rows.size, row_tiles, rt);
        multiplier.run(tile_rows.size, part.size, {out, kTileColumns},
                       {weights + tile_rows.begin * tokens, tokens, panels, nullptr, &whole, 1, value_pairs,
                        t >= value_tiles});
        for (int i = 0; i < tile_rows.size; ++i) {
          const int row = tile_rows.begin + i;
          for (int c = 0; c < part.size * kPanel; c += kPanel) {
            const Lanes v =
                each(load_lanes(out + i * kTileColumns + c), [&](Vector x, int) { return x * inverse[row]; });
            const int column = part.begin * kPanel + c, width = D - column < kPanel ? D - column : kPanel;
            store_lanes(to + row * a.out_stride + column, v, width);
          }
        }
      }
    }
    if (D % 2 != 0) {
      for (int i = 0; i < rows.size; ++i) to[i * a.out_stride + D] = T{};
    }
  }
}

// Tiles of operands that stay in the first-level cache, over so many inputs that their ends do not count:
// what the processor can do at best.
template <typename T>
int64_t peak(int64_t rounds, float* sink) {
  Multiplier<T, T> multiplier;
  constexpr int kRows = multiplier.kRows, kPairs = 32, kSegments = kRows > kTileRows ? 2 : 32 / sizeof(T);
  constexpr int kInputs = 2 * kPairs * kSegments;
  alignas(64) static const T zeros[kRows * kInputs + kMaxPanels * kPairElements * kPairs] = {};
  const T* a = zeros;
  alignas(64) float out[kRows * kTileColumns];
  const int segments[kSegments] = {};  // the same weights again and again
  for (int64_t r = 0; r < rounds; ++r) {
    asm volatile(""
                 : "+r"(a)
                 : "r"(out)
                 : "memory");  // nothing is known of `a`, everything is needed of `out`
    const T* panels[kMaxPanels];
    for (int j = 0; j < kMaxPanels; ++j) panels[j] = a + kRows * kInputs + j * kPairElements * kPairs;
    multiplier.run(kRows, kMaxPanels, {out, kTileColumns},
                   {a, kInputs, panels, nullptr, segments, kSegments, kPairs});
    *sink += out[r % kPanel];
  }
  return rounds * kRows * kMaxPanels * kPanel * kInputs;
}

}  // namespace

extern const Kernels kernels = {Multiplier<Bf16, Bf16>::kRows,
                                kMaxPanels,
                                kTakesNarrow<Bf16, Bf16>,
                                kTakesNarrow<float, float>,
                                DYDIT_DOTS(gemm<Bf16, Bf16>),
                                gemm_expanded,
                                gemm<float, float>,
                                DYDIT_DOTS(attention<Bf16>),
                                attention<float>,
                                DYDIT_DOTS(norm<Bf16>),
                                norm<float>,
                                DYDIT_DOTS(forecast<Bf16>),
                                forecast<float>,
                                DYDIT_DOTS(subtract<Bf16>),
                                subtract<float>,
                                dot,
                                DYDIT_DOTS(peak<Bf16>),
                                peak<float>};

}  // namespace dydit::cpu::DYDIT_LEVEL
