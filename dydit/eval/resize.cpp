#include "dydit/eval/resize.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "dydit/data/crop.h"

namespace dydit {
namespace {

// Two inputs of one output position, and how far it lies from the first to the second.
struct Pair {
  int low, high;
  float share;
};

std::vector<Pair> tensorflow_pairs(int in, int out) {
  const float scale = static_cast<float>(in) / static_cast<float>(out);
  std::vector<Pair> pairs;
  for (int i = 0; i < out; ++i) {
    const float source = static_cast<float>(i) * scale;
    const int low = static_cast<int>(source);
    pairs.push_back({low, std::min(low + 1, in - 1), source - static_cast<float>(low)});
  }
  return pairs;
}

std::vector<Pair> torch_pairs(int in, int out) {
  const float scale = static_cast<float>(in) / static_cast<float>(out);
  std::vector<Pair> pairs;
  for (int i = 0; i < out; ++i) {
    const float source = std::max(0.0f, scale * (static_cast<float>(i) + 0.5f) - 0.5f);
    const int low = std::min(static_cast<int>(source), in - 1);
    pairs.push_back({low, std::min(low + 1, in - 1), source - static_cast<float>(low)});
  }
  return pairs;
}

void bilinear(const Image& image, const std::vector<Pair>& rows, const std::vector<Pair>& columns,
              float* out) {
  const auto pixel = [&](int y, int x, int c) {
    return static_cast<float>(image.pixels[(static_cast<size_t>(y) * image.width + x) * 3 + c]);
  };
  for (const Pair& y : rows) {
    for (const Pair& x : columns) {
      for (int c = 0; c < 3; ++c) {
        const float a = pixel(y.low, x.low, c), b = pixel(y.high, x.low, c);
        const float top = a + (pixel(y.low, x.high, c) - a) * x.share;
        const float bottom = b + (pixel(y.high, x.high, c) - b) * x.share;
        *out++ = top + (bottom - top) * y.share;
      }
    }
  }
}

// Rows first, float32 between the two, sums in float64, as Pillow does.
void bicubic(const Image& image, int side, float* out) {
  const size_t row = static_cast<size_t>(image.width) * 3, wide = static_cast<size_t>(side) * 3;
  std::vector<float> across(image.height * wide);
  const auto columns = filter_taps(image.width, side, Filter::Bicubic, 0, side);
  for (int y = 0; y < image.height; ++y) {
    float* to = &across[y * wide];
    for (const FilterTaps& tap : columns) {
      for (int c = 0; c < 3; ++c) {
        const uint8_t* from = &image.pixels[y * row + static_cast<size_t>(tap.first) * 3 + c];
        double sum = 0;
        for (size_t i = 0; i < tap.weights.size(); ++i) sum += from[3 * i] * tap.weights[i];
        *to++ = static_cast<float>(sum);
      }
    }
  }
  std::vector<double> sums(wide);
  for (const FilterTaps& tap : filter_taps(image.height, side, Filter::Bicubic, 0, side)) {
    std::fill(sums.begin(), sums.end(), 0.0);
    const float* from = &across[tap.first * wide];
    for (const double weight : tap.weights) {
      for (size_t i = 0; i < wide; ++i) sums[i] += from[i] * weight;
      from += wide;
    }
    for (const double sum : sums) *out++ = std::clamp(static_cast<float>(sum), 0.0f, 255.0f);
  }
}

void resize_rgb(const Image& image, ResizeRule rule, int side, float* out) {
  switch (rule) {
    case ResizeRule::Adm:
      return bilinear(image, tensorflow_pairs(image.height, side), tensorflow_pairs(image.width, side), out);
    case ResizeRule::PytorchFid:
      return bilinear(image, torch_pairs(image.height, side), torch_pairs(image.width, side), out);
    case ResizeRule::CleanFid:
      return bicubic(image, side, out);
    case ResizeRule::Lite0:
    case ResizeRule::Resnet: {
      const Image small = resize(image, side, side, Filter::Bicubic, {0, 0, side, side});
      std::copy(small.pixels.begin(), small.pixels.end(), out);
      return;
    }
  }
}

// (value - offset) / divisor of each colour.
void scale(float* out, size_t pixels, const std::array<float, 3>& offset,
           const std::array<float, 3>& divisor) {
  for (size_t i = 0; i < pixels; ++i)
    for (int c = 0; c < 3; ++c, ++out) *out = (*out - offset[c]) / divisor[c];
}

}  // namespace

void resize_float(const Image& image, ResizeRule rule, int side, float* out) {
  image.channels == 3 ? resize_rgb(image, rule, side, out)
                      : resize_rgb(with_channels(image, 3), rule, side, out);
}

void to_network(const Image& image, ResizeRule rule, int side, float* out) {
  resize_float(image, rule, side, out);
  const auto all = [](float value) { return std::array{value, value, value}; };
  const size_t pixels = static_cast<size_t>(side) * side;
  switch (rule) {
    case ResizeRule::Adm:
    case ResizeRule::CleanFid:
      return scale(out, pixels, all(128), all(128));
    case ResizeRule::PytorchFid:
      return scale(out, pixels, all(127.5f), all(127.5f));
    case ResizeRule::Lite0:
      return scale(out, pixels, all(127), all(128));
    case ResizeRule::Resnet:  // ImageNet's means and deviations of values in [0, 1]
      return scale(out, pixels, {255 * .485f, 255 * .456f, 255 * .406f},
                   {255 * .229f, 255 * .224f, 255 * .225f});
  }
}

}  // namespace dydit
