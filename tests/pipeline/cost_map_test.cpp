// Token shares as pixels.
#include "dydit/pipeline/cost_map.h"

#include <cmath>
#include <vector>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace dydit {
namespace {

using Colour = std::array<uint8_t, 3>;

Colour pixel(const Image& image, int y, int x) {
  const uint8_t* values = image.pixels.data() + (static_cast<size_t>(y) * image.width + x) * 3;
  return {values[0], values[1], values[2]};
}

// Relative luminance of an sRGB colour, of which CIE lightness is a rising function.
double luminance(const Colour& colour) {
  const auto linear = [](uint8_t value) {
    const double v = value / 255.0;
    return v <= 0.04045 ? v / 12.92 : std::pow((v + 0.055) / 1.055, 2.4);
  };
  return 0.2126 * linear(colour[0]) + 0.7152 * linear(colour[1]) + 0.0722 * linear(colour[2]);
}

const at::Tensor kFourTokens = at::tensor({0.0f, 0.25f, 0.5f, 1.0f});

TEST(RampColour, GetsLighterAllTheWay) {
  for (int i = 1; i <= 64; ++i) {
    EXPECT_GT(luminance(ramp_colour(i / 64.0f)), luminance(ramp_colour((i - 1) / 64.0f))) << i;
  }
}

TEST(RampColour, OutsideTheRangeIsItsEnd) {
  EXPECT_EQ(ramp_colour(-1.0f), ramp_colour(0.0f));
  EXPECT_EQ(ramp_colour(2.0f), ramp_colour(1.0f));
}

TEST(ShareRange, SpansAllSamples) {
  const std::vector<at::Tensor> shares = {at::tensor({0.25f, 0.5f}), at::tensor({0.375f, 0.75f})};
  const ShareRange range = share_range(shares);
  EXPECT_EQ(range.min, 0.25f);
  EXPECT_EQ(range.max, 0.75f);
}

TEST(HeatMap, IsRowMajorOverTheTokenGrid) {
  const Image map = heat_map(kFourTokens, {0, 1}, 4);
  EXPECT_EQ(pixel(map, 0, 0), ramp_colour(0.0f));
  EXPECT_EQ(pixel(map, 0, 2), ramp_colour(0.25f));
  EXPECT_EQ(pixel(map, 2, 0), ramp_colour(0.5f));
  EXPECT_EQ(pixel(map, 3, 3), ramp_colour(1.0f));
}

TEST(HeatMap, StretchesTheRangeOverTheRamp) {
  const Image map = heat_map(at::tensor({0.25f, 0.5f, 0.625f, 0.75f}), {0.25f, 0.75f}, 2);
  EXPECT_EQ(pixel(map, 0, 0), ramp_colour(0.0f));
  EXPECT_EQ(pixel(map, 0, 1), ramp_colour(0.5f));
  EXPECT_EQ(pixel(map, 1, 1), ramp_colour(1.0f));
}

TEST(HeatMap, OfEqualSharesIsTheRampsStart) {
  EXPECT_EQ(pixel(heat_map(at::full({4}, 0.5f), {0.5f, 0.5f}, 2), 1, 0), ramp_colour(0.0f));
}

TEST(DrawCostMap, PutsTheEnlargedImageBesideItsMap) {
  const Image image{2, 2, 1, {10, 20, 30, 40}};
  const Image drawn = draw_cost_map({&image, 1}, {&kFourTokens, 1}, {0, 1}, 2, 4);
  EXPECT_EQ(drawn.height, kMinMapSide);
  EXPECT_EQ(drawn.width, 2 * kMinMapSide + 2);
  EXPECT_EQ(pixel(drawn, 31, 32), (Colour{20, 20, 20}));
  EXPECT_EQ(pixel(drawn, 32, 31), (Colour{30, 30, 30}));
  EXPECT_EQ(pixel(drawn, 63, 65), (Colour{0, 0, 0}));  // the gap
  EXPECT_EQ(pixel(drawn, 32, 66), ramp_colour(0.5f));
  EXPECT_EQ(pixel(drawn, 63, 129), ramp_colour(1.0f));
}

TEST(DrawCostMap, KeepsTheOrderOfTheSamples) {
  const std::vector<at::Tensor> shares = {at::zeros({4}), at::ones({4}), at::zeros({4})};
  const Image drawn = draw_cost_map({}, shares, {0, 1}, 64, 2);
  EXPECT_EQ(drawn.width, 2 * 66 + 2);
  EXPECT_EQ(drawn.height, 2 * 66 + 2);
  EXPECT_EQ(pixel(drawn, 2, 2), ramp_colour(0.0f));
  EXPECT_EQ(pixel(drawn, 2, 68), ramp_colour(1.0f));
  EXPECT_EQ(pixel(drawn, 68, 2), ramp_colour(0.0f));
}

TEST(DrawCostMap, LeavesLargeImagesAsTheyAre) {
  const Image large{96, 96, 3, std::vector<uint8_t>(96 * 96 * 3, 7)};
  EXPECT_EQ(draw_cost_map({&large, 1}, {&kFourTokens, 1}, {0, 1}, 96, 4).height, 96);
}

}  // namespace
}  // namespace dydit
