// Every primitive that CUDA kernels are made of: on the CPU as it is defined, on a card as on the CPU. The
// first thing to run on a card: kernels are tested on the CPU, which is worth what this test says.
#include "tests/engine/device_primitives.cuh"

#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "tests/engine/device_primitives_card.h"

namespace dydit::cuda {
namespace {

uint32_t bits_of(float value) { return std::bit_cast<uint32_t>(value); }

// Small whole numbers in the fragments, so that no order of additions rounds.
std::vector<uint32_t> make_inputs() {
  std::mt19937 random(9);
  std::uniform_int_distribution<int> whole(-8, 8);
  std::uniform_real_distribution<float> reals(1, 9);
  std::uniform_int_distribution<uint32_t> any;
  const std::array<float, 10> hard = {0.0f,
                                      -0.0f,
                                      std::bit_cast<float>(0x3f808000u),  // ties, to even
                                      std::bit_cast<float>(0x3f818000u),
                                      std::bit_cast<float>(0xbf808001u),
                                      std::bit_cast<float>(0x7f7fffffu),  // rounds to infinity
                                      HUGE_VALF,
                                      std::nanf(""),
                                      std::bit_cast<float>(0x00000001u),  // below the normal numbers
                                      std::bit_cast<float>(0x00408000u)};
  const auto pair = [&] {
    return bits_of(static_cast<float>(whole(random))) >> 16 |
           (bits_of(static_cast<float>(whole(random))) & 0xffff0000u);
  };
  std::vector<uint32_t> in;
  for (int thread = 0; thread < kAllPrimitiveThreads; ++thread) {
    in.push_back(bits_of(reals(random)));
    for (int i = 1; i < 4; ++i) in.push_back(any(random));
    for (int i = 4; i < 10; ++i) in.push_back(pair());
    for (int i = 10; i < 14; ++i) in.push_back(bits_of(static_cast<float>(whole(random))));
    in.push_back(thread % 2 ? bits_of(hard[thread / 2 % hard.size()]) : bits_of(reals(random)));
    in.push_back(bits_of(-reals(random)));
  }
  return in;
}

std::vector<uint32_t> primitives_on_cpu(const std::vector<uint32_t>& in) {
  alignas(16) static std::array<uint32_t, size_t{kAllPrimitiveThreads} * kPrimitiveInputs> aligned;
  std::memcpy(aligned.data(), in.data(), in.size() * sizeof(uint32_t));
  std::vector<Primitives> found(kAllPrimitiveThreads);
  run_primitives(found.data(), aligned.data());
  std::vector<uint32_t> words(found.size() * sizeof(Primitives) / sizeof(uint32_t));
  std::memcpy(words.data(), found.data(), words.size() * sizeof(uint32_t));
  return words;
}

// A value of a fragment: a half of a word.
double half_of(uint32_t word, int half) {
  return std::bit_cast<float>(half ? word & 0xffff0000u : word << 16);
}
uint32_t bits_of_half(uint32_t word, int half) { return half ? word >> 16 : word & 0xffff; }

TEST(DevicePrimitives, OnTheCpuTheyAreTheirDefinitions) {
  const std::vector<uint32_t> in = make_inputs(), words = primitives_on_cpu(in);
  for (int thread = 0; thread < kAllPrimitiveThreads; ++thread) {
    Primitives found;
    std::memcpy(&found, &words[thread * sizeof(found) / sizeof(uint32_t)], sizeof(found));
    const int warp = thread / kWarp * kWarp, lane = thread % kWarp, g = lane / 4, t = lane % 4;
    const auto word = [&](int lane, int i) { return in[(warp + lane) * kPrimitiveInputs + i]; };
    EXPECT_EQ(found.thread, thread % kPrimitiveThreads);
    EXPECT_EQ(found.y + kPrimitiveBlocks * found.z, thread / kPrimitiveThreads);
    uint32_t odd = 0;
    for (int other = 0; other < kWarp; ++other) odd |= word(other, 0) % 2 << other;
    EXPECT_EQ(found.odd, odd);
    EXPECT_EQ(found.odd_count, std::popcount(odd));
    for (int i = 0; i < 5; ++i) EXPECT_EQ(bits_of(found.shuffled[i]), word(lane ^ 1 << i, 0));
    for (int i = 0; i < 4; ++i) {
      const int row = g + i / 2 * 8, column = 2 * t + i % 2;
      double sum = std::bit_cast<float>(word(lane, 10 + i));
      for (int k = 0; k < 16; ++k) {
        // a's row `row` lies in lanes of the same g, b's column in those whose g it is.
        const int quarter = k % 8 / 2;
        sum += half_of(word(row % 8 * 4 + quarter, 4 + row / 8 + k / 8 * 2), k % 2) *
               half_of(word(column * 4 + quarter, 8 + k / 8), k % 2);
      }
      EXPECT_EQ(found.product[i], sum) << thread << " " << i;
    }
    // Value c of row r of matrix m.
    const auto value = [&](int m, int r, int c) {
      return bits_of_half(word((5 * (8 * m + r) + 3) % kWarp, c / 2), c % 2);
    };
    for (int m = 0; m < 4; ++m) {
      EXPECT_EQ(found.matrices[m], value(m, g, 2 * t) | value(m, g, 2 * t + 1) << 16) << thread;
      const uint32_t transposed = value(m, 2 * t, g) | value(m, 2 * t + 1, g) << 16;
      EXPECT_EQ(found.transposed[m], transposed) << thread;
      if (m < 2) {
        EXPECT_EQ(found.two_transposed[m], transposed) << thread;
      }
    }
    const int opposite =
        thread / kPrimitiveThreads * kPrimitiveThreads + kPrimitiveThreads - 1 - thread % kPrimitiveThreads;
    for (int i = 0; i < 4; ++i) EXPECT_EQ(found.copied[i], in[opposite * kPrimitiveInputs + i]) << thread;
    for (int half = 0; half < 2; ++half) {
      const auto exact = std::bit_cast<float>(word(lane, 14 + half));
      const double got = half_of(found.packed, half);
      if (std::isnan(exact)) {
        EXPECT_TRUE(std::isnan(got));
      } else if (std::isfinite(got)) {
        EXPECT_LE(std::abs(got - exact), std::ldexp(std::abs(exact), -8) + std::ldexp(1.0, -134)) << exact;
      }
    }
  }
  // Ties go to the even neighbour.
  EXPECT_EQ(pack_bf16(std::bit_cast<float>(0x3f808000u), std::bit_cast<float>(0x3f818000u)), 0x3f823f80u);
}

TEST(DevicePrimitives, OnACardTheyAreWhatTheyAreOnTheCpu) {
  const std::vector<uint32_t> in = make_inputs(), wanted = primitives_on_cpu(in);
  const std::optional<std::vector<uint32_t>> got = primitives_on_card(in);
  if (!got) GTEST_SKIP() << "no GPU, or a build without CUDA kernels";
  ASSERT_EQ(got->size(), wanted.size());
  constexpr int kWords = sizeof(Primitives) / sizeof(uint32_t);
  for (size_t i = 0; i < wanted.size(); ++i) {
    const std::string where = "thread " + std::to_string(i / kWords) + ", word " + std::to_string(i % kWords);
    if (i % kWords < kEqualWords) {
      EXPECT_EQ((*got)[i], wanted[i]) << where;
    } else {
      const auto exact = std::bit_cast<float>(wanted[i]);
      EXPECT_NEAR(std::bit_cast<float>((*got)[i]), exact, 1e-6 * exact) << where;
    }
  }
}

}  // namespace
}  // namespace dydit::cuda
