// The products of bytes of every compiled level that this processor runs, against plain loops in double
// precision.
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "dydit/base/isa.h"
#include "dydit/engine/cpu/int8.h"
#include "dydit/engine/cpu/packed_linear.h"
#include "tests/support/kernel_levels.h"

namespace dydit::cpu {
namespace avx_vnni {
extern const Int8Kernels int8_kernels;
}
namespace avx512_vnni {
extern const Int8Kernels int8_kernels;
}
namespace avx512_bf16_vnni {
extern const Int8Kernels int8_kernels;
}

namespace {

struct Int8Level {
  const char* name;
  Isa needs;
  const Int8Kernels* kernels;
};
constexpr Int8Level kInt8Levels[] = {{"avx_vnni", Isa::Avx2, &avx_vnni::int8_kernels},
                                     {"avx512_vnni", Isa::Avx512, &avx512_vnni::int8_kernels},
                                     {"avx512_bf16_vnni", Isa::Avx512Bf16, &avx512_bf16_vnni::int8_kernels}};

class Int8KernelsAt : public testing::TestWithParam<Int8Level> {
 protected:
  void SetUp() override {
    const Isa needs = GetParam().needs;
    if (detect_isa() < needs || !has_vnni(needs)) GTEST_SKIP() << "this processor has no " << GetParam().name;
  }
  const Int8Kernels& kernels() const { return *GetParam().kernels; }
};
INSTANTIATE_TEST_SUITE_P(Levels, Int8KernelsAt, testing::ValuesIn(kInt8Levels),
                         [](const auto& info) { return std::string(info.param.name); });

// A layer of some input segments, those of `active` on.
struct Layer {
  int outs, segments, in_size;
  std::vector<int> active;
};
const Layer kLayers[] = {{16, 1, 32, {0}},        {5, 1, 1, {0}},        {37, 1, 27, {0}},
                         {70, 3, 7, {0, 2}},      {64, 6, 32, {1, 4}},   {80, 2, 64, {0, 1}},
                         {72, 16, 72, {3, 4, 9}}, {33, 4, 18, {0, 1, 3}}};

// Rows that were quantised, a layer of bytes, and their product in double precision.
struct Problem {
  Problem(const Layer& layer, int rows, const Int8Kernels& kernels) : layer(layer), rows(rows) {
    const at::Tensor weight = at::empty({layer.outs, layer.segments * layer.in_size}),
                     bias = at::empty({layer.outs});
    fill_normal({weight.data_ptr<float>(), static_cast<size_t>(weight.numel())}, 3, 1, 0);
    fill_normal({bias.data_ptr<float>(), static_cast<size_t>(layer.outs)}, 3, 2, 0);
    const QuantizedWeight quantized = quantize(weight, layer.segments);
    Team team(1);
    packed = PackedLinear(quantized, bias, 1, kLevelInt8F32, arena, team);
    packed.add_panels(0, 0, panels);
    const int slots = static_cast<int>(layer.active.size()), padded = packed.padded_in_size();
    lda = int64_t{slots} * padded + 3;
    bytes.resize(rows * lda);
    scales.resize(static_cast<size_t>(rows) * slots);
    for (int slot = 0; slot < slots; ++slot) {
      const auto x = random_values<float>(static_cast<size_t>(rows) * layer.in_size, 4 + slot);
      kernels.quantize_float({.x = x.data(),
                              .ldx = layer.in_size,
                              .rows = rows,
                              .size = layer.in_size,
                              .factors = nullptr,
                              .bytes = bytes.data() + slot * padded,
                              .ldb = lda,
                              .scales = scales.data() + slot,
                              .scale_stride = slots});
      segments.push_back(layer.active[slot] * packed.segment_pairs());
    }
    const at::Tensor exact = dequantize(quantized);
    for (int row = 0; row < rows; ++row) {
      for (int out = 0; out < layer.outs; ++out) {
        double v = bias.data_ptr<float>()[out];
        for (int slot = 0; slot < slots; ++slot) {
          for (int k = 0; k < layer.in_size; ++k) {
            v += double{scales[row * slots + slot]} * (bytes[row * lda + slot * padded + k] - kInt8Zero) *
                 exact.data_ptr<float>()[(out * layer.segments + layer.active[slot]) * layer.in_size + k];
          }
        }
        wanted.push_back(v);
      }
    }
  }

  template <typename A>
  std::vector<A> product(void (*kernel)(const Gemm&), int begin, int end) const {
    std::vector<A> out(static_cast<size_t>(rows) * layer.outs);
    kernel({.a = bytes.data(),
            .lda = lda,
            .row_begin = begin,
            .row_end = end,
            .panels = panels.whole.data(),
            .num_panels = static_cast<int>(panels.whole.size()),
            .segments = segments.data(),
            .num_segments = static_cast<int>(segments.size()),
            .segment_pairs = packed.segment_pairs(),
            .out = out.data(),
            .ldo = layer.outs,
            .scales = scales.data(),
            .scale_stride = static_cast<int64_t>(segments.size())});
    return out;
  }

  Layer layer;
  int rows;
  int64_t lda;
  Arena arena;
  PackedLinear packed;
  Panels panels;
  std::vector<int> segments;
  std::vector<uint8_t> bytes;
  std::vector<float> scales;
  std::vector<double> wanted;
};

template <typename A>
void expect_products(void (*kernel)(const Gemm&), const Int8Kernels& kernels) {
  for (const Layer& layer : kLayers) {
    for (const int rows : {1, 2, 5, 6, 7, 12, 13}) {
      SCOPED_TRACE(testing::Message() << "layer " << &layer - kLayers << ", " << rows << " rows");
      const Problem problem(layer, rows, kernels);
      const std::vector<A> out = problem.product<A>(kernel, 0, rows);
      const double most =
          std::abs(*std::max_element(problem.wanted.begin(), problem.wanted.end(),
                                     [](double a, double b) { return std::abs(a) < std::abs(b); }));
      for (size_t i = 0; i < out.size(); ++i)
        ASSERT_NEAR(value_of(out[i]), problem.wanted[i], (sizeof(A) == 2 ? 4e-3 : 1e-6) * most) << i;
    }
  }
}

TEST_P(Int8KernelsAt, ProductsAreExactButForTheLastRounding) {
  expect_products<float>(kernels().gemm_float, kernels());
  if (kernels().gemm_bf16) expect_products<Bf16>(kernels().gemm_bf16, kernels());
}

TEST_P(Int8KernelsAt, ARowIsTheSameInEveryCut) {
  for (const Layer& layer : kLayers) {
    const Problem problem(layer, 13, kernels());
    const std::vector<float> whole = problem.product<float>(kernels().gemm_float, 0, 13);
    for (const int cut : {1, 5, 6, 8}) {
      std::vector<float> parts = problem.product<float>(kernels().gemm_float, 0, cut);
      const std::vector<float> rest = problem.product<float>(kernels().gemm_float, cut, 13);
      std::copy(rest.begin() + int64_t{cut} * layer.outs, rest.end(),
                parts.begin() + int64_t{cut} * layer.outs);
      EXPECT_TRUE(same_bits(whole, parts)) << "layer " << &layer - kLayers << ", cut at " << cut;
    }
  }
}

// Rows of every length, factors or none, bytes of the neighbours untouched.
TEST_P(Int8KernelsAt, RowsAreRoundedToTheNearestOf255Levels) {
  for (const int size : {1, 3, 4, 15, 16, 17, 32, 71, 384}) {
    for (const bool factored : {false, true}) {
      const auto x = random_values<float>(3 * size, 9), factors = random_values<float>(size, 10);
      const int padded = (size + 3) / 4 * 4;
      std::vector<uint8_t> bytes(3 * (padded + 5), 7);
      std::vector<float> scales(3);
      kernels().quantize_float({.x = x.data(),
                                .ldx = size,
                                .rows = 3,
                                .size = size,
                                .factors = factored ? factors.data() : nullptr,
                                .bytes = bytes.data(),
                                .ldb = padded + 5,
                                .scales = scales.data(),
                                .scale_stride = 1});
      for (int row = 0; row < 3; ++row) {
        float most = 0;
        const auto value = [&](int i) { return x[row * size + i] * (factored ? factors[i] : 1.0f); };
        for (int i = 0; i < size; ++i) most = std::max(most, std::abs(value(i)));
        ASSERT_FLOAT_EQ(scales[row], most / 127);
        for (int i = 0; i < padded + 5; ++i) {
          const int byte = bytes[row * (padded + 5) + i];
          if (i >= padded) {
            ASSERT_EQ(byte, 7) << "beyond the row";
          } else if (i >= size) {
            ASSERT_EQ(byte, kInt8Zero);
          } else {
            ASSERT_LE(std::abs((byte - kInt8Zero) * scales[row] - value(i)), 0.5001f * scales[row]);
          }
        }
      }
    }
  }
}

TEST_P(Int8KernelsAt, ARowOfZerosIsZeroAndNanIsNotLost) {
  std::vector<float> x(3 * 40, 0.0f);
  x[40 + 17] = std::numeric_limits<float>::quiet_NaN();
  x[80 + 33] = std::numeric_limits<float>::infinity();
  std::vector<uint8_t> bytes(3 * 40);
  std::vector<float> scales(3);
  kernels().quantize_float({.x = x.data(),
                            .ldx = 40,
                            .rows = 3,
                            .size = 40,
                            .factors = nullptr,
                            .bytes = bytes.data(),
                            .ldb = 40,
                            .scales = scales.data(),
                            .scale_stride = 1});
  EXPECT_EQ(scales[0], 0.0f);
  EXPECT_TRUE(std::all_of(bytes.begin(), bytes.begin() + 40, [](uint8_t byte) { return byte == kInt8Zero; }));
  EXPECT_TRUE(std::isnan(scales[1]));
  EXPECT_TRUE(std::isinf(scales[2]));
}

}  // namespace
}  // namespace dydit::cpu
