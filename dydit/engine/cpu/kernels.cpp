// Compiled once a level with DYDIT_LEVEL (avx2, avx512, avx512_bf16, amx) and that level's flags. Nothing
// inline from the standard library: an inline function compiled here with wide instructions could be the one
// the linker keeps.
#include "dydit/engine/cpu/kernels.h"

#ifdef __AMX_BF16__
#include "dydit/engine/cpu/amx.h"
#endif
#include "dydit/engine/cpu/vectors.h"

namespace dydit::cpu::DYDIT_LEVEL {
namespace {

constexpr int kTileColumns = kTilePanels * kPanel;
constexpr int kPairElements = 2 * kPanel;  // of a panel
constexpr int kPrefetchLines = 6;

// One input of a pair: 16 / kVectors columns of a panel from `w` on, and a row's value for all of them.
inline Vector weight_of(const float* w, int input) { return load_vector(w + input * kPanel); }
inline Vector weight_of(const Bf16* w, int input) {
  const Vector both = load_vector(reinterpret_cast<const uint32_t*>(w));
  return input == 0 ? low_half(both) : high_half(both);
}
inline Vector row_value(const float* a, int input) { return broadcast(a[input]); }
inline Vector row_value(const Bf16* a, int input) {
  return broadcast(static_cast<uint32_t>(a[input].bits) << 16);
}

template <typename A, typename W>
struct Step {  // two multiply-adds, one after the other: weights of both at once would not fit the registers
  template <int R, int P>
  static inline void run(Vector (&sum)[R][P][kVectors], const A* a, int64_t lda, const W* const (&w)[P],
                         int64_t offset) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      // A lane of a bfloat16 panel holds a pair, of a float32 panel half of one.
      const int64_t at = offset + v * kLanesOfVector * (sizeof(W) == 2 ? 2 : 1);
#pragma GCC unroll 2
      for (int input = 0; input < 2; ++input) {
        Vector weights[P];
#pragma GCC unroll 8
        for (int j = 0; j < P; ++j) weights[j] = weight_of(w[j] + at, input);
#pragma GCC unroll 8
        for (int i = 0; i < R; ++i) {
          const Vector row = row_value(a + i * lda, input);
#pragma GCC unroll 8
          for (int j = 0; j < P; ++j) sum[i][j][v] = multiply_add(row, weights[j], sum[i][j][v]);
        }
      }
    }
  }
};

#ifdef __AVX512BF16__
template <>
struct Step<Bf16, Bf16> {  // one instruction for both
  template <int R, int P>
  static inline void run(Vector (&sum)[R][P][kVectors], const Bf16* a, int64_t lda, const Bf16* const (&w)[P],
                         int64_t offset) {
    __m512bh weights[P];
#pragma GCC unroll 8
    for (int j = 0; j < P; ++j) weights[j] = (__m512bh)_mm512_loadu_si512(w[j] + offset);
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
      int both;
      __builtin_memcpy(&both, a + i * lda, sizeof both);
      const auto row = (__m512bh)_mm512_set1_epi32(both);
#pragma GCC unroll 8
      for (int j = 0; j < P; ++j) sum[i][j][0] = _mm512_dpbf16_ps(sum[i][j][0], row, weights[j]);
    }
  }
};
#endif

// out (R rows of 16 P columns) <- R rows of `a` times P panels, over the input segments, plus the panels'
// bias (null: none).
template <typename A, typename W, int R, int P>
void tile(float* out, int64_t out_stride, const A* a, int64_t lda, const W* const* panels,
          const float* const* bias, const int* segments, int num_segments, int segment_pairs) {
  Vector sum[R][P][kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < P; ++j) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v)
        sum[i][j][v] = bias ? load_vector(bias[j] + v * kLanesOfVector) : zero_vector();
    }
  }
  for (int s = 0; s < num_segments; ++s) {
    const W* w[P];
#pragma GCC unroll 8
    for (int j = 0; j < P; ++j) w[j] = panels[j] + int64_t{segments[s]} * kPairElements;
    int pairs = segment_pairs;
    for (; s + 1 < num_segments && segments[s + 1] == segments[s] + segment_pairs; ++s)
      pairs += segment_pairs;
    if (s + 1 < num_segments) {  // the processor's own prefetching does not see the jump coming
#pragma GCC unroll 8
      for (int j = 0; j < P; ++j) {
        const auto* next =
            reinterpret_cast<const char*>(panels[j] + int64_t{segments[s + 1]} * kPairElements);
#pragma GCC unroll 8
        for (int line = 0; line < kPrefetchLines; ++line) _mm_prefetch(next + 64 * line, _MM_HINT_T0);
      }
    }
    for (int p = 0; p < pairs; ++p, a += 2) {
      Step<A, W>::template run<R, P>(sum, a, lda, w, int64_t{p} * kPairElements);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < P; ++j) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        store_vector(out + i * out_stride + j * kPanel + v * kLanesOfVector, sum[i][j][v]);
      }
    }
  }
}

// Products of up to kRows rows and kMaxPanels panels.
template <typename A, typename W>
struct Multiplier {
  static constexpr int kRows = kTileRows;

  void run(int rows, int count, float* out, int64_t out_stride, const A* a, int64_t lda,
           const W* const* panels, const float* const* bias, const int* segments, int num_segments,
           int segment_pairs) {
#define DYDIT_ROW(R)                                                                                \
  {                                                                                                 \
    tile<A, W, R, 1>, tile < A, W, R, kMaxPanels<2 ? 1 : 2>, tile < A, W, R, kMaxPanels<3 ? 1 : 3>, \
        tile < A, W, R, kMaxPanels<4 ? 1 : 4>                                                       \
  }
    static constexpr decltype(&tile<A, W, 1, 1>) kTiles[kTileRows][kTilePanels] = {
        DYDIT_ROW(1), DYDIT_ROW(2), DYDIT_ROW(3), DYDIT_ROW(4), DYDIT_ROW(5), DYDIT_ROW(6)};
#undef DYDIT_ROW
    kTiles[rows - 1][count - 1](out, out_stride, a, lda, panels, bias, segments, num_segments, segment_pairs);
  }
};

#ifdef __AMX_BF16__
// With tile registers: 16 rows times a panel a sum, four sums at a time. Two blocks of rows are equally high,
// and so may overlap, since all tiles of one product have one height.
template <>
struct Multiplier<Bf16, Bf16> {
  static constexpr int kTilePairs = 16, kRows = 32;  // inputs come in tiles of 32, the last of a segment less
  static constexpr int kA = 4, kB = 5, kLastA = 6, kLastB = 7;  // after the sums

  ~Multiplier() {
    if (height_ != 0) release_tiles();
  }

  void run(int rows, int count, float* out, int64_t out_stride, const Bf16* a, int64_t lda,
           const Bf16* const* panels, const float* const* bias, const int* segments, int num_segments,
           int segment_pairs) {
    const bool two = rows > kTilePairs;
    shape(two ? (rows + 1) / 2 : rows, segment_pairs % kTilePairs);
    const int second = rows - height_;
    const Segments in = {segments, num_segments, segment_pairs};
    for (int j = 0; j < count;) {
      const int left = count - j;
      const auto* from = panels + j;
      const auto* with = bias ? bias + j : nullptr;
      float* to = out + j * kPanel;
      if (two && left > 1) {
        sums<2, 2>(to, out_stride, a, lda, second, from, with, in);
        j += 2;
      } else if (two) {
        sums<2, 1>(to, out_stride, a, lda, second, from, with, in);
        j += 1;
      } else if (left > 1) {
        sums<1, 2>(to, out_stride, a, lda, 0, from, with, in);
        j += 2;
      } else {
        sums<1, 1>(to, out_stride, a, lda, 0, from, with, in);
        j += 1;
      }
    }
  }

 private:
  struct Segments {
    const int* first_pairs;
    int count, pairs;
  };

  void shape(int height, int last_pairs) {
    if (height == height_ && last_pairs == last_pairs_) return;
    height_ = height;
    last_pairs_ = last_pairs;
    TileShapes shapes;
    const auto set = [&](int tile, int rows, int row_bytes) {
      shapes.rows[tile] = static_cast<uint8_t>(rows);
      shapes.row_bytes[tile] = static_cast<uint16_t>(row_bytes);
    };
    for (int sum = 0; sum < kA; ++sum) set(sum, height, 64);
    set(kA, height, 64);
    set(kB, kTilePairs, 64);
    if (last_pairs > 0) {
      set(kLastA, height, 4 * last_pairs);
      set(kLastB, last_pairs, 64);
    }
    set_tile_shapes(shapes);
  }

  // The sums of H blocks of rows, the second from row `second` on, times P panels.
  template <int H, int P>
  static void sums(float* out, int64_t out_stride, const Bf16* a, int64_t lda, int second,
                   const Bf16* const* panels, const float* const* bias, const Segments& in) {
    start<0, 0, H, P>(bias);
    start<0, 1, H, P>(bias);
    start<1, 0, H, P>(bias);
    start<1, 1, H, P>(bias);
    const int64_t row_bytes = lda * 2;
    for (int s = 0; s < in.count; ++s) {
      const int64_t first = int64_t{in.first_pairs[s]} * kPairElements;
      int pair = 0;
      for (; pair + kTilePairs <= in.pairs; pair += kTilePairs)
        step<kA, kB, H, P>(a + 2 * pair, row_bytes, second * lda, panels, first + pair * kPairElements);
      if (pair < in.pairs)
        step<kLastA, kLastB, H, P>(a + 2 * pair, row_bytes, second * lda, panels,
                                   first + pair * kPairElements);
      a += 2 * in.pairs;
    }
    finish<0, 0, H, P>(out, out_stride, second);
    finish<0, 1, H, P>(out, out_stride, second);
    finish<1, 0, H, P>(out, out_stride, second);
    finish<1, 1, H, P>(out, out_stride, second);
  }
  template <int I, int J, int H, int P>
  static void start(const float* const* bias) {
    if constexpr (I < H && J < P) {
      if (bias) {
        load_tile<I * P + J>(bias[J], 0);  // the same row again and again
      } else {
        clear_tile<I * P + J>();
      }
    }
  }
  // One tile of inputs. The rows are loaded once a panel: there is no tile left to keep both blocks in.
  template <int A, int B, int H, int P>
  static void step(const Bf16* a, int64_t row_bytes, int64_t second, const Bf16* const* panels, int64_t at) {
    load_tile<A>(a, row_bytes);
    load_tile<B>(panels[0] + at, 64);
    multiply_tiles<0, A, B>();
    if constexpr (P == 2 && H == 1) {
      load_tile<B>(panels[1] + at, 64);
      multiply_tiles<1, A, B>();
    }
    if constexpr (H == 2) {
      load_tile<A>(a + second, row_bytes);
      multiply_tiles<P, A, B>();
    }
    if constexpr (P == 2 && H == 2) {
      load_tile<B>(panels[1] + at, 64);
      multiply_tiles<P + 1, A, B>();
      load_tile<A>(a, row_bytes);
      multiply_tiles<1, A, B>();
    }
  }
  template <int I, int J, int H, int P>
  static void finish(float* out, int64_t out_stride, int second) {
    if constexpr (I < H && J < P)
      store_tile<I * P + J>(out + I * second * out_stride + J * kPanel, out_stride * 4);
  }

  int height_ = 0, last_pairs_ = 0;
};
#endif

inline int ceil_div(int a, int b) { return (a + b - 1) / b; }

// Part i of `total` cut into `parts` parts whose sizes differ by one at most.
struct Range {
  int begin, size;
};
inline Range part_of(int total, int parts, int i) {
  const int size = total / parts, larger = total % parts;
  return {i * size + (i < larger ? i : larger), size + (i < larger ? 1 : 0)};
}

// Rows [first, first + rows) of one panel of a finished tile.
template <typename A>
void finish(const Gemm& g, const Panel& panel, int first, int rows, const float* tile) {
  A* out = static_cast<A*>(g.out) + first * g.ldo + panel.column;
  for (int i = 0; i < rows; ++i, tile += kTileColumns, out += g.ldo) {
    const Lanes v = load_lanes(tile);
    switch (g.epilogue) {
      case Epilogue::Store:
        store_lanes(out, v, panel.width);
        break;
      case Epilogue::Gelu:
        store_lanes(out, each(v, [](Vector x, int) { return gelu<A>(x); }), panel.width);
        break;
      case Epilogue::Relu:
        store_lanes(out, each(v, [](Vector x, int) { return largest(x, zero_vector()); }), panel.width);
        break;
      case Epilogue::Residual: {
        const int row = g.rows ? g.rows[first + i] : first + i;
        float* x = static_cast<float*>(g.out) + row * g.ldo + panel.column;
        const float* gate = g.gates ? g.gates[row / g.sample_rows] + panel.column : nullptr;
        const Lanes update = gate ? v * load_lanes(gate, panel.width) : v;
        store_lanes(x, load_lanes(x, panel.width) + update, panel.width);
      }
    }
  }
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
  for (int i = 0; i < C; i += kPanel) {
    const int count = C - i;
    const Lanes scales =
        each(load_lanes(scale + i, count), [&](Vector s, int) { return factor * (1.0f + s); });
    const Lanes v = (load_lanes(x + i, count) - mean) * scales + load_lanes(shift + i, count);
    store_lanes(out + i, v, count);
  }
}

template <typename A, typename W>
void gemm(const Gemm& g) {
  Multiplier<A, W> multiplier;
  alignas(64) float out[multiplier.kRows * kTileColumns];
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
    for (int rt = 0; rt < row_tiles; ++rt) {
      const Range part = part_of(rows, row_tiles, rt);
      const int first = g.row_begin + part.begin;
      multiplier.run(part.size, columns.size, out, kTileColumns, static_cast<const A*>(g.a) + first * g.lda,
                     g.lda, weights, bias, g.segments, g.num_segments, g.segment_pairs);
      for (int j = 0; j < columns.size; ++j) finish<A>(g, panels[j], first, part.size, out + j * kPanel);
    }
  }
}

#ifdef __AVX512F__
// out[c] <- (rows[0][c], rows[1][c], ...): 16 x 16 lanes.
inline void transpose(__m512i (&rows)[kPanel]) {
  __m512i a[kPanel];
#pragma GCC unroll 8
  for (int i = 0; i < kPanel; i += 2) {
    a[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    a[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < kPanel; i += 4) {  // lane c % 4 of four rows, for c / 4 = 0..3
    rows[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
    rows[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
    rows[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
    rows[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 4; ++i) {  // quarters of 128 bits: those of four groups of rows side by side
    const __m512i low = _mm512_shuffle_i32x4(rows[i], rows[i + 4], 0x44),
                  high = _mm512_shuffle_i32x4(rows[i], rows[i + 4], 0xee),
                  low2 = _mm512_shuffle_i32x4(rows[i + 8], rows[i + 12], 0x44),
                  high2 = _mm512_shuffle_i32x4(rows[i + 8], rows[i + 12], 0xee);
    a[i] = _mm512_shuffle_i32x4(low, low2, 0x88);
    a[i + 4] = _mm512_shuffle_i32x4(low, low2, 0xdd);
    a[i + 8] = _mm512_shuffle_i32x4(high, high2, 0x88);
    a[i + 12] = _mm512_shuffle_i32x4(high, high2, 0xdd);
  }
#pragma GCC unroll 16
  for (int i = 0; i < kPanel; ++i) rows[i] = a[i];
}

// Whole pairs of 16 tokens; 5 % of attention when done one by one.
inline void pack_key_panel(uint32_t* out, const Bf16* k, int64_t stride, int tokens, int pairs) {
  for (int first = 0; first < pairs; first += kPanel, k += 2 * kPanel) {
    const int count = pairs - first < kPanel ? pairs - first : kPanel;
    const auto mask = static_cast<__mmask16>((1u << count) - 1);
    __m512i rows[kPanel];
#pragma GCC unroll 16
    for (int c = 0; c < kPanel; ++c)
      rows[c] = c < tokens ? _mm512_maskz_loadu_epi32(mask, k + c * stride) : _mm512_setzero_si512();
    transpose(rows);
    for (int p = 0; p < count; ++p, out += kPanel) _mm512_storeu_si512(out, rows[p]);
  }
}
#endif

// Keys as panels: 16 tokens of D inputs each. Tokens and channels beyond the last are zero.
void pack_keys(Bf16* panels, const Bf16* k, int64_t stride, int N, int D) {
  auto* out = reinterpret_cast<uint32_t*>(panels);
  const int pairs = ceil_div(D, 2);
  for (int first = 0; first < N; first += kPanel, out += pairs * kPanel) {
#ifdef __AVX512F__
    if (D % 2 == 0) {
      pack_key_panel(out, k + first * stride, stride, N - first, pairs);
      continue;
    }
#endif
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

// p <- exp(scale (s - max)) over `panels` times 16 scores; returns the sum.
template <typename T>
inline float exponentials(T* p, const float* s, int panels, float scale) {
  Lanes most = load_lanes(s);
  for (int i = 1; i < panels; ++i) {
    const Lanes next = load_lanes(s + i * kPanel);
    most = each(most, [&](Vector x, int v) { return largest(x, next.v[v]); });
  }
  const float factor = scale * kLog2E, offset = factor * largest_of(most);
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

template <typename T>
void attention(const Attention& a) {
  const int N = a.N, D = a.D, key_pairs = ceil_div(D, 2), value_pairs = ceil_div(N, 2);
  const int key_panels = ceil_div(N, kPanel), value_panels = ceil_div(D, kPanel),
            tokens = key_panels * kPanel;
  T* keys = static_cast<T*>(a.scratch);
  T* values = keys + int64_t{key_panels} * key_pairs * kPairElements;
  T* weights = values + int64_t{value_panels} * value_pairs * kPairElements;
  auto* scores = reinterpret_cast<float*>(weights + kAttentionRows * tokens);
  pack_keys(keys, static_cast<const T*>(a.k), a.stride, N, D);
  pack_values(values, static_cast<const T*>(a.v), a.stride, N, D);

  // Some rows at a time: a tile of keys serves all of them from the first-level cache, and so do their
  // scores.
  Multiplier<T, T> multiplier;
  constexpr int kTile = multiplier.kRows;
  const int whole = 0, block = attention_rows(N, kTile), blocks = ceil_div(N, block);
  const int key_tiles = ceil_div(key_panels, kMaxPanels), value_tiles = ceil_div(value_panels, kMaxPanels);
  for (int b = 0; b < blocks; ++b) {
    const Range rows = part_of(N, blocks, b);
    const int row_tiles = ceil_div(rows.size, kTile);
    const T* q = static_cast<const T*>(a.q) + rows.begin * a.stride;
    const T* panels[kTilePanels] = {};
    for (int t = 0; t < key_tiles; ++t) {
      const Range part = part_of(key_panels, key_tiles, t);
      for (int j = 0; j < part.size; ++j)
        panels[j] = keys + int64_t{part.begin + j} * key_pairs * kPairElements;
      for (int rt = 0; rt < row_tiles; ++rt) {
        const Range tile_rows = part_of(rows.size, row_tiles, rt);
        multiplier.run(tile_rows.size, part.size, scores + tile_rows.begin * tokens + part.begin * kPanel,
                       tokens, q + tile_rows.begin * a.stride, a.stride, panels, nullptr, &whole, 1,
                       key_pairs);
      }
    }
    float inverse[kAttentionRows];
    for (int i = 0; i < rows.size; ++i) {
      for (int n = N; n < tokens; ++n) scores[i * tokens + n] = -1e30f;  // no such token
      inverse[i] = 1.0f / exponentials(weights + i * tokens, scores + i * tokens, key_panels, a.scale);
    }
    alignas(64) float out[kTile * kTileColumns];
    for (int t = 0; t < value_tiles; ++t) {
      const Range part = part_of(value_panels, value_tiles, t);
      for (int j = 0; j < part.size; ++j)
        panels[j] = values + int64_t{part.begin + j} * value_pairs * kPairElements;
      for (int rt = 0; rt < row_tiles; ++rt) {
        const Range tile_rows = part_of(rows.size, row_tiles, rt);
        multiplier.run(tile_rows.size, part.size, out, kTileColumns, weights + tile_rows.begin * tokens,
                       tokens, panels, nullptr, &whole, 1, value_pairs);
        for (int i = 0; i < tile_rows.size; ++i) {
          const int row = tile_rows.begin + i;
          for (int c = 0; c < part.size * kPanel; c += kPanel) {
            const Lanes v =
                each(load_lanes(out + i * kTileColumns + c), [&](Vector x, int) { return x * inverse[row]; });
            const int column = part.begin * kPanel + c, width = D - column < kPanel ? D - column : kPanel;
            store_lanes(static_cast<T*>(a.out) + (rows.begin + row) * a.out_stride + column, v, width);
          }
        }
      }
    }
    if (D % 2 != 0) {
      for (int i = 0; i < rows.size; ++i) static_cast<T*>(a.out)[(rows.begin + i) * a.out_stride + D] = T{};
    }
  }
}

// Tiles of operands that stay in the first-level cache: what the processor can do at best.
template <typename T>
int64_t peak(int64_t rounds, float* sink) {
  constexpr int kPairs = 64;
  Multiplier<T, T> multiplier;
  constexpr int kRows = multiplier.kRows;
  alignas(64) static const T zeros[kRows * 2 * kPairs + kMaxPanels * kPairElements * kPairs] = {};
  const T* a = zeros;
  alignas(64) float out[kRows * kTileColumns];
  const int all = 0;
  for (int64_t r = 0; r < rounds; ++r) {
    asm volatile(""
                 : "+r"(a)
                 : "r"(out)
                 : "memory");  // nothing is known of `a`, everything is needed of `out`
    const T* panels[kMaxPanels];
    for (int j = 0; j < kMaxPanels; ++j) panels[j] = a + kRows * 2 * kPairs + j * kPairElements * kPairs;
    multiplier.run(kRows, kMaxPanels, out, kTileColumns, a, 2 * kPairs, panels, nullptr, &all, 1, kPairs);
    *sink += out[r % kPanel];
  }
  return rounds * kRows * kMaxPanels * kPanel * kPairs * 2;
}

}  // namespace

extern const Kernels kernels = {Multiplier<Bf16, Bf16>::kRows,
                                gemm<Bf16, Bf16>,
                                gemm<float, Bf16>,
                                gemm<float, float>,
                                attention<Bf16>,
                                attention<float>,
                                norm<Bf16>,
                                norm<float>,
                                peak<Bf16>,
                                peak<float>};

}  // namespace dydit::cpu::DYDIT_LEVEL
