// The kernels of what is kept and forecast, at every compiled level that this processor runs, against plain
// loops in double precision.
#include <algorithm>
#include <cmath>
#include <vector>

#include <gtest/gtest.h>

#include "tests/support/kernel_levels.h"

namespace dydit::cpu {
namespace {

class ReuseKernels : public CpuKernels {};
INSTANTIATE_TEST_SUITE_P(Levels, ReuseKernels, testing::ValuesIn(kLevels),
                         [](const auto& info) { return std::string(info.param.name); });

constexpr int kSizes[] = {1, 8, 15, 16, 17, 35, 64, 100, 1152, 5000};  // one beyond a strip of rows

// Features of `terms` (count) forecasts, (rows, C) each, with what follows them in memory.
template <typename T>
struct Forecasts {
  Forecasts(int rows, int C, int count) : gates(random_values<float>(size_t(count) * C, 30)) {
    for (int i = 0; i < count; ++i) {
      ForecastTerms to = {};
      to.gate = i % 3 == 2 ? nullptr : gates.data() + i * C;
      to.count = 1 + i % kMaxTerms;
      for (int j = 0; j < to.count; ++j) {
        values.push_back(random_values<T>(size_t(rows) * C + 1, 31 + 10 * i + j));
        set(values.back().back(), 1e6f);  // beyond the end
        to.features[j] = values.back().data();
        to.weights[j] = (j % 2 == 0 ? 1.5f : -0.75f) + 0.25f * static_cast<float>(i);
      }
      terms.push_back(to);
    }
  }
  // The sum of all of them.
  double at(int row, int c, int C) const {
    double sum = 0;
    for (const ForecastTerms& term : terms) {
      double value = 0;
      for (int j = 0; j < term.count; ++j)
        value += double{term.weights[j]} * value_of(static_cast<const T*>(term.features[j])[row * C + c]);
      sum += (term.gate ? term.gate[c] : 1.0) * value;
    }
    return sum;
  }

  std::vector<float> gates;
  std::vector<std::vector<T>> values;
  std::vector<ForecastTerms> terms;
};

template <typename T>
using ForecastKernel = void (*)(float*, int64_t, int, int, int, const ForecastTerms*, int);

template <typename T>
void check_forecast(ForecastKernel<T> kernel) {
  for (const int C : kSizes) {
    for (const int rows : {1, 3, 33}) {
      for (const int count : {1, 2, 7}) {
        SCOPED_TRACE(testing::Message() << "C = " << C << ", " << rows << " rows, " << count << " forecasts");
        const int first = 2, stride = C + 3;
        const Forecasts<T> forecasts(first + rows, C, count);
        const auto before = random_values<float>(size_t(rows) * stride, 29);
        auto x = before;
        kernel(x.data(), stride, first, rows, C, forecasts.terms.data(), count);
        for (int row = 0; row < rows; ++row) {
          for (int c = 0; c < stride; ++c) {
            const size_t i = size_t(row) * stride + c;
            if (c >= C) {
              ASSERT_EQ(x[i], before[i]) << "wrote beyond its row";
              continue;
            }
            const double wanted = before[i] + forecasts.at(first + row, c, C);
            ASSERT_NEAR(x[i], wanted, 1e-5 * std::max(10.0, std::abs(wanted))) << row << ", " << c;
          }
        }
      }
    }
  }
}

TEST_P(ReuseKernels, ForecastBf16AddsTheGatedSums) {
  if (!dots_bf16()) GTEST_SKIP() << kNoDots;
  check_forecast<Bf16>(kernels().forecast_bf16);
}
TEST_P(ReuseKernels, ForecastFloatAddsTheGatedSums) { check_forecast<float>(kernels().forecast_float); }

// Any cut into rows and into forecasts gives the bits of one call.
template <typename T>
void check_cuts(ForecastKernel<T> kernel) {
  for (const int C : {35, 64}) {
    constexpr int kRows = 130, kForecasts = 6;
    const Forecasts<T> forecasts(kRows, C, kForecasts);
    const auto before = random_values<float>(size_t(kRows) * C, 29);
    auto whole = before;
    kernel(whole.data(), C, 0, kRows, C, forecasts.terms.data(), kForecasts);
    for (const int rows : {1, 7, 64}) {
      for (const int count : {1, 4, 6}) {
        auto parts = before;
        for (int row = 0; row < kRows; row += rows) {
          for (int i = 0; i < kForecasts; i += count)
            kernel(parts.data() + row * C, C, row, std::min(rows, kRows - row), C, forecasts.terms.data() + i,
                   std::min(count, kForecasts - i));
        }
        EXPECT_TRUE(same_bits(parts, whole)) << rows << " rows, " << count << " forecasts a call";
      }
    }
  }
}

TEST_P(ReuseKernels, ForecastBf16RowsAndBranchesAreOneAfterTheOther) {
  if (!dots_bf16()) GTEST_SKIP() << kNoDots;
  check_cuts<Bf16>(kernels().forecast_bf16);
}
TEST_P(ReuseKernels, ForecastFloatRowsAndBranchesAreOneAfterTheOther) {
  check_cuts<float>(kernels().forecast_float);
}

// Reuse of one feature as it is adds exactly what the residual epilogue would: one rounding.
TEST_P(ReuseKernels, ForecastOfOneFeatureOfWeightOneIsExact) {
  constexpr int C = 40;
  const auto f = random_values<float>(C, 1), gate = random_values<float>(C, 2),
             before = random_values<float>(C, 3);
  const ForecastTerms term = {gate.data(), 1, {f.data()}, {1}};
  auto x = before;
  kernels().forecast_float(x.data(), C, 0, 1, C, &term, 1);
  for (int c = 0; c < C; ++c) EXPECT_EQ(x[c], std::fma(f[c], gate[c], before[c])) << c;
}

template <typename T>
void check_subtract(void (*kernel)(T*, const float*, const float*, int)) {
  for (const int C : kSizes) {
    const auto a = random_values<float>(C, 4), b = random_values<float>(C, 5);
    std::vector<T> out(C + 1);
    set(out[C], 99);
    kernel(out.data(), a.data(), b.data(), C);
    EXPECT_EQ(value_of(out[C]), 99) << "wrote beyond its row";
    for (int c = 0; c < C; ++c) {
      const float wanted = a[c] - b[c];
      ASSERT_NEAR(value_of(out[c]), wanted, sizeof(T) == 2 ? std::abs(wanted) / 256 : 0)
          << "C = " << C << ", " << c;
    }
  }
}

TEST_P(ReuseKernels, SubtractBf16IsTheDifferenceRounded) {
  if (!dots_bf16()) GTEST_SKIP() << kNoDots;
  check_subtract<Bf16>(kernels().subtract_bf16);
}
TEST_P(ReuseKernels, SubtractFloatIsTheDifference) { check_subtract<float>(kernels().subtract_float); }

}  // namespace
}  // namespace dydit::cpu
