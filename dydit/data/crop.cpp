// PIL's resampling (Resample.c): each output pixel is a weighted sum over the inputs that its filter covers,
// first along rows, then along columns, in 8-bit steps with weights of 22 bits.
#include "dydit/data/crop.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <utility>
#include <vector>

namespace dydit {
namespace {

constexpr int kWeightBits = 32 - 8 - 2;
constexpr double kBicubicA = -0.5;

double filter_support(Filter filter) { return filter == Filter::Box ? 0.5 : 2.0; }

double filter_value(Filter filter, double x) {
  if (filter == Filter::Box) return x > -0.5 && x <= 0.5 ? 1.0 : 0.0;
  constexpr double a = kBicubicA;
  x = std::abs(x);
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
  if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
  return 0.0;
}

// The inputs [first, first + weights.size()) of one output position.
struct Taps {
  int first;
  std::vector<int> weights;
};

// Of the output positions [start, start + count) when `in` pixels become `out`.
std::vector<Taps> make_taps(int in, int out, Filter filter, int start, int count) {
  std::vector<Taps> taps;
  for (const FilterTaps& exact : filter_taps(in, out, filter, start, count)) {
    Taps& tap = taps.emplace_back(Taps{exact.first, {}});
    for (const double weight : exact.weights)
      tap.weights.push_back(static_cast<int>((weight < 0 ? -0.5 : 0.5) + weight * (1 << kWeightBits)));
  }
  return taps;
}

uint8_t round_to_byte(int sum) { return static_cast<uint8_t>(std::clamp(sum >> kWeightBits, 0, 255)); }

// Rows [first, first + rows) of the image, its columns resampled by `taps`.
Image resample_rows(const Image& image, const std::vector<Taps>& taps, int first, int rows) {
  const auto channels = static_cast<size_t>(image.channels);
  const size_t in_row = static_cast<size_t>(image.width) * channels;
  Image out{rows, static_cast<int>(taps.size()), image.channels, {}};
  out.pixels.resize(static_cast<size_t>(rows) * taps.size() * channels);
  uint8_t* to = out.pixels.data();
  for (int y = first; y < first + rows; ++y) {
    for (const Taps& tap : taps) {
      const uint8_t* from =
          image.pixels.data() + static_cast<size_t>(y) * in_row + static_cast<size_t>(tap.first) * channels;
      for (size_t c = 0; c < channels; ++c) {
        int sum = 1 << (kWeightBits - 1);
        for (size_t i = 0; i < tap.weights.size(); ++i) sum += from[i * channels + c] * tap.weights[i];
        *to++ = round_to_byte(sum);
      }
    }
  }
  return out;
}

// All columns; row r of the result comes from the rows taps[r] less `first`.
Image resample_columns(const Image& image, const std::vector<Taps>& taps, int first) {
  const size_t row = static_cast<size_t>(image.width) * static_cast<size_t>(image.channels);
  Image out{static_cast<int>(taps.size()), image.width, image.channels, {}};
  out.pixels.resize(taps.size() * row);
  std::vector<int> sums(row);
  uint8_t* to = out.pixels.data();
  for (const Taps& tap : taps) {
    std::fill(sums.begin(), sums.end(), 1 << (kWeightBits - 1));
    const uint8_t* from = image.pixels.data() + static_cast<size_t>(tap.first - first) * row;
    for (const int weight : tap.weights) {
      for (size_t i = 0; i < row; ++i) sums[i] += from[i] * weight;
      from += row;
    }
    for (const int sum : sums) *to++ = round_to_byte(sum);
  }
  return out;
}

Image cut(const Image& image, const Window& window) {
  const auto channels = static_cast<size_t>(image.channels);
  const size_t row = static_cast<size_t>(window.width) * channels;
  Image out{window.height, window.width, image.channels, {}};
  out.pixels.reserve(static_cast<size_t>(window.height) * row);
  for (int y = window.y; y < window.y + window.height; ++y) {
    const size_t at =
        (static_cast<size_t>(y) * static_cast<size_t>(image.width) + static_cast<size_t>(window.x)) *
        channels;
    out.pixels.insert(out.pixels.end(), &image.pixels[at], &image.pixels[at] + row);
  }
  return out;
}

}  // namespace

std::vector<FilterTaps> filter_taps(int in, int out, Filter filter, int start, int count) {
  const double scale = static_cast<double>(in) / out;
  const double stretch = std::max(scale, 1.0);  // antialias: a wider filter when it shrinks
  const double support = filter_support(filter) * stretch;
  std::vector<FilterTaps> taps;
  for (int position = start; position < start + count; ++position) {
    const double center = (position + 0.5) * scale;
    const int first = std::max(0, static_cast<int>(center - support + 0.5));
    const int last = std::min(in, static_cast<int>(center + support + 0.5));
    FilterTaps& tap = taps.emplace_back(FilterTaps{first, {}});
    double sum = 0;
    for (int x = first; x < last; ++x) {
      tap.weights.push_back(filter_value(filter, (x - center + 0.5) * (1.0 / stretch)));
      sum += tap.weights.back();
    }
    if (sum != 0.0)
      for (double& weight : tap.weights) weight /= sum;
  }
  return taps;
}

Image resize(const Image& image, int width, int height, Filter filter, const Window& window) {
  // A direction that keeps its size is only cut.
  if (width == image.width && height == image.height) return cut(image, window);
  if (height == image.height) {
    return resample_rows(image, make_taps(image.width, width, filter, window.x, window.width), window.y,
                         window.height);
  }
  const std::vector<Taps> down = make_taps(image.height, height, filter, window.y, window.height);
  const int first = down.front().first;
  const int rows = down.back().first + static_cast<int>(down.back().weights.size()) - first;
  if (width == image.width) {
    return resample_columns(cut(image, {window.x, first, window.width, rows}), down, first);
  }
  const std::vector<Taps> across = make_taps(image.width, width, filter, window.x, window.width);
  return resample_columns(resample_rows(image, across, first, rows), down, first);
}

Image halve(Image image, int side) {
  while (std::min(image.width, image.height) >= 2 * side) {
    const int width = image.width / 2, height = image.height / 2;
    image = resize(image, width, height, Filter::Box, {0, 0, width, height});
  }
  return image;
}

Image center_crop(Image image, int side) {
  image = halve(std::move(image), side);
  // std::nearbyint rounds halves to even, as Python's round does.
  const double scale = static_cast<double>(side) / std::min(image.width, image.height);
  const int width = static_cast<int>(std::nearbyint(image.width * scale));
  const int height = static_cast<int>(std::nearbyint(image.height * scale));
  return resize(image, width, height, Filter::Bicubic, {(width - side) / 2, (height - side) / 2, side, side});
}

}  // namespace dydit
