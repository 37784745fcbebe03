// Nearest-neighbour enlargement throughout: a token's block keeps sharp edges.
#include "dydit/pipeline/cost_map.h"

#include <algorithm>
#include <cassert>
#include <cmath>

#include <ATen/ops/cat.h>

namespace dydit {
namespace {

constexpr int kGap = 2;  // black pixels between an image and its map, as in the grid

// At equal distances along the ramp; relative luminance rises from each to the next.
constexpr std::array<std::array<uint8_t, 3>, 5> kRampColours = {
    {{8, 8, 60}, {100, 20, 120}, {200, 60, 80}, {250, 150, 50}, {252, 250, 190}}};

// Each pixel `factor` times in both directions; gray becomes RGB.
Image enlarge(const Image& image, int factor) {
  Image out{image.height * factor, image.width * factor, 3, {}};
  out.pixels.reserve(static_cast<size_t>(out.height) * out.width * 3);
  for (int y = 0; y < out.height; ++y) {
    for (int x = 0; x < out.width; ++x) {
      const uint8_t* pixel =
          image.pixels.data() + (static_cast<size_t>(y / factor) * image.width + x / factor) * image.channels;
      for (int c = 0; c < 3; ++c) out.pixels.push_back(pixel[image.channels == 3 ? c : 0]);
    }
  }
  return out;
}

// left | gap | right, of one height.
Image place_beside(const Image& left, const Image& right) {
  Image out{left.height, left.width + kGap + right.width, 3, {}};
  for (int y = 0; y < out.height; ++y) {
    const auto append = [&](const Image& image) {
      const auto row = image.pixels.begin() + static_cast<ptrdiff_t>(y) * image.width * 3;
      out.pixels.insert(out.pixels.end(), row, row + static_cast<ptrdiff_t>(image.width) * 3);
    };
    append(left);
    out.pixels.insert(out.pixels.end(), kGap * 3, 0);
    append(right);
  }
  return out;
}

}  // namespace

ShareRange share_range(std::span<const at::Tensor> shares) {
  const at::Tensor all = at::cat({shares.data(), shares.size()});
  return {all.min().item<float>(), all.max().item<float>()};
}

std::array<uint8_t, 3> ramp_colour(float position) {
  const float scaled = std::clamp(position, 0.0f, 1.0f) * (kRampColours.size() - 1);
  const size_t below = std::min(static_cast<size_t>(scaled), kRampColours.size() - 2);
  const float weight = scaled - static_cast<float>(below);
  std::array<uint8_t, 3> colour;
  for (int c = 0; c < 3; ++c) {
    const float from = kRampColours[below][c], to = kRampColours[below + 1][c];
    colour[c] = static_cast<uint8_t>(std::lround(from + weight * (to - from)));
  }
  return colour;
}

Image heat_map(const at::Tensor& share, const ShareRange& range, int side) {
  const int tokens = static_cast<int>(share.numel());
  const int grid = static_cast<int>(std::lround(std::sqrt(tokens)));
  assert(grid * grid == tokens && side % grid == 0 && share.is_contiguous());
  const float* values = share.data_ptr<float>();
  Image small{grid, grid, 3, {}};
  for (int i = 0; i < tokens; ++i) {
    const float position = range.max > range.min ? (values[i] - range.min) / (range.max - range.min) : 0.0f;
    for (const uint8_t value : ramp_colour(position)) small.pixels.push_back(value);
  }
  return enlarge(small, side / grid);
}

Image draw_cost_map(std::span<const Image> images, std::span<const at::Tensor> shares,
                    const ShareRange& range, int side, int columns) {
  assert(images.empty() || images.size() == shares.size());
  const int factor = (kMinMapSide + side - 1) / side;
  std::vector<Image> cells;
  for (size_t i = 0; i < shares.size(); ++i) {
    Image map = heat_map(shares[i], range, side * factor);
    cells.push_back(images.empty() ? std::move(map) : place_beside(enlarge(images[i], factor), map));
  }
  return cells.size() == 1 ? cells[0] : make_grid(cells, columns);
}

}  // namespace dydit
