// ADM's centre crop, in PIL's integers: the same bytes as guided-diffusion's center_crop_arr.
#pragma once

#include <vector>

#include "dydit/io/image.h"

namespace dydit {

enum class Filter { Box, Bicubic };

/// A rectangle of the resized image.
struct Window {
  int x = 0, y = 0, width = 0, height = 0;
};

/// The inputs [first, first + weights.size()) of one output position, and their shares.
struct FilterTaps {
  int first;
  std::vector<double> weights;
};
/// Of the output positions [start, start + count) when `in` pixels become `out`, as PIL computes them.
std::vector<FilterTaps> filter_taps(int in, int out, Filter filter, int start, int count);

/// Image.resize((width, height), filter), of which only `window` is computed.
Image resize(const Image& image, int width, int height, Filter filter, const Window& window);

/// Halves by box filter while the short side is at least 2 * side: the first half of center_crop.
Image halve(Image image, int side);

/// Halves by box filter while the short side is at least 2 * side, scales it to `side` by bicubic, cuts the
/// centre.
Image center_crop(Image image, int side);

}  // namespace dydit
