// Products of register tiles, and where they go. For files compiled once a level (DYDIT_LEVEL); everything
// has internal linkage, as in kernel_math.h.
#pragma once

#ifdef __AMX_BF16__
#include "dydit/engine/cpu/amx.h"
#endif
#include "dydit/engine/cpu/kernels.h"
#include "dydit/engine/cpu/vectors.h"

// Kernels of bfloat16 activations, where the level has dot products of them.
#ifdef __AVX512BF16__
#define DYDIT_DOTS(...) __VA_ARGS__
#else
#define DYDIT_DOTS(...) nullptr
#endif

namespace dydit::cpu::DYDIT_LEVEL {
namespace {

constexpr int kTileColumns = kTilePanels * kPanel;
constexpr int kPairElements = 2 * kPanel;  // of a panel

// Up to six rows that lie evenly apart: two pointers and a distance, which an address can take up to twice.
template <typename A>
struct Rows {
  Rows(const A* a, int64_t distance) : triples{a, a + 3 * distance}, distance(distance) {
    asm("" : "+r"(triples[1]));  // GCC would take five pointers, for which there are no registers
  }
  const A* row(int i) const { return triples[i / 3] + i % 3 * distance; }
  void advance(int elements) {
    triples[0] += elements;
    triples[1] += elements;
  }

  const A* triples[2];
  int64_t distance;
};

// What a tile does with one step of its panels: a pair of inputs or, narrow, a line.
template <typename A, typename W, bool kNarrow>
struct Step;

template <>
struct Step<float, float, false> {  // two multiply-adds, one after the other: the weights of both inputs at
                                    // once would not fit the registers
  template <int R, int P>
  static inline void run(Vector (&sum)[R][P][kVectors], const Rows<float>& a, const float* const (&w)[P],
                         int64_t offset) {
#pragma GCC unroll 2
    for (int input = 0; input < 2; ++input) {
      Vector weights[P][kVectors];
#pragma GCC unroll 8
      for (int j = 0; j < P; ++j) {
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v)
          weights[j][v] = load_vector(w[j] + offset + input * kPanel + v * kLanesOfVector);
      }
#pragma GCC unroll 8
      for (int i = 0; i < R; ++i) {
        const Vector row = broadcast(a.row(i)[input]);
#pragma GCC unroll 8
        for (int j = 0; j < P; ++j) {
#pragma GCC unroll 8
          for (int v = 0; v < kVectors; ++v) sum[i][j][v] = multiply_add(row, weights[j][v], sum[i][j][v]);
        }
      }
    }
  }
};

#ifdef __AVX512BF16__
template <>
struct Step<Bf16, Bf16, false> {  // one instruction for both
  template <int R, int P>
  static inline void run(Vector (&sum)[R][P][kVectors], const Rows<Bf16>& a, const Bf16* const (&w)[P],
                         int64_t offset) {
    __m512bh weights[P];
#pragma GCC unroll 8
    for (int j = 0; j < P; ++j) weights[j] = (__m512bh)_mm512_loadu_si512(w[j] + offset);
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
      int both;
      __builtin_memcpy(&both, a.row(i), sizeof both);
      const auto row = (__m512bh)_mm512_set1_epi32(both);
#pragma GCC unroll 8
      for (int j = 0; j < P; ++j) sum[i][j][0] = _mm512_dpbf16_ps(sum[i][j][0], row, weights[j]);
    }
  }
};
#endif

// Whether a product takes narrow panels; its rows' values are then broadcast by the 8 bytes.
#if defined(__AVX512BF16__) && !defined(__AMX_BF16__)
template <typename A, typename W>
constexpr bool kTakesNarrow = sizeof(A) == sizeof(W);
#elif defined(__AVX512F__)
template <typename A, typename W>
constexpr bool kTakesNarrow = sizeof(A) == 4 && sizeof(W) == 4;
#else
template <typename A, typename W>
constexpr bool kTakesNarrow = false;
#endif

#ifdef __AVX512F__
inline Vector multiply_line(const float*, Vector row, Vector weights, Vector sum) {
  return multiply_add(row, weights, sum);
}
#ifdef __AVX512BF16__
inline Vector multiply_line(const Bf16*, Vector row, Vector weights, Vector sum) {
  return _mm512_dpbf16_ps(sum, (__m512bh)row, (__m512bh)weights);
}
#endif

template <typename T>
struct Step<T, T, true> {  // 8 columns, of every column the inputs in 8 bytes
  template <int R, int P>
  static inline void run(Vector (&sum)[R][P][kVectors], const Rows<T>& a, const T* const (&w)[P],
                         int64_t offset) {
    Vector weights[P];
#pragma GCC unroll 8
    for (int j = 0; j < P; ++j) weights[j] = _mm512_loadu_ps(w[j] + offset);
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
      int64_t inputs;
      __builtin_memcpy(&inputs, a.row(i), sizeof inputs);
      const Vector row = _mm512_castsi512_ps(_mm512_set1_epi64(inputs));
#pragma GCC unroll 8
      for (int j = 0; j < P; ++j) sum[i][j][0] = multiply_line(w[j], row, weights[j], sum[i][j][0]);
    }
  }
};
// Sums of a narrow panel lie in two lanes a column.
inline Vector in_first_of_two(const float* values) { return _mm512_maskz_expandloadu_ps(0x5555, values); }
inline Vector sum_of_two(Vector v) {
  return _mm512_maskz_compress_ps(0x5555, v + _mm512_permute_ps(v, 0xb1));
}
#endif

// Panels to fetch into the second-level cache while others are multiplied: of every panel the steps `first`,
// `first` + `every`, ... of the rows' input segments, so that a whole pass over the rows fetches all.
template <typename W>
struct Ahead {
  const W* panels[kTilePanels] = {};
  int count = 0, first = 0, every = 1;
};

// Rows of `a` times panels, over the input segments, plus the panels' bias (null: none).
template <typename A, typename W>
struct Product {
  const A* a;
  int64_t lda;
  const W* const* panels;
  const float* const* bias;
  const int* segments;
  int num_segments, segment_pairs;
  bool narrow = false;
  Ahead<W> ahead = {};
};

// Where the sums of a tile go: to `sums`, rows of `stride`, as they are; or, with a gemm, through its
// epilogue to its rows from `row` on, and `sums` is room for what cannot go there from the registers.
struct Destination {
  float* sums;
  int64_t stride;
  const Gemm* gemm = nullptr;
  const Panel* panels = nullptr;
  int row = 0;
};

// The row of the output that a row of the product goes to; Residual: its sample, and its gates (null: none).
inline int out_row(const Gemm& g, int row) { return g.rows ? g.rows[row] : row; }
inline int sample_of(const Gemm& g, int row) { return out_row(g, row) / g.sample_rows; }
inline const float* gates_of(const Gemm& g, int row) {
  return g.epilogue == Epilogue::Residual && g.gates ? g.gates[sample_of(g, row)] : nullptr;
}

// Where a sample's first row of v is kept, so that a row lies as far from it as from the output's first;
// null: nowhere.
template <typename A>
inline A* kept_rows(const Gemm& g, int row) {
  if (!g.features) return nullptr;
  const int sample = sample_of(g, row);
  auto* const feature = static_cast<A*>(g.features[sample]);
  return feature ? feature - int64_t{sample} * g.sample_rows * g.feature_stride : nullptr;
}

// `width` sums of a row and a panel through the epilogue E.
template <Epilogue E, typename A>
inline void put(const Gemm& g, int row, const float* gates, A* kept, const Panel& panel, int width,
                const Lanes& v) {
  if constexpr (E == Epilogue::Residual) {
    if (kept) store_lanes(kept + out_row(g, row) * g.feature_stride + panel.column, v, width);
    float* x = static_cast<float*>(g.out) + out_row(g, row) * g.ldo + panel.column;
    const Lanes before = load_lanes(x, width);
    store_lanes(x, gates ? multiply_add(v, load_lanes(gates + panel.column, width), before) : before + v,
                width);
  } else {
    A* out = static_cast<A*>(g.out) + row * g.ldo + panel.column;
    if constexpr (E == Epilogue::GeluErf) {
      store_lanes(out, gelu_erf<A>(v), width);
    } else {
      store_lanes(out, E == Epilogue::Gelu ? gelu<A>(v) : E == Epilogue::Relu ? relu(v) : v, width);
    }
  }
}

// fn.operator()<E>() for the epilogue E of `g`.
template <typename Fn>
inline void with_epilogue(const Gemm& g, const Fn& fn) {
  switch (g.epilogue) {
    case Epilogue::Store:
      return fn.template operator()<Epilogue::Store>();
    case Epilogue::Gelu:
      return fn.template operator()<Epilogue::Gelu>();
    case Epilogue::GeluErf:
      return fn.template operator()<Epilogue::GeluErf>();
    case Epilogue::Relu:
      return fn.template operator()<Epilogue::Relu>();
    case Epilogue::Residual:
      return fn.template operator()<Epilogue::Residual>();
  }
}

// Sums that lie in memory, through the epilogue.
template <typename A>
[[gnu::noinline]] void finish_apart(const Destination& to, int rows, int count) {
  const Gemm& g = *to.gemm;
  with_epilogue(g, [&]<Epilogue E>() {
    for (int i = 0; i < rows; ++i) {
      const float* gates = gates_of(g, to.row + i);
      A* const kept = E == Epilogue::Residual ? kept_rows<A>(g, to.row + i) : nullptr;
      for (int j = 0; j < count; ++j) {
        put<E, A>(g, to.row + i, gates, kept, to.panels[j], to.panels[j].width,
                  load_lanes(to.sums + i * to.stride + j * kPanel));
      }
    }
  });
}

// Whether a tile goes through the epilogue from its registers: columns by the 16, and one sample's gates.
inline bool is_regular(const Destination& to, int rows, int count) {
  const Gemm& g = *to.gemm;
  for (int j = 0; j < count; ++j) {
    if (to.panels[j].width != kPanel) return false;
  }
  return g.epilogue != Epilogue::Residual || !g.gates ||
         sample_of(g, to.row) == sample_of(g, to.row + rows - 1);  // rows ascend
}

// fn(i, j, sum) for each of R rows and P panels.
template <int R, int P, typename Fn>
inline void for_each_sum(const Vector (&sum)[R][P][kVectors], const Fn& fn) {
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < P; ++j) {
      Lanes lanes;
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) lanes.v[v] = sum[i][j][v];
      fn(i, j, lanes);
    }
  }
}

// Sums in registers, through the epilogue, where the tile is regular.
template <typename A, int R, int P>
inline void finish(const Destination& to, const Vector (&sum)[R][P][kVectors]) {
  const Gemm& g = *to.gemm;
  const float* gates = gates_of(g, to.row);
  with_epilogue(g, [&]<Epilogue E>() {
    A* const kept = E == Epilogue::Residual ? kept_rows<A>(g, to.row) : nullptr;
    for_each_sum(sum, [&](int i, int j, const Lanes& v) {
      put<E, A>(g, to.row + i, gates, kept, to.panels[j], kPanel, v);
    });
  });
}

// Brings the lines of a row's sums into the first-level cache while they are computed: a tile that has to
// wait for them at its end loses 4 %. A row at a time, else the weights would have to wait. Always inline:
// GCC 12 takes a function that only prefetches for one without effect, and leaves out its calls.
template <typename A, int P, bool kNarrow>
[[gnu::always_inline]] inline void call_for(const Destination& to, int row) {
  const Gemm& g = *to.gemm;
  const int64_t size = g.epilogue == Epilogue::Residual ? sizeof(float) : sizeof(A);
  const auto* out = static_cast<const char*>(g.out) + out_row(g, to.row + row) * g.ldo * size;
  if constexpr (kNarrow) {
    for (int j = 0; j < P; ++j) _mm_prefetch(out + to.panels[j].column * size, _MM_HINT_T0);
  } else {
    out += to.panels[0].column * size;
    for (int64_t byte = 0; byte < P * kPanel * size; byte += 64) _mm_prefetch(out + byte, _MM_HINT_T0);
  }
}

template <int kStep, typename W>
[[gnu::always_inline]] inline void fetch(const Ahead<W>& ahead, int64_t at) {
  for (int j = 0; j < ahead.count; ++j) {
    const auto* step = reinterpret_cast<const char*>(ahead.panels[j] + at);
    _mm_prefetch(step, _MM_HINT_T1);
    if constexpr (sizeof(W) * kStep > 64) _mm_prefetch(step + 64, _MM_HINT_T1);
  }
}

// R rows and P panels of a product.
template <typename A, typename W, int R, int P, bool kNarrow>
void tile(const Destination& to, const Product<A, W>& in) {
  // Elements of a panel: of a pair of inputs, and of a step, which takes kInputs inputs.
  constexpr int kPair = 2 * (kNarrow ? kNarrowPanel : kPanel), kStep = kNarrow ? 64 / sizeof(W) : kPair,
                kInputs = 2 * kStep / kPair;
  Vector sum[R][P][kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < P; ++j) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        if (!in.bias) {
          sum[i][j][v] = zero_vector();
        } else if constexpr (kNarrow) {
          sum[i][j][v] = in_first_of_two(in.bias[j]);
        } else {
          sum[i][j][v] = load_vector(in.bias[j] + v * kLanesOfVector);
        }
      }
    }
  }
  Rows<A> a(in.a, in.lda);
  const W* w[P];
#pragma GCC unroll 8
  for (int j = 0; j < P; ++j) w[j] = in.panels[j];
  int called = to.gemm ? 0 : R;                             // rows of the output whose lines are called for
  int wait = in.ahead.count == 0 ? 0 : in.ahead.first + 1;  // steps until the next is fetched (0: none)
  for (int s = 0; s < in.num_segments; ++s) {
    const int64_t first = int64_t{in.segments[s]} * kPair;
    while (s + 1 < in.num_segments && in.segments[s + 1] == in.segments[s] + in.segment_pairs) ++s;
    const int64_t end = (int64_t{in.segments[s]} + in.segment_pairs) * kPair;
    for (int64_t at = first; at < end; at += kStep, a.advance(kInputs)) {
      if (called < R) call_for<A, P, kNarrow>(to, called++);
      if (--wait == 0) {
        fetch<kStep>(in.ahead, at);
        wait = in.ahead.every;
      }
      Step<A, W, kNarrow>::template run<R, P>(sum, a, w, at);
    }
  }
  if constexpr (kNarrow) {
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
#pragma GCC unroll 8
      for (int j = 0; j < P; ++j) sum[i][j][0] = sum_of_two(sum[i][j][0]);
    }
  } else {
    if (to.gemm && is_regular(to, R, P)) return finish<A>(to, sum);
  }
  for_each_sum(sum,
               [&](int i, int j, const Lanes& v) { store_lanes(to.sums + i * to.stride + j * kPanel, v); });
  if (to.gemm) finish_apart<A>(to, R, P);
}

// Products of up to kRows rows and kMaxPanels panels.
template <typename A, typename W>
struct Multiplier {
  static constexpr int kRows = kTileRows;

  void run(int rows, int count, const Destination& to, const Product<A, W>& in) {
    if constexpr (kTakesNarrow<A, W>) {
      if (in.narrow) return run_tile<true>(rows, count, to, in);
    }
    run_tile<false>(rows, count, to, in);
  }

 private:
  template <bool kNarrow>
  static void run_tile(int rows, int count, const Destination& to, const Product<A, W>& in) {
#define DYDIT_ROW(R)                                                                                       \
  {                                                                                                        \
    tile<A, W, R, 1, kNarrow>, tile<A, W, R, (kMaxPanels < 2 ? 1 : 2), kNarrow>,                           \
        tile<A, W, R, (kMaxPanels < 3 ? 1 : 3), kNarrow>, tile<A, W, R, (kMaxPanels < 4 ? 1 : 4), kNarrow> \
  }
    static constexpr decltype(&tile<A, W, 1, 1, kNarrow>) kTiles[kTileRows][kTilePanels] = {
        DYDIT_ROW(1), DYDIT_ROW(2), DYDIT_ROW(3), DYDIT_ROW(4), DYDIT_ROW(5), DYDIT_ROW(6)};
#undef DYDIT_ROW
    kTiles[rows - 1][count - 1](to, in);
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

  void run(int rows, int count, const Destination& to, const Product<Bf16, Bf16>& in) {
    const bool two = rows > kTilePairs;
    shape(two ? (rows + 1) / 2 : rows, in.segment_pairs % kTilePairs);
    const int second = rows - height_;
    for (int j = 0; j < count; j += 2) {
      if (two) {
        j + 1 < count ? sums<2, 2>(j, second, to, in) : sums<2, 1>(j, second, to, in);
      } else {
        j + 1 < count ? sums<1, 2>(j, 0, to, in) : sums<1, 1>(j, 0, to, in);
      }
    }
    if (to.gemm) finish_apart<Bf16>(to, rows, count);
  }

 private:
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

  // The sums of H blocks of rows, the second from row `second` on, times P panels from `panel` on.
  template <int H, int P>
  static void sums(int panel, int second, const Destination& to, const Product<Bf16, Bf16>& in) {
    const Bf16* a = in.a;
    const Bf16* const* panels = in.panels + panel;
    const float* const* bias = in.bias ? in.bias + panel : nullptr;
    start<0, 0, H, P>(bias);
    start<0, 1, H, P>(bias);
    start<1, 0, H, P>(bias);
    start<1, 1, H, P>(bias);
    const int64_t row_bytes = in.lda * 2, block = second * in.lda;
    for (int s = 0; s < in.num_segments; ++s) {
      const int64_t first = int64_t{in.segments[s]} * kPairElements;
      int pair = 0;
      for (; pair + kTilePairs <= in.segment_pairs; pair += kTilePairs, a += 2 * kTilePairs)
        step<kA, kB, H, P>(a, row_bytes, block, panels, first + pair * kPairElements);
      if (pair < in.segment_pairs) {
        step<kLastA, kLastB, H, P>(a, row_bytes, block, panels, first + pair * kPairElements);
        a += 2 * (in.segment_pairs - pair);
      }
    }
    float* out = to.sums + panel * kPanel;
    keep<0, 0, H, P>(out, to.stride, second);
    keep<0, 1, H, P>(out, to.stride, second);
    keep<1, 0, H, P>(out, to.stride, second);
    keep<1, 1, H, P>(out, to.stride, second);
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
  static void step(const Bf16* a, int64_t row_bytes, int64_t block, const Bf16* const* panels, int64_t at) {
    load_tile<A>(a, row_bytes);
    load_tile<B>(panels[0] + at, 64);
    multiply_tiles<0, A, B>();
    if constexpr (P == 2 && H == 1) {
      load_tile<B>(panels[1] + at, 64);
      multiply_tiles<1, A, B>();
    }
    if constexpr (H == 2) {
      load_tile<A>(a + block, row_bytes);
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
  static void keep(float* out, int64_t out_stride, int second) {
    if constexpr (I < H && J < P)
      store_tile<I * P + J>(out + I * second * out_stride + J * kPanel, out_stride * 4);
  }

  int height_ = 0, last_pairs_ = 0;
};
#endif

}  // namespace
}  // namespace dydit::cpu::DYDIT_LEVEL
