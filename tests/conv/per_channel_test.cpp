// Pools and depthwise convolutions against LibTorch's.
#include "dydit/conv/per_channel.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "tests/support/autoencoders.h"

namespace dydit::conv {
namespace {

using test::apart;
using test::random_map;

Map to_map(const at::Tensor& image, int stride = 0) {  // (C, H, W)
  const int C = int(image.size(0)), H = int(image.size(1)), W = int(image.size(2));
  Map map = MapPool(MapPool::Kind::Memory).take(H, W, std::max(C, stride), false);
  map.C = C;
  const at::Tensor pixels = image.permute({1, 2, 0}).to(at::kFloat).contiguous();
  for (int i = 0; i < H * W; ++i)
    std::copy_n(pixels.const_data_ptr<float>() + i * C, C, map.as<float>() + map.at(0, i));
  return map;
}
at::Tensor channels_of(const Map& map, int first, int count) {
  at::Tensor image = at::empty({count, map.H, map.W});
  for (int c = 0; c < count; ++c)
    for (int i = 0; i < map.H * map.W; ++i)
      image.data_ptr<float>()[c * map.H * map.W + i] = map.value(map.at(0, i) + first + c);
  return image;
}

class PerChannel : public testing::TestWithParam<int> {};  // channels
INSTANTIATE_TEST_SUITE_P(Channels, PerChannel, testing::Values(3, 16, 40));

TEST_P(PerChannel, MeanDoesNotCountPaddingAndGoesToItsChannels) {
  const at::Tensor image = random_map({GetParam(), 7, 5}, 1);
  Map to = MapPool(MapPool::Kind::Memory).take(7, 5, GetParam() + 9, false);
  std::fill_n(to.as<float>(), to.H * to.W * to.C, -7.0f);
  Team team(2);
  pool(team, {}, to_map(image), to, /*channel=*/4);
  const at::Tensor wanted =
      at::avg_pool2d(image.unsqueeze(0), {3, 3}, {1, 1}, {1, 1}, false, /*count_include_pad=*/false)[0];
  EXPECT_LT(apart(channels_of(to, 4, GetParam()), wanted), 1e-6);
  EXPECT_TRUE(channels_of(to, 0, 4).eq(-7).all().item<bool>());
  EXPECT_TRUE(channels_of(to, 4 + GetParam(), 5).eq(-7).all().item<bool>());
}

TEST_P(PerChannel, LargestOfEverySecondPixel) {
  const at::Tensor image = random_map({GetParam(), 9, 8}, 2) - 5;  // all below zero: padding would win
  const Extent inside = {3, 0, 0};
  Team team(2);
  Map to = MapPool(MapPool::Kind::Memory).take(4, 3, GetParam(), false);
  pool(team, {inside, inside, 2, true}, to_map(image, 48), to);
  EXPECT_EQ(apart(channels_of(to, 0, GetParam()), at::max_pool2d(image.unsqueeze(0), {3, 3}, {2, 2})[0]), 0);
  Map padded = MapPool(MapPool::Kind::Memory).take(9, 8, GetParam(), false);
  pool(team, {{}, {}, 1, true}, to_map(image), padded);
  EXPECT_EQ(apart(channels_of(padded, 0, GetParam()),
                  at::max_pool2d(image.unsqueeze(0), {3, 3}, {1, 1}, {1, 1})[0]),
            0);
}

TEST_P(PerChannel, DepthwiseConvolutionAndRelu6) {
  for (const int taps : {3, 5}) {
    for (const int stride : {1, 2}) {
      const int C = GetParam(), zeros = taps - stride;
      const Extent extent = {taps, zeros / 2, zeros - zeros / 2};
      const at::Tensor image = random_map({C, 12, 10}, 3) * 3, weight = random_map({C, 1, taps, taps}, 4),
                       bias = random_map({C}, 5);
      const DepthwiseConv conv(weight, bias, extent, extent, stride);
      Map to = MapPool(MapPool::Kind::Memory).take(conv.out_height(12), conv.out_width(10), C, false);
      Team team(2);
      conv.run(team, to_map(image), to);
      const at::Tensor padded =
          at::constant_pad_nd(image.unsqueeze(0), {extent.before, extent.after, extent.before, extent.after});
      const at::Tensor wanted =
          at::conv2d(padded, weight, bias, {stride, stride}, at::IntArrayRef{0, 0}, {1, 1}, C)[0].clamp(0, 6);
      EXPECT_LT(apart(channels_of(to, 0, C), wanted), 2e-6) << taps << " taps, stride " << stride;
    }
  }
}

}  // namespace
}  // namespace dydit::conv
