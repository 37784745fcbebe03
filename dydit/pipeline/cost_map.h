// Where the computation went over an image: each token's share of MLP entries, drawn as a colour.
#pragma once

#include <array>
#include <span>

#include <ATen/core/Tensor.h>

#include "dydit/io/image.h"

namespace dydit {

/// Images are enlarged by a whole number until their side has this many pixels.
inline constexpr int kMinMapSide = 64;

struct ShareRange {
  float min = 0;
  float max = 0;
};

/// Over all `shares`, each (N) float32; at least one.
ShareRange share_range(std::span<const at::Tensor> shares);

/// RGB of a position in [0, 1]: from dark blue through red to pale yellow, lighter all the way.
std::array<uint8_t, 3> ramp_colour(float position);

/// share (N) float32, row-major over a square grid of tokens -> the grid as side x side pixels, RGB.
/// range.min takes the ramp's start, range.max its end; when they are equal, all takes the start. `side` is a
/// multiple of the grid's.
Image heat_map(const at::Tensor& share, const ShareRange& range, int side);

/// A grid of `columns` cells, in order: each of `images` (side x side, gray or RGB), enlarged, and beside it
/// the heat map of its share in the same size. No images: the heat maps alone.
Image draw_cost_map(std::span<const Image> images, std::span<const at::Tensor> shares,
                    const ShareRange& range, int side, int columns);

}  // namespace dydit
