// One convolution against LibTorch's in float64: every tiling, type, size and shape.
#include "dydit/conv/conv.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "tests/support/autoencoders.h"

namespace dydit::conv {
namespace {

using test::apart;
using test::random_map;

struct Case {
  const char* name;
  ConvShape shape;
};
const ConvShape kPixel = {.in = 24, .out = 40, .rows = kOneTap, .columns = kOneTap};
const Case kCases[] = {
    {"Winograd", {.in = 32, .out = 48}},
    {"WinogradOddChannels", {.in = 17, .out = 19}},
    {"Direct", {.in = 3, .out = 16}},
    {"Pixel", kPixel},
    {"DownAsKl", {.in = 16, .out = 24, .stride = 2, .rows = {3, 0, 1}, .columns = {3, 0, 1}}},
    {"DownWithoutZeros", {.in = 16, .out = 24, .stride = 2, .rows = {3, 0, 0}, .columns = {3, 0, 0}}},
    {"WinogradWithoutZeros", {.in = 16, .out = 24, .rows = {3, 0, 0}, .columns = {3, 0, 0}}},
    {"FiveByFive", {.in = 16, .out = 24, .rows = {5, 2, 2}, .columns = {5, 2, 2}}},
    {"Row", {.in = 16, .out = 24, .rows = kOneTap, .columns = {7, 3, 3}}},
    {"Column", {.in = 16, .out = 24, .rows = {7, 3, 3}, .columns = kOneTap}},
    {"PixelOddChannels", {.in = 7, .out = 24, .rows = kOneTap, .columns = kOneTap}},
    {"DownAsTiny", {.in = 16, .out = 24, .stride = 2}},
    {"Upsample", {.in = 16, .out = 24, .upsample = true}},
    {"UpsampleOddChannels", {.in = 5, .out = 7, .upsample = true}},
};

class EveryConv : public testing::TestWithParam<std::tuple<Case, bool, bool>> {
 protected:
  const ConvShape shape_ = std::get<0>(GetParam()).shape;
  const bool bf16_products_ = std::get<1>(GetParam()), bf16_maps_ = std::get<2>(GetParam());
  const double tolerance_ = bf16_products_ ? 2e-2 : bf16_maps_ ? 5e-3 : 2e-6;
};
INSTANTIATE_TEST_SUITE_P(Kinds, EveryConv,
                         testing::Combine(testing::ValuesIn(kCases), testing::Bool(), testing::Bool()),
                         [](const auto& info) {
                           return std::string(std::get<0>(info.param).name) +
                                  (std::get<1>(info.param) ? "Bf16Products" : "") +
                                  (std::get<2>(info.param) ? "Bf16Maps" : "");
                         });

Map make_map(int H, int W, int C, bool bf16) { return MapPool(MapPool::Kind::Memory).take(H, W, C, bf16); }
Map to_map(const at::Tensor& image, bool bf16) {  // (C, H, W)
  Map map = make_map(int(image.size(1)), int(image.size(2)), int(image.size(0)), bf16);
  const at::Tensor pixels = image.permute({1, 2, 0}).to(bf16 ? at::kBFloat16 : at::kFloat).contiguous();
  std::memcpy(map.as<char>(), pixels.const_data_ptr(), pixels.nbytes());
  return map;
}
at::Tensor to_tensor(const Map& map) {
  at::Tensor image = at::empty({map.C, map.H, map.W}, at::kDouble);
  for (int c = 0; c < map.C; ++c)
    for (int y = 0; y < map.H; ++y)
      for (int x = 0; x < map.W; ++x)
        image.data_ptr<double>()[(int64_t{c} * map.H + y) * map.W + x] = map.value(map.at(y, x) + c);
  return image;
}

// What the network defines, in float64.
at::Tensor plain(const at::Tensor& image, const at::Tensor& weight, const at::Tensor& bias,
                 const ConvShape& shape) {
  at::Tensor x = image.to(at::kDouble).unsqueeze(0);
  if (shape.upsample) x = x.repeat_interleave(2, 2).repeat_interleave(2, 3);
  x = at::constant_pad_nd(x,
                          {shape.columns.before, shape.columns.after, shape.rows.before, shape.rows.after});
  return at::conv2d(x, weight.to(at::kDouble), bias.to(at::kDouble), shape.stride).squeeze(0);
}

TEST_P(EveryConv, EqualsThePlainFormula) {
  const at::Tensor weight =
                       random_map({shape_.out, shape_.in, shape_.rows.taps, shape_.columns.taps}, 1) * .2,
                   bias = random_map({shape_.out}, 2);
  cpu::Arena arena;
  Team team(2);
  const Conv conv(weight, bias, shape_, bf16_products_, arena, team);
  std::vector<cpu::Buffer> scratch(2);
  for (cpu::Buffer& memory : scratch) memory.reserve(conv.scratch_bytes());
  for (const auto& [height, width] : {std::pair(1, 1), {2, 3}, {7, 5}, {16, 16}, {17, 35}, {40, 18}}) {
    if (shape_.out_height(height) < 1 || shape_.out_width(width) < 1) continue;
    const at::Tensor image = random_map({shape_.in, height, width}, 3);
    const Map from = to_map(image, bf16_maps_);
    Map to = make_map(shape_.out_height(height), shape_.out_width(width), shape_.out, bf16_maps_);
    conv.run(team, scratch, from, to, {.groups = 1});
    const at::Tensor wanted = plain(image, weight, bias, shape_), got = to_tensor(to);
    ASSERT_EQ(got.sizes(), wanted.sizes());
    EXPECT_LT(apart(got, wanted), tolerance_) << height << " x " << width;
    // Its moments.
    EXPECT_EQ(to.moments[0].count, wanted.numel());
    EXPECT_NEAR(to.moments[0].mean, wanted.mean().item<double>(), tolerance_);
    EXPECT_NEAR(to.moments[0].squares / to.moments[0].count, wanted.var(/*unbiased=*/false).item<double>(),
                tolerance_ * 10);
  }
}

// Of values far from zero, whose squares would drown their differences.
TEST(Moments, KeepTheirDigitsFarFromZero) {
  const ConvShape shape = {.in = 16, .out = 16, .rows = kOneTap, .columns = kOneTap};
  cpu::Arena arena;
  Team team(1);
  const Conv conv(at::eye(16), at::full({16}, 5000.0), shape, /*bf16=*/false, arena, team);
  std::vector<cpu::Buffer> scratch(1);
  scratch[0].reserve(conv.scratch_bytes());
  const at::Tensor image = random_map({16, 64, 64}, 3);
  Map to = make_map(64, 64, 16, false);
  conv.run(team, scratch, to_map(image, false), to, {.groups = 4});
  for (int g = 0; g < 4; ++g) {
    const at::Tensor part = to_tensor(to).slice(0, 4 * g, 4 * g + 4);
    EXPECT_NEAR(to.moments[g].mean, part.mean().item<double>(), 1e-4);
    EXPECT_NEAR(to.moments[g].squares / to.moments[g].count, part.var(false).item<double>(), 1e-4);
  }
}

// A branch of a block writes its part of the concatenation and nothing else.
TEST(ConvUse, WritesItsChannelsOfAWiderMap) {
  for (const bool pixel : {false, true}) {
    ConvShape shape = {.in = 16, .out = 20};
    if (pixel) shape.rows = shape.columns = kOneTap;
    const int taps = shape.rows.taps;
    const at::Tensor weight = random_map({20, 16, taps, taps}, 1) * .1, bias = random_map({20}, 2),
                     image = random_map({16, 13, 9}, 3);
    cpu::Arena arena;
    Team team(2);
    const Conv conv(weight, bias, shape, /*bf16=*/false, arena, team);
    std::vector<cpu::Buffer> scratch(2);
    for (cpu::Buffer& memory : scratch) memory.reserve(conv.scratch_bytes());
    Map to = make_map(13, 9, 50, false);
    std::fill_n(to.as<float>(), 13 * 9 * 50, 7.0f);
    conv.run(team, scratch, to_map(image, false), to, {.after = Activation::Relu6, .channel = 11});
    const at::Tensor got = to_tensor(to);
    EXPECT_LT(apart(got.slice(0, 11, 31), plain(image, weight, bias, shape).clamp(0, 6)), 2e-6);
    EXPECT_TRUE(got.slice(0, 0, 11).eq(7).all().item<bool>());
    EXPECT_TRUE(got.slice(0, 31, 50).eq(7).all().item<bool>());
  }
}

// Norm and SiLU on the way in, ReLU on the way out, and the sum with what is there.
TEST(ConvUse, NormActivationsAndSum) {
  const ConvShape shape = {.in = 32, .out = 32};
  const at::Tensor weight = random_map({32, 32, 3, 3}, 1) * .1, bias = random_map({32}, 2),
                   image = random_map({32, 21, 19}, 3) * 2 + 1, there = random_map({32, 21, 19}, 4);
  cpu::Arena arena;
  Team team(2);
  const Conv conv(weight, bias, shape, /*bf16=*/false, arena, team);
  std::vector<cpu::Buffer> scratch(2);
  for (cpu::Buffer& memory : scratch) memory.reserve(conv.scratch_bytes());
  GroupNorm norm;
  norm.groups = 8;
  norm.eps = 1e-2;
  const at::Tensor gamma = random_map({32}, 5), beta = random_map({32}, 6);
  norm.weight.assign(gamma.data_ptr<float>(), gamma.data_ptr<float>() + 32);
  norm.bias.assign(beta.data_ptr<float>(), beta.data_ptr<float>() + 32);
  Map from = to_map(image, false);
  for (int g = 0; g < 8; ++g) {
    const at::Tensor part = image.slice(0, 4 * g, 4 * g + 4).to(at::kDouble);
    const double count = part.numel();
    from.moments.push_back({count, part.mean().item<double>(), part.var(false).item<double>() * count});
  }
  Map to = to_map(there, false);
  conv.run(team, scratch, from, to,
           {.norm = &norm, .before = Activation::Silu, .after = Activation::Relu, .add = true});
  const at::Tensor normed = at::group_norm(image.to(at::kDouble).unsqueeze(0), 8, gamma.to(at::kDouble),
                                           beta.to(at::kDouble), 1e-2);
  const at::Tensor wanted = at::relu(plain(at::silu(normed).squeeze(0), weight, bias, shape) + there);
  EXPECT_LT(apart(to_tensor(to), wanted), 2e-6);
}

}  // namespace
}  // namespace dydit::conv
