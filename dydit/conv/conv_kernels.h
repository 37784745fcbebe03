// Kernels around the products of a convolution: what goes into them and what is made of them. Compiled once
// an instruction level and chosen at run time, as those of the CPU engine, which multiply.
//
// A convolution is cut into tiles of its output, and a tile's inputs are turned into rows of one or several
// products with rows of the weights: `Direct`, one pixel, its receptive field against the weights; `Winograd`
// (Lavin and Gray 2015, F(2x2, 3x3)), 2x2 pixels, 16 products in place of 36; `Upsample`, nearest x2 and then
// 3x3, 2x2 pixels from 3x3 of the small map, 9 products in place of 36.
#pragma once

#include <cstdint>

#include "dydit/base/bf16.h"

namespace dydit::conv {

enum class Activation { None, Silu, Relu, Relu6 };  // Silu: before a convolution only
inline constexpr float kRelu6Ceiling = 6;
enum class Tiling { Direct, Winograd, Upsample };
inline constexpr int kTilings = 3;

/// Static: see dydit/engine/cpu/kernels.cpp on inline functions.
static constexpr int products_of(Tiling tiling) {
  return tiling == Tiling::Winograd ? 16 : tiling == Tiling::Upsample ? 9 : 1;
}
/// Pixels of the output to each side of a tile.
static constexpr int side_of(Tiling tiling) { return tiling == Tiling::Direct ? 1 : 2; }

/// to (pixels, C) <- activation(from scale + shift), scale and shift (C); scale null: activation(from).
struct Preparation {
  void* to;
  const void* from;
  int64_t from_stride;  // elements from pixel to pixel
  int pixels, C;
  const float *scale, *shift;
  Activation activation;
};

/// What becomes of the sums of a block of tiles, row-major: out <- v + bias [+ out] [, no less than 0 and no
/// more than `ceiling`].
struct Finish {
  const float* sums;  // (products, tiles, columns)
  int64_t product_stride, columns;
  int tiles_y, tiles_x;
  void* out;                         // the block's first pixel
  int64_t row_stride, pixel_stride;  // elements
  int rows, cols;                    // pixels of the block that there are
  int C;
  const float* bias;  // (columns)
  bool add;           // to what is there
  bool relu;
  float ceiling;
  // Of each channel (columns): its value at the block's first pixel, and sum and sum of squares of what
  // the pixels lie above it. Null: not wanted.
  float *first, *sum, *squares;
};

/// Output pixels of a depthwise convolution, from the taps that lie inside the map, each
/// to (C) <- min(max(bias + sum of weights * from, 0), ceiling).
struct Depthwise {
  float* to;
  const float* from;           // the first tap of the first pixel
  int64_t row, pixel;          // elements from tap to tap, down and across
  int rows, columns, C;        // taps
  const float* weights;        // of the first tap
  int64_t weight_row, weight;  // elements likewise
  const float* bias;
  float ceiling;
  int pixels;                    // side by side, all with these taps
  int64_t to_pixel, from_pixel;  // elements from one to the next
};

/// to (C) <- the largest of the taps that lie inside the map, or their mean.
struct Pooling {
  float* to;
  const float* from;
  int64_t row, pixel;
  int rows, columns, C;
  bool largest;
};

/// Indices of types: 0 float, 1 bfloat16.
struct Kernels {
  void (*prepare[2][2])(const Preparation&);  // from, to
  // The inputs of one tile, from a patch's rows `row` elements apart: product p of C values, padded with zero
  // to a whole pair, at to + p stride.
  void (*winograd)(float* to, int64_t stride, const float* patch, int64_t row, int C);
  void (*upsample[2])(void* to, int64_t stride, const void* patch, int64_t row, int C);
  void (*finish[kTilings][2])(const Finish&);  // the sums' tiling, out
  // row (N) <- exp(scale (row - its largest)); returns 1 / the sum.
  float (*exponentials)(float* row, int N, float scale);
  void (*scale_row)(float* row, int C, float factor);
  void (*depthwise)(const Depthwise&);
  void (*pool)(const Pooling&);
};

/// The kernels for the instruction level in force (dydit/base/isa.h).
const Kernels& kernels();

}  // namespace dydit::conv
