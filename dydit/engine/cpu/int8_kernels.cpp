// Compiled once a level with DYDIT_LEVEL (avx_vnni, avx512_vnni, avx512_bf16_vnni) and that level's flags;
// nothing inline from the standard library (kernels.cpp says why).
#include "dydit/engine/cpu/int8.h"
#include "dydit/engine/cpu/multiplier.h"

namespace dydit::cpu::DYDIT_LEVEL {
namespace {

constexpr int kQuadBytes = kPanel * kQuad;  // of a panel

#ifdef __AVX512VNNI__
using Integers = __m512i;
inline Integers load_integers(const void* p) { return _mm512_loadu_si512(p); }
inline Integers broadcast_integer(int value) { return _mm512_set1_epi32(value); }
inline void multiply_quads(Integers& sum, Integers bytes, Integers weights) {
  // Not _mm512_dpbusd_epi32: GCC 12 copies and stores every sum at every step of a loop then.
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(bytes), "v"(weights));
}
inline Vector to_floats(Integers v) { return _mm512_cvtepi32_ps(v); }
inline Integers rounded(Vector v) { return _mm512_cvtps_epi32(v); }
inline Integers add(Integers a, Integers b) { return _mm512_add_epi32(a, b); }
inline Integers magnitude_bits(Vector v) {
  return _mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(0x7fffffff));
}
inline Integers larger(Integers a, Integers b) { return _mm512_max_epu32(a, b); }
#else
using Integers = __m256i;
inline Integers load_integers(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline Integers broadcast_integer(int value) { return _mm256_set1_epi32(value); }
inline void multiply_quads(Integers& sum, Integers bytes, Integers weights) {
  asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(bytes), "x"(weights));
}
inline Vector to_floats(Integers v) { return _mm256_cvtepi32_ps(v); }
inline Integers rounded(Vector v) { return _mm256_cvtps_epi32(v); }
inline Integers add(Integers a, Integers b) { return _mm256_add_epi32(a, b); }
inline Integers magnitude_bits(Vector v) {
  return _mm256_and_si256(_mm256_castps_si256(v), _mm256_set1_epi32(0x7fffffff));
}
inline Integers larger(Integers a, Integers b) { return _mm256_max_epu32(a, b); }
#endif

// One quad of R rows times P panels.
template <int R, int P>
inline void multiply_step(Integers (&sum)[R][P][kVectors], const Rows<uint8_t>& a,
                          const int8_t* const (&w)[P], int64_t at) {
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) {
    Integers weights[P];
#pragma GCC unroll 8
    for (int j = 0; j < P; ++j) weights[j] = load_integers(w[j] + at + v * kLanesOfVector * kQuad);
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
      int quad;
      __builtin_memcpy(&quad, a.row(i), sizeof quad);
      const Integers bytes = broadcast_integer(quad);
#pragma GCC unroll 8
      for (int j = 0; j < P; ++j) multiply_quads(sum[i][j][v], bytes, weights[j]);
    }
  }
}

// R rows and P panels: `sums` <- bias + the segments' sums, each scaled by its row's and its column's scale.
template <int R, int P>
void tile8(float* sums, const Gemm& g, int row, const Panel* panels) {
  Rows<uint8_t> a(static_cast<const uint8_t*>(g.a) + row * g.lda, g.lda);
  const float* row_scales = g.scales + row * g.scale_stride;
  const int64_t segment_bytes = int64_t{g.segment_pairs} * kQuadBytes;
  const int8_t* w[P];
#pragma GCC unroll 8
  for (int j = 0; j < P; ++j) w[j] = static_cast<const int8_t*>(panels[j].weights);
  for (int s = 0; s < g.num_segments; ++s) {
    const int64_t number = g.segments[s] / g.segment_pairs, first = number * segment_bytes;
    Integers sum[R][P][kVectors];
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
#pragma GCC unroll 8
      for (int j = 0; j < P; ++j) {
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v)
          sum[i][j][v] = load_integers(panels[j].offsets + number * kPanel + v * kLanesOfVector);
      }
    }
    for (int64_t at = first; at < first + segment_bytes; at += kQuadBytes, a.advance(kQuad))
      multiply_step<R, P>(sum, a, w, at);
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
      const Vector row_scale = broadcast(row_scales[i * g.scale_stride + s]);
#pragma GCC unroll 8
      for (int j = 0; j < P; ++j) {
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) {
          const int lane = v * kLanesOfVector;
          float* to = sums + i * kTileColumns + j * kPanel + lane;
          const Vector before = load_vector(s == 0 ? panels[j].bias + lane : to),
                       scales = load_vector(panels[j].scales + number * kPanel + lane);
          store_vector(to, multiply_add(to_floats(sum[i][j][v]) * scales, row_scale, before));
        }
      }
    }
  }
}

using Tile8 = void (*)(float*, const Gemm&, int, const Panel*);
#define DYDIT_ROW(R)                                                                     \
  {                                                                                      \
    tile8<R, 1>, tile8<R, (kMaxPanels < 2 ? 1 : 2)>, tile8<R, (kMaxPanels < 3 ? 1 : 3)>, \
        tile8<R, (kMaxPanels < 4 ? 1 : 4)>                                               \
  }
constexpr Tile8 kTiles8[kTileRows][kTilePanels] = {DYDIT_ROW(1), DYDIT_ROW(2), DYDIT_ROW(3),
                                                   DYDIT_ROW(4), DYDIT_ROW(5), DYDIT_ROW(6)};
#undef DYDIT_ROW

// A: type of the epilogue's output and of features that are kept.
template <typename A>
void gemm8(const Gemm& g) {
  alignas(64) float sums[kTileRows * kTileColumns];
  for (int panel = 0; panel < g.num_panels; panel += kMaxPanels) {
    const int count = g.num_panels - panel < kMaxPanels ? g.num_panels - panel : kMaxPanels;
    for (int row = g.row_begin; row < g.row_end; row += kTileRows) {
      const int rows = g.row_end - row < kTileRows ? g.row_end - row : kTileRows;
      kTiles8[rows - 1][count - 1](sums, g, row, g.panels + panel);
      finish_apart<A>({sums, kTileColumns, &g, g.panels + panel, row}, rows, count);
    }
  }
}

inline void store_bytes(uint8_t* to, const Integers (&v)[kVectors], int count) {
#ifdef __AVX512VNNI__
  _mm_mask_storeu_epi8(to, first_lanes(count), _mm512_cvtepi32_epi8(v[0]));
#else
  alignas(32) int values[kPanel];
  for (int i = 0; i < kVectors; ++i) _mm256_store_si256(reinterpret_cast<__m256i*>(values) + i, v[i]);
  for (int i = 0; i < count; ++i) to[i] = static_cast<uint8_t>(values[i]);
#endif
}

template <typename T>
void quantize(const Quantize& q) {
  constexpr uint32_t kMost = 127;
  const int bytes = (q.size + kQuad - 1) / kQuad * kQuad;
  for (int row = 0; row < q.rows; ++row) {
    const T* x = static_cast<const T*>(q.x) + row * q.ldx;
    const auto values = [&](int i) {
      const Lanes v = load_lanes(x + i, q.size - i);
      return q.factors ? v * load_lanes(q.factors + i, q.size - i) : v;
    };
    // As integers, magnitudes have the order of the numbers, and NaN lies above all of them: it is not lost.
    Integers most[kVectors] = {};
    for (int i = 0; i < q.size; i += kPanel) {
      const Lanes v = values(i);
      for (int j = 0; j < kVectors; ++j) most[j] = larger(most[j], magnitude_bits(v.v[j]));
    }
    uint32_t lanes[kPanel], largest = 0;
    __builtin_memcpy(lanes, most, sizeof lanes);
    for (const uint32_t lane : lanes) largest = lane > largest ? lane : largest;
    const float magnitude = __builtin_bit_cast(float, largest);
    q.scales[row * q.scale_stride] = magnitude / kMost;
    const float inverse = magnitude == 0 ? 0 : kMost / magnitude;
    uint8_t* to = q.bytes + row * q.ldb;
    for (int i = 0; i < bytes; i += kPanel) {
      const Lanes v = times(values(i), inverse);
      Integers integers[kVectors];
      for (int j = 0; j < kVectors; ++j) integers[j] = add(rounded(v.v[j]), broadcast_integer(kInt8Zero));
      store_bytes(to + i, integers, bytes - i < kPanel ? bytes - i : kPanel);
    }
  }
}

// As kernels.cpp's peak(): operands that stay in the first-level cache.
int64_t peak8(int64_t rounds, float* sink) {
  constexpr int kQuads = 64;
  alignas(64) static const uint8_t zeros[kMaxPanels * kQuads * kQuadBytes + kTileRows * kQuads * kQuad] = {};
  alignas(64) static const float floats[kPanel] = {};
  alignas(64) static const int32_t offsets[kPanel] = {};
  const uint8_t* a = zeros;
  alignas(64) float out[kTileRows * kTileColumns];
  const int all = 0;
  for (int64_t r = 0; r < rounds; ++r) {
    asm volatile("" : "+r"(a) : "r"(out) : "memory");
    Panel panels[kMaxPanels];
    for (int j = 0; j < kMaxPanels; ++j)
      panels[j] = {a + j * kQuads * kQuadBytes, floats, 0, kPanel, floats, offsets};
    Gemm g;
    g.a = a + kMaxPanels * kQuads * kQuadBytes;
    g.lda = kQuads * kQuad;
    g.segments = &all;
    g.num_segments = 1;
    g.segment_pairs = kQuads;
    g.scales = floats;
    g.scale_stride = 1;
    kTiles8[kTileRows - 1][kMaxPanels - 1](out, g, 0, panels);
    *sink += out[r % kPanel];
  }
  return rounds * kTileRows * kMaxPanels * kPanel * kQuads * kQuad;
}

}  // namespace

extern const Int8Kernels int8_kernels = {gemm8<float>, DYDIT_DOTS(gemm8<Bf16>), quantize<float>,
                                         DYDIT_DOTS(quantize<Bf16>), peak8};

}  // namespace dydit::cpu::DYDIT_LEVEL
