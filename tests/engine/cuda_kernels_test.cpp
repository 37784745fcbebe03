// Every CUDA kernel against its definition in double precision, on outputs that begin as NaN. The text of the
// kernels is the GPU's; where it runs is tests/support's matter: on the CPU as fibers, in three orders whose
// results must be equal bit for bit, or on a card.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "dydit/base/error.h"
#include "dydit/engine/cuda/launch.h"
#include "tests/support/cuda_memory.h"
#include "tests/support/cuda_on_cpu.h"

namespace dydit::cuda {
namespace {

constexpr float kEps = 1e-6f;
constexpr double kLogitError = 1e-3;  // of logits up to some 80

class CudaKernels : public testing::Test {
 protected:
  void SetUp() override {
    if (!has_machine()) GTEST_SKIP() << "this machine has no GPU";
    if (!has_kernels()) GTEST_SKIP() << "there is no code for this GPU";
  }
};

std::vector<float> normal(size_t size, uint32_t seed, float scale = 1, float mean = 0) {
  std::mt19937 random(seed);
  std::normal_distribution<float> draw(mean, scale);
  std::vector<float> values(size);
  for (float& value : values) value = draw(random);
  return values;
}

float value_of(Bf16 value) { return std::bit_cast<float>(uint32_t{value.bits} << 16); }
bool is_poison(Bf16 value) { return value.bits == 0xffff; }
bool is_poison(float value) { return std::bit_cast<uint32_t>(value) == 0xffffffffu; }

std::vector<Bf16> rounded(const std::vector<float>& values) {
  std::vector<Bf16> out;
  for (const float value : values) {
    const auto bits = std::bit_cast<uint32_t>(value);
    out.push_back({static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)});
  }
  return out;
}

template <typename T>
std::vector<unsigned char> bytes_of(const std::vector<T>& values) {
  const auto* begin = reinterpret_cast<const unsigned char*>(values.data());
  return std::vector<unsigned char>(begin, begin + values.size() * sizeof(T));
}

// Runs in all orders of fibers and gives what the first run gave.
template <typename Run>
auto in_all_orders(const Run& run) {
  set_fiber_order(FiberOrder::Ascending);
  const auto first = run();
  set_fiber_order(FiberOrder::Descending);
  EXPECT_EQ(first.bytes(), run().bytes()) << "descending order gives other bits";
  set_fiber_order(FiberOrder::Seeded, 7);
  EXPECT_EQ(first.bytes(), run().bytes()) << "random order gives other bits";
  set_fiber_order(FiberOrder::Ascending);
  return first;
}

// Modulations of three rows with other floats between them, which samples read in no order.
struct Modulations {
  explicit Modulations(int C)
      : C(C), shift(rows(C, 1, 0)), scale1(rows(C, 2, 1)), gate(rows(C, 3, 0)), index({2, 0, 1}) {}
  static std::vector<float> rows(int C, uint32_t seed, float mean) {
    return normal(3 * (C + 4), seed, .5f, mean);
  }

  Modulation pointers() {
    return {.shift = shift.data(),
            .scale1 = scale1.data(),
            .gate = gate.data(),
            .stride = C + 4,
            .index = index.data()};
  }
  static int row_of(int sample) { return (std::array<int, 3>{2, 0, 1})[sample]; }
  // Of a sample's channel.
  double at(Array<float>& which, int sample, int c) { return which.data()[row_of(sample) * (C + 4) + c]; }

  int C;
  Array<float> shift, scale1, gate;
  Array<int> index;
};

// layer_norm(x) scale1 + shift of a row.
std::vector<double> normed(const double* x, int C, int sample, Modulations& m) {
  const double mean = std::accumulate(x, x + C, 0.0) / C;
  double squares = 0;
  for (int c = 0; c < C; ++c) squares += (x[c] - mean) * (x[c] - mean);
  const double scale = 1 / std::sqrt(squares / C + double{kEps});
  std::vector<double> out(C);
  for (int c = 0; c < C; ++c)
    out[c] = (x[c] - mean) * scale * m.at(m.scale1, sample, c) + m.at(m.shift, sample, c);
  return out;
}

void expect_rounded(Bf16 got, double wanted, const std::string& where) {
  EXPECT_LE(std::abs(value_of(got) - wanted), std::abs(wanted) / 256 + 2e-5) << where;
}

struct Sizes {
  int B, T, C;
  int rows() const { return B * T; }
};
std::string text(const Sizes& s) {
  return "B " + std::to_string(s.B) + " T " + std::to_string(s.T) + " C " + std::to_string(s.C);
}
const Sizes kSizes[] = {{1, 16, 96},   {3, 16, 256},  {3, 16, 384}, {1, 16, 768}, {3, 16, 1024},
                        {3, 16, 1152}, {1, 64, 96},   {3, 100, 96}, {3, 64, 256}, {1, 256, 96},
                        {1, 1024, 96}, {3, 256, 256}, {1, 100, 132}};

struct RowResults {
  std::vector<Bf16> out;
  std::vector<float> x;
  std::vector<unsigned char> bytes() const {
    std::vector<unsigned char> all = bytes_of(out), of_x = bytes_of(x);
    all.insert(all.end(), of_x.begin(), of_x.end());
    return all;
  }
};

// Every third row has no addend; the others' lie in no order.
std::vector<int> positions_of(int rows) {
  std::vector<int> inverse(rows, -1), order;
  for (int row = 0; row < rows; ++row)
    if (row % 3 != 1) order.push_back(row);
  std::shuffle(order.begin(), order.end(), std::mt19937(5));
  for (size_t p = 0; p < order.size(); ++p) inverse[order[p]] = static_cast<int>(p);
  return inverse;
}

// x + gate y in double, rows without addend as they are.
std::vector<double> summed(const std::vector<float>& x, const std::vector<Bf16>& y,
                           const std::vector<int>& inverse, const Sizes& s, Modulations& m) {
  std::vector<double> sum(x.begin(), x.end());
  for (int row = 0; row < s.rows(); ++row) {
    for (int c = 0; c < s.C && inverse[row] >= 0; ++c)
      sum[int64_t{row} * s.C + c] +=
          m.at(m.gate, row / s.T, c) * value_of(y[int64_t{inverse[row]} * s.C + c]);
  }
  return sum;
}

TEST_F(CudaKernels, ResidualNormIsItsDefinition) {
  for (const Sizes& s : kSizes) {
    const std::vector<float> x = normal(int64_t{s.rows()} * s.C, 11, 2, .5f);
    const std::vector<int> inverse = positions_of(s.rows());
    const std::vector<Bf16> y = rounded(normal(int64_t{s.rows()} * s.C, 12));
    Modulations m(s.C);
    const RowResults got = in_all_orders([&] {
      Array<Bf16> out(x.size()), addend(y);
      Array<float> stream(x);
      Array<int> positions(inverse);
      residual_norm(out.data(), stream.data(), {addend.data(), positions.data()}, m.pointers(),
                    {.count = s.rows(), .tokens = s.T, .C = s.C}, kEps, nullptr);
      return RowResults{out.values(), stream.values()};
    });
    const std::vector<double> sum = summed(x, y, inverse, s, m);
    for (int row = 0; row < s.rows() && !HasFailure(); ++row) {
      const std::vector<double> wanted = normed(&sum[int64_t{row} * s.C], s.C, row / s.T, m);
      for (int c = 0; c < s.C; ++c) {
        const int64_t i = int64_t{row} * s.C + c;
        const std::string where = text(s) + " row " + std::to_string(row) + " column " + std::to_string(c);
        if (inverse[row] < 0)
          EXPECT_EQ(got.x[i], x[i]) << where;
        else
          EXPECT_NEAR(got.x[i], sum[i], 1e-6 * (1 + std::abs(sum[i]))) << where;
        expect_rounded(got.out[i], wanted[c], where);
      }
    }
  }
}

TEST_F(CudaKernels, ResidualAloneIsThatOfTheNormedPass) {
  const Sizes s = {3, 100, 384};
  const std::vector<float> x = normal(int64_t{s.rows()} * s.C, 13);
  Array<int> positions(positions_of(s.rows()));
  Array<Bf16> y(rounded(normal(x.size(), 14))), out(x.size());
  Array<float> alone(x), both(x);
  Modulations m(s.C);
  const Rows rows = {.count = s.rows(), .tokens = s.T, .C = s.C};
  residual_norm(nullptr, alone.data(), {y.data(), positions.data()}, m.pointers(), rows, kEps, nullptr);
  residual_norm(out.data(), both.data(), {y.data(), positions.data()}, m.pointers(), rows, kEps, nullptr);
  EXPECT_EQ(bytes_of(alone.values()), bytes_of(both.values()));
  EXPECT_NE(bytes_of(alone.values()), bytes_of(x));
}

TEST_F(CudaKernels, WithoutPositionsEveryRowHasItsOwnAndWithoutGateItIsOne) {
  const Sizes s = {3, 16, 256};
  const std::vector<float> x = normal(int64_t{s.rows()} * s.C, 15);
  const std::vector<Bf16> y = rounded(normal(x.size(), 16));
  Array<float> stream(x);
  Array<Bf16> addend(y);
  residual_norm(nullptr, stream.data(), {addend.data()}, {}, {.count = s.rows(), .tokens = s.T, .C = s.C},
                kEps, nullptr);
  const std::vector<float> got = stream.values();
  for (size_t i = 0; i < x.size(); ++i) EXPECT_EQ(got[i], x[i] + value_of(y[i])) << i;
}

TEST_F(CudaKernels, WithoutIndexASampleReadsTheModulationOfItsNumber) {
  const Sizes s = {3, 16, 96};
  Array<float> x(normal(int64_t{s.rows()} * s.C, 17));
  Array<Bf16> by_number(int64_t{s.rows()} * s.C), by_index(int64_t{s.rows()} * s.C);
  Array<int> index({0, 1, 2});
  Modulations m(s.C);
  Modulation modulation = m.pointers();
  const Rows rows = {.count = s.rows(), .tokens = s.T, .C = s.C};
  modulation.index = nullptr;
  residual_norm(by_number.data(), x.data(), {}, modulation, rows, kEps, nullptr);
  modulation.index = index.data();
  residual_norm(by_index.data(), x.data(), {}, modulation, rows, kEps, nullptr);
  EXPECT_EQ(bytes_of(by_number.values()), bytes_of(by_index.values()));
}

TEST_F(CudaKernels, NormGatherIsTheNormOfTheChosenRows) {
  for (const Sizes& s : kSizes) {
    const std::vector<float> x = normal(int64_t{s.rows()} * s.C, 21, 3, -1);
    std::vector<int> chosen(s.rows());  // from the last row on; here and there none
    for (int p = 0; p < s.rows(); ++p) chosen[p] = p % 5 == 2 ? -1 : s.rows() - 1 - p;
    Modulations m(s.C);
    const RowResults got = in_all_orders([&] {
      Array<Bf16> out(x.size());
      Array<float> stream(x);
      Array<int> rows(chosen);
      norm_gather(out.data(), stream.data(), rows.data(), m.pointers(),
                  {.count = s.rows(), .tokens = s.T, .C = s.C}, kEps, nullptr);
      return RowResults{out.values(), stream.values()};
    });
    EXPECT_EQ(bytes_of(got.x), bytes_of(x));
    for (int p = 0; p < s.rows() && !HasFailure(); ++p) {
      const int row = std::max(chosen[p], 0);
      const std::vector<double> exact(x.begin() + int64_t{row} * s.C, x.begin() + int64_t{row + 1} * s.C);
      const std::vector<double> wanted = normed(exact.data(), s.C, row / s.T, m);
      for (int c = 0; c < s.C; ++c) {
        const Bf16 value = got.out[int64_t{p} * s.C + c];
        const std::string where = text(s) + " position " + std::to_string(p) + " column " + std::to_string(c);
        if (chosen[p] < 0)
          EXPECT_TRUE(is_poison(value)) << where;
        else
          expect_rounded(value, wanted[c], where);
      }
    }
  }
}

TEST_F(CudaKernels, VarianceIsTakenAroundTheMean) {
  const int C = 768;
  const std::vector<float> x = normal(C, 22, .01f, 100);
  const std::vector<double> exact(x.begin(), x.end());
  Array<float> stream(x);
  Array<Bf16> out(C);
  Modulations m(C);
  norm_gather(out.data(), stream.data(), nullptr, m.pointers(), {.count = 1, .C = C}, kEps, nullptr);
  const std::vector<double> wanted = normed(exact.data(), C, 0, m);
  const std::vector<Bf16> got = out.values();
  for (int c = 0; c < C; ++c) EXPECT_NEAR(value_of(got[c]), wanted[c], std::abs(wanted[c]) / 256 + 5e-3) << c;
}

TEST_F(CudaKernels, TheCountOnTheDeviceLimitsTheRows) {
  const Sizes s = {3, 16, 96};
  for (const int count : {0, 1, 17, 48, 1000}) {  // above the host's count: as many as that
    const int rows = std::min(count, s.rows());
    const std::vector<float> x = normal(int64_t{s.rows()} * s.C, 23);
    Array<int> on_device(std::vector<int>{count});
    Array<Bf16> normed_rows(x.size()), gathered(x.size()), y(rounded(normal(x.size(), 24)));
    Array<float> stream(x), routed(x), logits(s.rows());
    Array<float> b1(normal(6, 1)), w2(normal(6, 2)), b2(normal(1, 3));
    std::vector<uint32_t> packed(packed_router_words(s.C, 6));
    pack_router(packed.data(), normal(6 * s.C, 4).data(), s.C, 6);
    Array<uint32_t> w1(packed);
    Modulations m(s.C);
    const Rows limited = {.count = s.rows(), .tokens = s.T, .C = s.C, .on_device = on_device.data()};
    residual_norm(normed_rows.data(), stream.data(), {y.data()}, m.pointers(), limited, kEps, nullptr);
    norm_gather(gathered.data(), stream.data(), nullptr, m.pointers(), limited, kEps, nullptr);
    residual_router(logits.data(), routed.data(), {y.data()}, {w1.data(), b1.data(), w2.data(), b2.data(), 6},
                    m.pointers(), limited, nullptr);
    EXPECT_EQ(bytes_of(stream.values()), bytes_of(routed.values()));
    for (int row = 0; row < s.rows(); ++row) {
      const int64_t i = int64_t{row} * s.C;
      EXPECT_EQ(is_poison(normed_rows.values()[i]), row >= rows) << row << " of " << count;
      EXPECT_EQ(is_poison(gathered.values()[i]), row >= rows) << row << " of " << count;
      EXPECT_EQ(is_poison(logits.values()[row]), row >= rows) << row << " of " << count;
      EXPECT_EQ(stream.values()[i] == x[i], row >= rows) << row << " of " << count;
    }
  }
}

struct RouterResults {
  std::vector<float> logits, x;
  std::vector<unsigned char> bytes() const {
    std::vector<unsigned char> all = bytes_of(logits), of_x = bytes_of(x);
    all.insert(all.end(), of_x.begin(), of_x.end());
    return all;
  }
};

// A router's weights on both sides.
struct Router {
  explicit Router(int C)
      : R(C / 16),
        weights(normal(int64_t{R} * C, 31, 2 / std::sqrt(static_cast<float>(C)))),
        w1(packed(weights, C, R)),
        b1(normal(R, 32)),
        w2(normal(R, 33)),
        b2(normal(1, 34)) {}
  static std::vector<uint32_t> packed(const std::vector<float>& weights, int C, int R) {
    std::vector<uint32_t> words(packed_router_words(C, R));
    pack_router(words.data(), weights.data(), C, R);
    return words;
  }
  TokenRouter pointers() { return {w1.data(), b1.data(), w2.data(), b2.data(), R}; }
  double logit(const double* x, int C) {
    double sum = b2.data()[0];
    for (int h = 0; h < R; ++h) {
      double hidden = b1.data()[h];
      for (int c = 0; c < C; ++c) hidden += x[c] * weights[int64_t{h} * C + c];
      sum += std::max(hidden, 0.0) * w2.data()[h];
    }
    return sum;
  }

  int R;
  std::vector<float> weights;
  Array<uint32_t> w1;
  Array<float> b1, w2, b2;
};

RouterResults route(const std::vector<float>& x, const std::vector<Bf16>& y, const std::vector<int>& inverse,
                    Router& router, Modulations& m, const Sizes& s) {
  Array<float> logits(s.rows()), stream(x);
  Array<Bf16> addend(y);
  Array<int> positions(inverse);
  residual_router(logits.data(), stream.data(), {addend.data(), positions.data()}, router.pointers(),
                  m.pointers(), {.count = s.rows(), .tokens = s.T, .C = s.C}, nullptr);
  return {logits.values(), stream.values()};
}

TEST_F(CudaKernels, ResidualRouterIsItsDefinition) {
  for (const Sizes& s : kSizes) {
    if (s.C % 16 != 0) continue;
    const std::vector<float> x = normal(int64_t{s.rows()} * s.C, 35, 2, .5f);
    const std::vector<Bf16> y = rounded(normal(x.size(), 36));
    const std::vector<int> inverse = positions_of(s.rows());
    Modulations m(s.C);
    Router router(s.C);
    const RouterResults got = in_all_orders([&] { return route(x, y, inverse, router, m, s); });
    const std::vector<double> sum = summed(x, y, inverse, s, m);
    for (int row = 0; row < s.rows() && !HasFailure(); ++row) {
      EXPECT_NEAR(got.logits[row], router.logit(&sum[int64_t{row} * s.C], s.C), kLogitError)
          << text(s) << " row " << row;
      for (int c = 0; c < s.C; ++c) {
        const int64_t i = int64_t{row} * s.C + c;
        EXPECT_NEAR(got.x[i], sum[i], 1e-6 * (1 + std::abs(sum[i])))
            << text(s) << " row " << row << " column " << c;
      }
    }
  }
}

TEST_F(CudaKernels, WithoutAddendTheRouterReadsTheStreamAlone) {
  const Sizes s = {3, 16, 256};
  const std::vector<float> x = normal(int64_t{s.rows()} * s.C, 37);
  const std::vector<double> exact(x.begin(), x.end());
  Array<float> logits(s.rows()), stream(x);
  Router router(s.C);
  residual_router(logits.data(), stream.data(), {}, router.pointers(), {},
                  {.count = s.rows(), .tokens = s.T, .C = s.C}, nullptr);
  EXPECT_EQ(bytes_of(stream.values()), bytes_of(x));
  for (int row = 0; row < s.rows(); ++row)
    EXPECT_NEAR(logits.values()[row], router.logit(&exact[int64_t{row} * s.C], s.C), kLogitError) << row;
}

// With many rows a block takes two bands of them.
TEST_F(CudaKernels, ARowsBitsDependOnThatRowAlone) {
  const Sizes many = {3, 1500, 96}, one = {1, 100, 96};
  const std::vector<float> x = normal(int64_t{many.rows()} * many.C, 38);
  const std::vector<Bf16> y = rounded(normal(x.size(), 39));
  std::vector<int> inverse(many.rows());
  std::iota(inverse.begin(), inverse.end(), 0);
  Modulations m(96);
  Router router(96);
  const RouterResults all = route(x, y, inverse, router, m, many);
  const size_t size = int64_t{one.rows()} * one.C;
  const RouterResults few = route({x.begin(), x.begin() + size}, {y.begin(), y.begin() + size},
                                  {inverse.begin(), inverse.begin() + one.rows()}, router, m, one);
  EXPECT_EQ(bytes_of(few.logits),
            bytes_of(std::vector<float>(all.logits.begin(), all.logits.begin() + one.rows())));
  const std::vector<double> sum = summed(x, y, inverse, many, m);
  for (int row = 0; row < many.rows(); ++row)
    EXPECT_NEAR(all.logits[row], router.logit(&sum[int64_t{row} * 96], 96), kLogitError) << row;
}

struct Choice {
  std::vector<int> rows, inverse, counts;
  std::vector<unsigned char> bytes() const {
    std::vector<unsigned char> all = bytes_of(rows);
    for (const auto* more : {&inverse, &counts}) {
      const std::vector<unsigned char> b = bytes_of(*more);
      all.insert(all.end(), b.begin(), b.end());
    }
    return all;
  }
};

// Logits with many equals, zeros of both signs among them.
std::vector<float> tied_logits(size_t size) {
  std::vector<float> logits = normal(size, 41);
  for (size_t i = 0; i < size; ++i) {
    if (i % 3 == 0) logits[i] = std::round(logits[i]);
    if (i % 7 == 1) logits[i] = -0.0f;
    if (i % 7 == 4) logits[i] = 0.0f;
  }
  return logits;
}

Choice choose(const std::vector<float>& logits, const TokenRule& rule, int B, int T) {
  Array<int> rows(int64_t{B} * rule.capacity), inverse(int64_t{B} * T), counts(B);
  Array<float> own(logits);
  choose_tokens({rows.data(), inverse.data(), counts.data()}, own.data(), rule, B, T, nullptr);
  return {rows.values(), inverse.values(), counts.values()};
}

// What the rule says, token by token.
Choice chosen_by_definition(const std::vector<float>& logits, const TokenRule& rule, int B, int T) {
  Choice wanted;
  for (int b = 0; b < B; ++b) {
    const auto value = [&](int token) { return logits[b * T + token] + 0.0f; };
    std::vector<int> order(T - rule.extras), on;
    std::iota(order.begin(), order.end(), rule.extras);
    std::stable_sort(order.begin(), order.end(), [&](int i, int j) { return value(i) > value(j); });
    std::vector<uint8_t> mask(T, 0);
    for (int i = 0; i < T - rule.extras; ++i)
      mask[order[i]] = rule.keep < 0 ? value(order[i]) > rule.threshold : i < rule.keep;
    for (int token = 0; token < T; ++token)
      if (token < rule.extras || mask[token]) on.push_back(b * T + token);
    wanted.counts.push_back(static_cast<int>(on.size()));
    on.resize(rule.capacity, -1);
    std::vector<int> inverse(T, -1);
    for (int p = 0; p < rule.capacity; ++p)
      if (on[p] >= 0) inverse[on[p] - b * T] = b * rule.capacity + p;
    wanted.rows.insert(wanted.rows.end(), on.begin(), on.end());
    wanted.inverse.insert(wanted.inverse.end(), inverse.begin(), inverse.end());
  }
  return wanted;
}

void expect_choice(const std::vector<float>& logits, const TokenRule& rule, int B, int T) {
  const Choice got = in_all_orders([&] { return choose(logits, rule, B, T); });
  const Choice wanted = chosen_by_definition(logits, rule, B, T);
  const std::string where =
      "B " + std::to_string(B) + " T " + std::to_string(T) + " keep " + std::to_string(rule.keep);
  EXPECT_EQ(got.counts, wanted.counts) << where;
  EXPECT_EQ(got.rows, wanted.rows) << where;
  EXPECT_EQ(got.inverse, wanted.inverse) << where;
}

TEST_F(CudaKernels, TheLargestLogitsAreChosenFirstOfEqualsFirst) {
  for (const int B : {1, 3}) {
    for (const int N : {16, 64, 100, 256, 1024}) {
      for (const int keep : {0, 1, N / 2, N})
        expect_choice(tied_logits(int64_t{B} * N), {.keep = keep, .capacity = keep}, B, N);
    }
  }
}

TEST_F(CudaKernels, LogitsAboveTheThresholdAreChosen) {
  for (const int B : {1, 3}) {
    for (const int N : {16, 64, 100, 256, 1024})
      expect_choice(tied_logits(int64_t{B} * N), {.capacity = N}, B, N);
  }
  expect_choice(std::vector<float>(100, -0.0f), {.capacity = 100}, 1, 100);   // none
  expect_choice(std::vector<float>(100, 1e-30f), {.capacity = 100}, 1, 100);  // all
}

TEST_F(CudaKernels, MoreTokensThanABlockHasThreads) {
  expect_choice(tied_logits(2 * 1500), {.keep = 700, .capacity = 700}, 2, 1500);
  expect_choice(tied_logits(2 * 1500), {.capacity = 1500}, 2, 1500);
}

TEST_F(CudaKernels, TokensInFrontAreAlwaysOn) {
  std::vector<float> logits = tied_logits(3 * 66);
  for (const int b : {0, 1, 2}) logits[b * 66] = logits[b * 66 + 1] = std::nanf("");  // nobody reads them
  const Choice got = choose(logits, {.keep = 10, .extras = 2, .capacity = 12}, 3, 66);
  EXPECT_EQ(got.bytes(),
            chosen_by_definition(logits, {.keep = 10, .extras = 2, .capacity = 12}, 3, 66).bytes());
}

TEST_F(CudaKernels, TokensBeyondTheCapacityAreCountedAndHaveNoPosition) {
  expect_choice(tied_logits(3 * 100), {.capacity = 7}, 3, 100);
  expect_choice(tied_logits(3 * 100), {.capacity = 0}, 3, 100);
}

// As the engine strings them together: what is off stays, bit for bit.
TEST_F(CudaKernels, ChosenRowsComeBackToWhereTheyWere) {
  const int B = 3, N = 64, C = 96, keep = 20;
  const std::vector<float> x = normal(int64_t{B} * N * C, 43);
  Array<float> stream(x), logits(tied_logits(int64_t{B} * N));
  Array<int> rows(B * keep), inverse(B * N), counts(B);
  Array<Bf16> gathered(int64_t{B} * keep * C);
  Modulations m(C);
  choose_tokens({rows.data(), inverse.data(), counts.data()}, logits.data(), {.keep = keep, .capacity = keep},
                B, N, nullptr);
  norm_gather(gathered.data(), stream.data(), rows.data(), m.pointers(),
              {.count = B * keep, .tokens = N, .C = C}, kEps, nullptr);
  residual_norm(nullptr, stream.data(), {gathered.data(), inverse.data()}, m.pointers(),
                {.count = B * N, .tokens = N, .C = C}, kEps, nullptr);
  const std::vector<float> got = stream.values();
  const std::vector<int> positions = inverse.values();
  const std::vector<double> exact(x.begin(), x.end());
  for (int row = 0; row < B * N; ++row) {
    const std::vector<double> y = normed(&exact[int64_t{row} * C], C, row / N, m);
    for (int c = 0; c < C; ++c) {
      const int64_t i = int64_t{row} * C + c;
      if (positions[row] < 0)
        EXPECT_EQ(got[i], x[i]) << row << " " << c;
      else
        EXPECT_NEAR(got[i], x[i] + m.at(m.gate, row / N, c) * y[c], .02 * (1 + std::abs(y[c])))
            << row << " " << c;
    }
  }
}

struct AttentionResults {
  std::vector<Bf16> out;
  std::vector<unsigned char> bytes() const { return bytes_of(out); }
};

// softmax(scale q k^T) v of one row of one head.
std::vector<double> attended(const std::vector<Bf16>& qkv, int sample, int head, int query, int n, int D,
                             double scale) {
  constexpr int kN = 256;
  const auto at = [&](int token, int part, int d) {
    return double{value_of(qkv[(((int64_t{sample} * kN + token) * n + head) * 3 + part) * D + d])};
  };
  std::vector<double> scores(kN), out(D, 0);
  double largest = -std::numeric_limits<double>::infinity(), sum = 0;
  for (int key = 0; key < kN; ++key) {
    for (int d = 0; d < D; ++d) scores[key] += scale * at(query, 0, d) * at(key, 1, d);
    largest = std::max(largest, scores[key]);
  }
  for (double& score : scores) sum += score = std::exp(score - largest);
  for (int key = 0; key < kN; ++key) {
    for (int d = 0; d < D; ++d) out[d] += scores[key] / sum * at(key, 2, d);
  }
  return out;
}

TEST_F(CudaKernels, AttentionIsItsDefinition) {
  struct Case {
    int B, n, D;
    float size;  // of queries and keys: scores of one, and of a few that decide all
  };
  for (const Case& c : {Case{1, 1, 72, 1}, Case{1, 1, 64, 1}, Case{2, 3, 72, 3}, Case{2, 2, 64, 3}}) {
    const float scale = 1 / std::sqrt(static_cast<float>(c.D));
    const std::vector<Bf16> qkv = rounded(normal(int64_t{c.B} * 256 * c.n * 3 * c.D, 51, c.size));
    const auto run = [&] {
      Array<Bf16> out(int64_t{c.B} * 256 * c.n * c.D), in(qkv);
      attention(out.data(), in.data(), scale, c.B, 256, c.n, c.D, nullptr);
      return AttentionResults{out.values()};
    };
    const AttentionResults got = c.B == 1 ? in_all_orders(run) : run();
    for (int b = 0; b < c.B && !HasFailure(); ++b) {
      for (int head = 0; head < c.n; ++head) {
        for (int query = 0; query < 256; query += c.B) {  // every second of larger ones
          const std::vector<double> wanted = attended(qkv, b, head, query, c.n, c.D, scale);
          for (int d = 0; d < c.D; ++d)
            EXPECT_NEAR(value_of(got.out[((int64_t{b} * 256 + query) * c.n + head) * c.D + d]), wanted[d],
                        .012 * c.size * (.25 + std::abs(wanted[d]) / c.size))
                << "D " << c.D << " sample " << b << " head " << head << " query " << query << " column "
                << d;
        }
      }
    }
  }
}

TEST_F(CudaKernels, NothingIsNothing) {
  Array<float> x(96);
  residual_norm(nullptr, x.data(), {}, {}, {.count = 1, .C = 96}, kEps, nullptr);
  norm_gather(nullptr, x.data(), nullptr, {}, {.count = 0, .C = 96}, kEps, nullptr);
  attention(nullptr, nullptr, 1, 0, 256, 1, 72, nullptr);
  EXPECT_TRUE(is_poison(x.values()[0]));
}

TEST_F(CudaKernels, WhatTheyDoNotTakeIsRefused) {
  Array<float> x(2 * kMaxC);
  EXPECT_THROW(norm_gather(nullptr, x.data(), nullptr, {}, {.count = 1, .C = 98}, kEps, nullptr), Error);
  EXPECT_THROW(norm_gather(nullptr, x.data(), nullptr, {}, {.count = 1, .C = kMaxC + 4}, kEps, nullptr),
               Error);
  EXPECT_THROW(residual_norm(nullptr, x.data(), {}, {.stride = 3}, {.count = 1, .C = 96}, kEps, nullptr),
               Error);
  EXPECT_THROW(residual_router(nullptr, x.data(), {}, {.R = 73}, {}, {.count = 1, .C = 96}, nullptr), Error);
  EXPECT_THROW(residual_router(nullptr, x.data(), {}, {.R = 6}, {}, {.count = 1, .C = 100}, nullptr), Error);
  EXPECT_THROW(choose_tokens({}, nullptr, {.capacity = 17}, 1, 16, nullptr), Error);
  EXPECT_THROW(attention(nullptr, nullptr, 1, 1, 1024, 1, 72, nullptr), Error);
  EXPECT_FALSE(has_attention(256, 80));
}

}  // namespace
}  // namespace dydit::cuda
