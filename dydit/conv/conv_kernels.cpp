// Compiled once a level with DYDIT_LEVEL and that level's flags; see dydit/engine/cpu/kernels.cpp.
#include "dydit/conv/conv_kernels.h"

#include "dydit/engine/cpu/vectors.h"

namespace dydit::conv::DYDIT_LEVEL {
namespace {

using namespace dydit::cpu::DYDIT_LEVEL;  // vectors.h
using dydit::cpu::kPanel;

inline Lanes operator-(const Lanes& a, const Lanes& b) {
  return each(a, [&](Vector x, int v) { return x - b.v[v]; });
}

inline Lanes no_more_than(const Lanes& a, float limit) {
  return each(a, [&](Vector x, int) { return smallest(x, broadcast(limit)); });
}

// x sigmoid(x) = x / (1 + 2^(-x log2 e)), as exact as T. Below the limit the result is 0 to 1e-17.
template <typename T>
inline Lanes silu(const Lanes& a) {
  return each(a, [](Vector x, int) {
    const Vector below = 1.0f + exponential_of_2<T>(smallest(x * -kLog2E, broadcast(60.0f)));
    return x * (sizeof(T) == sizeof(Bf16) ? reciprocal_estimate(below) : reciprocal(below));
  });
}

template <Activation kActivation, bool kNorm, typename From, typename To>
void prepare_pixels(const Preparation& p) {
  const auto* from = static_cast<const From*>(p.from);
  auto* to = static_cast<To*>(p.to);
  for (int i = 0; i < p.pixels; ++i, from += p.from_stride, to += p.C) {
    for (int c = 0; c < p.C; c += kPanel) {
      Lanes v = load_lanes(from + c, p.C - c);
      if constexpr (kNorm) v = multiply_add(v, load_lanes(p.scale + c), load_lanes(p.shift + c));
      if constexpr (kActivation == Activation::Silu) v = silu<To>(v);
      if constexpr (kActivation == Activation::Relu) v = relu(v);
      if constexpr (kActivation == Activation::Relu6) v = no_more_than(relu(v), kRelu6Ceiling);
      store_lanes(to + c, v, p.C - c);
    }
  }
}

template <typename From, typename To>
void prepare(const Preparation& p) {
  const auto with = [&]<Activation kActivation>() {
    p.scale ? prepare_pixels<kActivation, true, From, To>(p)
            : prepare_pixels<kActivation, false, From, To>(p);
  };
  switch (p.activation) {
    case Activation::None:
      return with.template operator()<Activation::None>();
    case Activation::Silu:
      return with.template operator()<Activation::Silu>();
    case Activation::Relu:
      return with.template operator()<Activation::Relu>();
    case Activation::Relu6:
      return with.template operator()<Activation::Relu6>();
  }
}

// fn(c, columns to load, columns to store) over C channels and the zero that makes them whole pairs.
template <typename Fn>
inline void for_channels(int C, const Fn& fn) {
  int c = 0;
  for (; c + kPanel <= C; c += kPanel) fn(c, kPanel, kPanel);
  if (c < C) fn(c, C - c, C - c + (C - c) % 2);
}

// B^T d B, where B^T d of four values is (d0 - d2, d1 + d2, d2 - d1, d1 - d3).
void winograd(float* to, int64_t stride, const float* patch, int64_t row, int C) {
  for_channels(C, [&](int c, int loaded, int stored) {
    Lanes columns[4][4];
#pragma GCC unroll 4
    for (int x = 0; x < 4; ++x) {
      Lanes d[4];
#pragma GCC unroll 4
      for (int y = 0; y < 4; ++y) d[y] = load_lanes(patch + y * row + x * C + c, loaded);
      columns[0][x] = d[0] - d[2];
      columns[1][x] = d[1] + d[2];
      columns[2][x] = d[2] - d[1];
      columns[3][x] = d[1] - d[3];
    }
#pragma GCC unroll 4
    for (int y = 0; y < 4; ++y) {
      const Lanes* d = columns[y];
      float* out = to + 4 * y * stride + c;
      store_lanes(out, d[0] - d[2], stored);
      store_lanes(out + stride, d[1] + d[2], stored);
      store_lanes(out + 2 * stride, d[2] - d[1], stored);
      store_lanes(out + 3 * stride, d[1] - d[3], stored);
    }
  });
}

// In one dimension the two outputs at x are w0 x[-1] + (w1 + w2) x[0] and (w0 + w1) x[0] + w2 x[1]; with
// S = w0 + w1 + w2 they are w0 (x[-1] - x[0]) + S x[0] and S x[0] + w2 (x[1] - x[0]).
template <typename T>
void upsample(void* to, int64_t stride, const void* patch, int64_t row, int C) {
  for_channels(C, [&](int c, int loaded, int stored) {
    Lanes columns[3][3];
#pragma GCC unroll 3
    for (int x = 0; x < 3; ++x) {
      Lanes d[3];
#pragma GCC unroll 3
      for (int y = 0; y < 3; ++y)
        d[y] = load_lanes(static_cast<const T*>(patch) + y * row + x * C + c, loaded);
      columns[0][x] = d[0] - d[1];
      columns[1][x] = d[1];
      columns[2][x] = d[2] - d[1];
    }
#pragma GCC unroll 3
    for (int y = 0; y < 3; ++y) {
      const Lanes* d = columns[y];
      T* out = static_cast<T*>(to) + 3 * y * stride + c;
      store_lanes(out, d[0] - d[1], stored);
      store_lanes(out + stride, d[1], stored);
      store_lanes(out + 2 * stride, d[2] - d[1], stored);
    }
  });
}

// A tile's pixels from its products' sums. Winograd: A^T m A with A^T m = (m0 + m1 + m2, m1 - m2 - m3).
template <Tiling kTiling>
inline void pixels_of(Lanes (&out)[side_of(kTiling)][side_of(kTiling)], const float* sums, int64_t stride) {
  if constexpr (kTiling == Tiling::Direct) {
    out[0][0] = load_lanes(sums);
  } else {
    constexpr int kSums = kTiling == Tiling::Winograd ? 4 : 3;
    Lanes rows[2][kSums];
    const auto fold = [](Lanes& low, Lanes& high, const Lanes(&m)[kSums]) {
      if constexpr (kTiling == Tiling::Winograd) {
        low = m[0] + m[1] + m[2];
        high = m[1] - m[2] - m[3];
      } else {
        low = m[0] + m[1];
        high = m[1] + m[2];
      }
    };
#pragma GCC unroll 4
    for (int x = 0; x < kSums; ++x) {
      Lanes m[kSums];
#pragma GCC unroll 4
      for (int y = 0; y < kSums; ++y) m[y] = load_lanes(sums + (y * kSums + x) * stride);
      fold(rows[0][x], rows[1][x], m);
    }
    fold(out[0][0], out[0][1], rows[0]);
    fold(out[1][0], out[1][1], rows[1]);
  }
}

template <Tiling kTiling, bool kAdd, bool kRelu, bool kMoments, typename Out>
void finish_tiles(const Finish& f) {
  constexpr int kSide = side_of(kTiling);
  const float* sums = f.sums;
  for (int ty = 0; ty < f.tiles_y; ++ty) {
    const int rows = f.rows - ty * kSide < kSide ? 1 : kSide;
    for (int tx = 0; tx < f.tiles_x; ++tx, sums += f.columns) {
      const int cols = f.cols - tx * kSide < kSide ? 1 : kSide;
      Out* tile = static_cast<Out*>(f.out) + ty * kSide * f.row_stride + tx * kSide * f.pixel_stride;
      const bool starts = ty == 0 && tx == 0;
      for (int c = 0; c < f.C; c += kPanel) {
        const int count = f.C - c;
        Lanes v[kSide][kSide];
        pixels_of<kTiling>(v, sums + c, f.product_stride);
        const Lanes bias = load_lanes(f.bias + c);
#pragma GCC unroll 2
        for (int y = 0; y < kSide; ++y) {
#pragma GCC unroll 2
          for (int x = 0; x < kSide; ++x) {
            if (y >= rows || x >= cols) continue;
            Out* to = tile + y * f.row_stride + x * f.pixel_stride + c;
            v[y][x] = v[y][x] + bias;
            if constexpr (kAdd) v[y][x] = v[y][x] + load_lanes(to, count);
            if constexpr (kRelu) v[y][x] = no_more_than(relu(v[y][x]), f.ceiling);
            store_lanes(to, v[y][x], count);
          }
        }
        if constexpr (kMoments) {
          if (starts) store_lanes(f.first + c, v[0][0]);
          const Lanes first = load_lanes(f.first + c);
          Lanes sum = starts ? Lanes{} : load_lanes(f.sum + c);
          Lanes squares = starts ? Lanes{} : load_lanes(f.squares + c);
#pragma GCC unroll 2
          for (int y = 0; y < kSide; ++y) {
#pragma GCC unroll 2
            for (int x = 0; x < kSide; ++x) {
              if (y >= rows || x >= cols) continue;
              const Lanes above = v[y][x] - first;
              sum = sum + above;
              squares = multiply_add(above, above, squares);
            }
          }
          store_lanes(f.sum + c, sum);
          store_lanes(f.squares + c, squares);
        }
      }
    }
  }
}

template <Tiling kTiling, typename Out>
void finish(const Finish& f) {
  const auto with = [&]<bool kAdd, bool kRelu>() {
    f.sum ? finish_tiles<kTiling, kAdd, kRelu, true, Out>(f)
          : finish_tiles<kTiling, kAdd, kRelu, false, Out>(f);
  };
  if (f.add) {
    f.relu ? with.template operator()<true, true>() : with.template operator()<true, false>();
  } else {
    f.relu ? with.template operator()<false, true>() : with.template operator()<false, false>();
  }
}

float exponentials(float* row, int N, float scale) {
  Lanes most = load_lanes(row, N, row[0]);
  for (int i = kPanel; i < N; i += kPanel) most = largest(most, load_lanes(row + i, N - i, row[0]));
  const float factor = scale * kLog2E, offset = factor * largest_of(most);
  Lanes sum = {};
  for (int i = 0; i < N; i += kPanel) {
    // Beyond the last there is -1e30 for the sum's sake.
    const Lanes e = each(load_lanes(row + i, N - i, -1e30f),
                         [&](Vector x, int) { return exponential_of_2<float>(x * factor - offset); });
    sum = sum + e;
    store_lanes(row + i, e, N - i);
  }
  return 1.0f / sum_of(sum);
}

void scale_row(float* row, int C, float factor) {
  for (int c = 0; c < C; c += kPanel) store_lanes(row + c, times(load_lanes(row + c, C - c), factor), C - c);
}

// Pixels side by side from the p-th on, 16 channels: their sums do not wait for each other, and share the
// weights.
template <int kPixels, bool kWhole>
inline void depthwise_pixels(const Depthwise& d, int p, int c) {
  const int count = kWhole ? kPanel : d.C - c;
  const float* from = d.from + p * d.from_pixel + c;
  Lanes sums[kPixels];
#pragma GCC unroll 4
  for (int i = 0; i < kPixels; ++i) sums[i] = load_lanes(d.bias + c);
  for (int y = 0; y < d.rows; ++y) {
    for (int x = 0; x < d.columns; ++x) {
      const Lanes weights = load_lanes(d.weights + y * d.weight_row + x * d.weight + c);
      const float* tap = from + y * d.row + x * d.pixel;
#pragma GCC unroll 4
      for (int i = 0; i < kPixels; ++i)
        sums[i] = multiply_add(load_lanes(tap + i * d.from_pixel, count), weights, sums[i]);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < kPixels; ++i)
    store_lanes(d.to + (p + i) * d.to_pixel + c, no_more_than(relu(sums[i]), d.ceiling), count);
}

template <int kPixels>
inline void depthwise_channels(const Depthwise& d, int p) {
  int c = 0;
  for (; c + kPanel <= d.C; c += kPanel) depthwise_pixels<kPixels, true>(d, p, c);
  if (c < d.C) depthwise_pixels<kPixels, false>(d, p, c);
}

void depthwise(const Depthwise& d) {
  constexpr int kPixels = 4;
  int p = 0;
  for (; p + kPixels <= d.pixels; p += kPixels) depthwise_channels<kPixels>(d, p);
  for (; p < d.pixels; ++p) depthwise_channels<1>(d, p);
}

void pool(const Pooling& p) {
  const float share = 1.0f / static_cast<float>(p.rows * p.columns);
  for (int c = 0; c < p.C; c += kPanel) {
    const int count = p.C - c;
    Lanes all = load_lanes(p.from + c, count);
    for (int y = 0; y < p.rows; ++y) {
      const float* from = p.from + y * p.row + c;
      for (int x = y == 0; x < p.columns; ++x) {
        const Lanes tap = load_lanes(from + x * p.pixel, count);
        all = p.largest ? largest(all, tap) : all + tap;
      }
    }
    store_lanes(p.to + c, p.largest ? all : times(all, share), count);
  }
}

}  // namespace

extern const Kernels kernels = {
    {{prepare<float, float>, prepare<float, Bf16>}, {prepare<Bf16, float>, prepare<Bf16, Bf16>}},
    winograd,
    {upsample<float>, upsample<Bf16>},
    {{finish<Tiling::Direct, float>, finish<Tiling::Direct, Bf16>},
     {finish<Tiling::Winograd, float>, finish<Tiling::Winograd, Bf16>},
     {finish<Tiling::Upsample, float>, finish<Tiling::Upsample, Bf16>}},
    exponentials,
    scale_row,
    depthwise,
    pool};

}  // namespace dydit::conv::DYDIT_LEVEL
