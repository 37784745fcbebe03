// Noise is a function of (seed, sample, draw, position) and of nothing else.
#include "dydit/base/noise.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

#include <gtest/gtest.h>

#include "dydit/base/torch_noise.h"

namespace dydit {
namespace {

std::vector<float> normals(size_t size, uint64_t seed, uint64_t sample, uint64_t draw) {
  std::vector<float> out(size);
  fill_normal(out, seed, sample, draw);
  return out;
}

TEST(FillNormal, SampleDoesNotDependOnTheOthersOfItsBatch) {
  constexpr size_t kSize = 48;
  std::vector<float> batch(4 * kSize);
  for (size_t i : {3, 1, 0, 2}) fill_normal({batch.data() + i * kSize, kSize}, 7, i, 1);
  for (size_t i = 0; i < 4; ++i) {
    const std::vector<float> row(batch.begin() + i * kSize, batch.begin() + (i + 1) * kSize);
    EXPECT_EQ(row, normals(kSize, 7, i, 1)) << "sample " << i;
  }
}

TEST(FillNormal, ShorterSpanIsAPrefix) {
  const std::vector<float> whole = normals(101, 3, 2, 5);
  for (size_t size : {1, 2, 7, 64, 100}) {
    EXPECT_EQ(normals(size, 3, 2, 5), std::vector<float>(whole.begin(), whole.begin() + size));
  }
}

TEST(FillNormal, PartsMakeTheWhole) {
  const std::vector<float> whole = normals(103, 3, 2, 5);
  std::vector<float> parts(103);
  for (size_t first : {64, 0, 100, 12}) {
    const size_t end = first == 0 ? 12 : first == 12 ? 64 : first == 64 ? 100 : 103;
    fill_normal({parts.data() + first, end - first}, 3, 2, 5, first);
  }
  EXPECT_EQ(parts, whole);
}

TEST(FillNormal, OtherSeedGivesOtherValues) { EXPECT_NE(normals(4, 1, 0, 0)[0], normals(4, 2, 0, 0)[0]); }
TEST(FillNormal, OtherSampleGivesOtherValues) { EXPECT_NE(normals(4, 1, 0, 0)[0], normals(4, 1, 1, 0)[0]); }
TEST(FillNormal, OtherDrawGivesOtherValues) { EXPECT_NE(normals(4, 1, 0, 0)[0], normals(4, 1, 0, 1)[0]); }

TEST(FillNormal, DrawsOfOneSampleDoNotOverlap) {
  const std::vector<float> first = normals(100'000, 1, 0, 0), second = normals(4, 1, 0, 1);
  EXPECT_EQ(std::search(first.begin(), first.end(), second.begin(), second.end()), first.end());
}

// One draw in 2^24 once gave 1: a timestep of 1000, in the 1,700th step of 1024 samples.
TEST(OpenUniform, StaysInsideTheOpenInterval) {
  EXPECT_GT(open_uniform(0), 0.0f);
  EXPECT_LT(open_uniform(0xFFFFFFFF), 1.0f);
  EXPECT_LT(open_uniform(0xFFFFFFFF) * 250.0f, 250.0f);
  EXPECT_FLOAT_EQ(open_uniform(0x80000000), 0.5f);
}

TEST(FillNormal, HighBitsOfTheSeedCount) {
  EXPECT_NE(normals(4, 1, 0, 0), normals(4, 1 + (uint64_t{1} << 32), 0, 0));
}

TEST(FillNormal, IsBoxMullerOfThePublishedPhiloxAnswer) {
  // Random123's known answer of philox4x32-10 for key 0, counter 0: 6627e8d5 e169c58d bc57ac4c 9b00dbd8.
  const double u1 = (0x6627e8d5 + 1.0) * 0x1p-32, u2 = 0xe169c58d * 0x1p-32;
  const double u3 = (0xbc57ac4c + 1.0) * 0x1p-32, u4 = 0x9b00dbd8 * 0x1p-32;
  const std::vector<float> got = normals(4, 0, 0, 0);
  EXPECT_FLOAT_EQ(got[0], std::sqrt(-2 * std::log(u1)) * std::cos(2 * std::numbers::pi * u2));
  EXPECT_FLOAT_EQ(got[1], std::sqrt(-2 * std::log(u1)) * std::sin(2 * std::numbers::pi * u2));
  EXPECT_FLOAT_EQ(got[2], std::sqrt(-2 * std::log(u3)) * std::cos(2 * std::numbers::pi * u4));
  EXPECT_FLOAT_EQ(got[3], std::sqrt(-2 * std::log(u3)) * std::sin(2 * std::numbers::pi * u4));
}

TEST(FillNormal, FirstFourMomentsAreThoseOfANormal) {
  const size_t size = 200'000;
  double moments[5] = {};
  for (const float value : normals(size, 42, 0, 0)) {
    for (int k = 1; k <= 4; ++k) moments[k] += std::pow(value, k) / size;
  }
  // Five standard errors: the k-th moment's variance is (E z^2k - (E z^k)^2) / size.
  const double unit = 5 / std::sqrt(static_cast<double>(size));
  EXPECT_NEAR(moments[1], 0, unit);
  EXPECT_NEAR(moments[2], 1, unit * std::sqrt(2.0));
  EXPECT_NEAR(moments[3], 0, unit * std::sqrt(15.0));
  EXPECT_NEAR(moments[4], 3, unit * std::sqrt(96.0));
}

TEST(FillNormal, DrawsOfOneSampleAreUncorrelated) {
  const size_t size = 100'000;
  const std::vector<float> a = normals(size, 9, 4, 0), b = normals(size, 9, 4, 1);
  double product = 0;
  for (size_t i = 0; i < size; ++i) product += static_cast<double>(a[i]) * b[i] / size;
  EXPECT_NEAR(product, 0, 5 / std::sqrt(static_cast<double>(size)));
}

void expect_near(const std::vector<float>& got, const std::vector<float>& wanted) {
  for (size_t i = 0; i < wanted.size(); ++i) EXPECT_NEAR(got[i], wanted[i], 1e-6) << i;
}

std::vector<float> next_values(TorchNoise& noise, size_t size) {
  std::vector<float> out(size);
  noise.fill(out);
  return out;
}

// Recorded: torch.manual_seed(7); torch.randn(1, 2, 2, 2), then torch.randn(2, 2, 2, 2) twice. From 16 values
// on torch takes another path than below.
TEST(TorchNoise, IsTorchRandnAfterManualSeed) {
  TorchNoise noise(7);
  expect_near(next_values(noise, 8),
              {-0.1467950940132141f, 0.7861412763595581f, 0.9468216300010681f, -1.1143440008163452f,
               1.6907901763916016f, -0.8948279023170471f, -0.3556250333786011f, 1.2323857545852661f});
  expect_near(next_values(noise, 16),
              {-1.5826646089553833f, -0.32456663250923157f, 1.9263681173324585f, -0.3300117254257202f,
               0.19844505190849304f, 0.7820726633071899f, 1.0391076803207397f, -0.7245107293128967f,
               -0.2093404233455658f, -0.21534152328968048f, -1.8157286643981934f, -0.3452419638633728f,
               -2.0614778995513916f, 0.6741006970405579f, -1.3233457803726196f, -1.3597689867019653f});
  expect_near(next_values(noise, 16), {-0.08352822810411453f, -0.023477932438254356f, 0.17437535524368286f});
}

// Recorded: torch.manual_seed(2**40 + 3); torch.randn(3, 5), then torch.randn(5). An odd count leaves the
// second value of a pair for the next call.
TEST(TorchNoise, KeepsTheSecondValueOfAPair) {
  TorchNoise noise((uint64_t{1} << 40) + 3);
  expect_near(next_values(noise, 15), {0.8032760620117188f, 0.17483338713645935f, 0.08897809684276581f});
  expect_near(next_values(noise, 5), {-0.0798543244600296f, 0.9264108538627625f, 0.8156775236129761f,
                                      0.49518901109695435f, -0.16431698203086853f});
}

}  // namespace
}  // namespace dydit
