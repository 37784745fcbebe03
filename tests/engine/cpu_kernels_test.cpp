// Every kernel of every compiled level that this processor runs, against plain loops in double precision.
#include <algorithm>
#include <cmath>
#include <fstream>
#include <functional>
#include <numeric>
#include <string>
#include <unistd.h>
#include <vector>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "dydit/base/noise.h"
#include "dydit/engine/cpu/kernels.h"
#include "dydit/engine/cpu/packed_linear.h"
#include "tests/support/kernel_levels.h"

namespace dydit::cpu {
namespace {

INSTANTIATE_TEST_SUITE_P(Levels, CpuKernels, testing::ValuesIn(kLevels),
                         [](const auto& info) { return std::string(info.param.name); });

// A layer of a few output and input segments, `outs` and `ins` of them active.
struct Layer {
  int out_segments, out_size, in_segments, in_size;
  std::vector<int> outs, ins;

  int columns() const { return static_cast<int>(outs.size()) * out_size; }
  int padded() const { return (in_size + 1) / 2 * 2; }
  int64_t lda() const { return static_cast<int64_t>(ins.size()) * padded() + 2; }
};
const Layer kLayers[] = {{1, 16, 1, 32, {0}, {0}},                      // one panel
                         {1, 5, 1, 1, {0}, {0}},                        // one input, a few columns
                         {1, 37, 1, 27, {0}, {0}},                      // nothing is even
                         {4, 36, 1, 21, {0, 3}, {0}},                   // two heads of four
                         {3, 33, 1, 20, {0, 1, 2}, {0}},                // nine panels
                         {1, 24, 5, 7, {0}, {1, 2, 4}},                 // heads of an odd size left out
                         {4, 16, 3, 18, {1, 2, 3}, {0, 2}},             // some of both
                         {2, 72, 6, 24, {1}, {5}},                      // the last of each
                         {8, 13, 8, 9, {0, 2, 3, 5, 6, 7}, {0, 1, 6}},  // panels of 13 columns
                         {1, 64, 3, 72, {0}, {0, 1}},                   // 36 pairs a head, as in DiT-XL
                         {2, 80, 2, 64, {0}, {0, 1}},                   // 32 pairs
                         {6, 24, 1, 40, {0, 1, 2, 4, 5}, {0}},          // a narrow panel a head, five of them
                         {2, 8, 3, 12, {0, 1}, {0, 2}}};                // nothing else

// Up to two register tiles and more of each kind, which are of 6, 16 and 32 rows.
constexpr int kRowCounts[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 16, 17, 31, 32, 33, 49};

// Weights, activations and what the layer makes of them, v = a w + bias (rows, columns), in double.
template <typename A, typename W>
struct Problem {
  Problem(const Layer& layer, int rows, bool narrow) : layer(layer), rows(rows) {
    const int outs = layer.out_segments * layer.out_size, ins = layer.in_segments * layer.in_size;
    const at::Tensor weight = at::empty({outs, ins}), bias = at::empty({outs});
    fill_normal({weight.data_ptr<float>(), static_cast<size_t>(weight.numel())}, 3, 1, 0);
    fill_normal({bias.data_ptr<float>(), static_cast<size_t>(outs)}, 3, 2, 0);
    if (sizeof(W) == 2) weight.copy_(weight.to(at::kBFloat16));
    constexpr Level kLevel = sizeof(A) == 2 ? kLevelBf16Dot : sizeof(W) == 2 ? kLevelBf16Fma : kLevelF32;
    Team team(1);
    packed = PackedLinear(weight, bias, layer.out_segments, layer.in_segments, kLevel, narrow, arena, team);
    expanded.resize(packed.tile_floats());
    a = random_values<A>(rows * layer.lda(), 4);
    for (size_t slot = 0; slot < layer.outs.size(); ++slot) {
      packed.add_panels(layer.outs[slot], static_cast<int>(slot) * layer.out_size, panels);
    }
    for (const int segment : layer.ins) segments.push_back(segment * packed.segment_pairs());
    for (int row = 0; row < rows; ++row) {
      for (const int out : layer.outs) {
        for (int c = out * layer.out_size; c < (out + 1) * layer.out_size; ++c) {
          double v = bias.data_ptr<float>()[c];
          for (size_t slot = 0; slot < layer.ins.size(); ++slot) {
            for (int k = 0; k < layer.in_size; ++k) {
              v += value_of(a[row * layer.lda() + slot * layer.padded() + k]) *
                   weight.data_ptr<float>()[c * ins + layer.ins[slot] * layer.in_size + k];
            }
          }
          wanted.push_back(v);
        }
      }
    }
  }

  // Without panels.
  Gemm gemm(void* out, Epilogue epilogue) const {
    return {.a = a.data(),
            .lda = layer.lda(),
            .row_begin = 0,
            .row_end = rows,
            .segments = segments.data(),
            .num_segments = static_cast<int>(segments.size()),
            .segment_pairs = packed.segment_pairs(),
            .epilogue = epilogue,
            .out = out,
            .ldo = ldo(),
            .expanded = expanded.data()};
  }
  // `call` over all panels, at most `most` at a time.
  void run(void (*kernel)(const Gemm&), Gemm call, size_t most = 1000) const {
    for (const std::vector<Panel>* kind : {&panels.whole, &panels.narrow}) {
      call.narrow = kind == &panels.narrow;
      for (size_t first = 0; first < kind->size(); first += most) {
        call.panels = kind->data() + first;
        call.num_panels = static_cast<int>(std::min(most, kind->size() - first));
        kernel(call);
      }
    }
  }
  int64_t ldo() const { return layer.columns() + 3; }

  Layer layer;
  int rows;
  Arena arena;
  PackedLinear packed;
  std::vector<A> a;  // padding included, which must not matter
  Panels panels;
  std::vector<int> segments;
  mutable std::vector<float> expanded;
  std::vector<double> wanted;
};

double gelu_tanh(double x) {
  return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}

// out (rows, ldo) holds `wanted` (rows, columns) and beyond its columns what it held before.
template <typename T>
void expect_rows(const std::vector<T>& out, const std::vector<T>& before, int64_t ldo,
                 const std::vector<double>& wanted, int columns, double tolerance = kTolerance<T>) {
  double norm = 0;
  for (const double w : wanted) norm = std::max(norm, std::abs(w));
  for (size_t i = 0; i < out.size(); ++i) {
    const size_t row = i / ldo, column = i % ldo;
    if (column >= static_cast<size_t>(columns)) {
      ASSERT_EQ(value_of(out[i]), value_of(before[i])) << "row " << row << ", beyond the columns: " << column;
      continue;
    }
    ASSERT_NEAR(value_of(out[i]), wanted[row * columns + column], tolerance * norm)
        << "row " << row << ", column " << column;
  }
}

template <typename A, typename W>
void check_epilogues(void (*gemm)(const Gemm&), bool narrow) {
  const std::pair<Epilogue, std::function<double(double)>> epilogues[] = {
      {Epilogue::Store, [](double v) { return v; }},
      {Epilogue::Gelu, gelu_tanh},
      {Epilogue::Relu, [](double v) { return std::max(v, 0.0); }}};
  for (const Layer& layer : kLayers) {
    for (const int rows : kRowCounts) {
      const Problem<A, W> problem(layer, rows, narrow);
      for (const auto& [epilogue, fn] : epilogues) {
        SCOPED_TRACE(testing::Message() << "layer " << &layer - kLayers << ", " << rows << " rows, epilogue "
                                        << static_cast<int>(epilogue));
        const auto before = random_values<A>(rows * problem.ldo(), 5);
        auto out = before;
        problem.run(gemm, problem.gemm(out.data(), epilogue));
        std::vector<double> wanted = problem.wanted;
        for (double& v : wanted) v = fn(v);
        expect_rows(out, before, problem.ldo(), wanted, layer.columns());
        if (testing::Test::HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(CpuKernels, GemmBf16IsTheProductThroughItsEpilogue) {
  if (!dots_bf16()) GTEST_SKIP() << kNoDots;
  check_epilogues<Bf16, Bf16>(kernels().gemm_bf16, kernels().narrow_bf16);
}
TEST_P(CpuKernels, GemmFloatBf16IsTheProductThroughItsEpilogue) {
  check_epilogues<float, Bf16>(kernels().gemm_float_bf16, kernels().narrow_float);
}
TEST_P(CpuKernels, GemmFloatIsTheProductThroughItsEpilogue) {
  check_epilogues<float, float>(kernels().gemm_float, kernels().narrow_float);
}

// Rows of each sample of a residual product, as they are kept: some samples keep none.
template <typename A>
struct Kept {
  Kept(int samples, int rows, int columns) : rows(rows), stride(columns + 3) {
    for (int b = 0; b < samples; ++b) {
      before.push_back(random_values<A>(size_t(rows) * stride, 20 + b));
      values.push_back(before.back());
    }
    for (int b = 0; b < samples; ++b) features.push_back(b == 2 ? nullptr : values[b].data());
  }
  // `row` of all samples' is `v`, others are what they were.
  void expect(const std::vector<const double*>& v, int columns) const {
    for (size_t b = 0; b < values.size(); ++b) {
      std::vector<double> wanted;
      for (int row = 0; row < rows; ++row) {
        const double* const computed = features[b] ? v[b * rows + row] : nullptr;
        for (int c = 0; c < columns; ++c)
          wanted.push_back(computed ? computed[c] : value_of(before[b][row * stride + c]));
      }
      expect_rows(values[b], before[b], stride, wanted, columns);
    }
  }

  int rows;
  int64_t stride;
  std::vector<std::vector<A>> before, values;
  std::vector<void*> features;
};

// Samples of 5 rows each; the problem's rows go to scattered rows of the residual stream, in order.
template <typename A, typename W>
void check_residual(void (*gemm)(const Gemm&), bool narrow) {
  constexpr int kSampleRows = 5, kSamples = 4;
  const std::vector<int> scattered = {0, 1, 3, 4, 7, 9, 10, 12, 14, 15, 16, 17, 18, 19};
  enum class Extra { None, Gates, Kept };  // what is kept has gates, too
  for (const Layer& layer : kLayers) {
    const int columns = layer.columns();
    const auto gate_values = random_values<float>(size_t{kSamples} * columns, 6);
    std::vector<const float*> gates;
    for (int b = 0; b < kSamples; ++b) gates.push_back(gate_values.data() + b * columns);
    for (const int rows : {1, 2, 6, 13, 14}) {
      const Problem<A, W> problem(layer, rows, narrow);
      for (const bool gathered : {false, true}) {
        for (const Extra extra : {Extra::None, Extra::Gates, Extra::Kept}) {
          SCOPED_TRACE(testing::Message()
                       << "layer " << &layer - kLayers << ", " << rows << " rows, gathered " << gathered
                       << ", extra " << static_cast<int>(extra));
          const bool gated = extra != Extra::None;
          const auto before = random_values<float>(kSamples * kSampleRows * problem.ldo(), 7);
          auto out = before;
          Kept<A> kept(kSamples, kSampleRows, columns);
          Gemm call = problem.gemm(out.data(), Epilogue::Residual);
          call.rows = gathered ? scattered.data() : nullptr;
          call.sample_rows = kSampleRows;
          call.gates = gated ? gates.data() : nullptr;
          call.features = extra == Extra::Kept ? kept.features.data() : nullptr;
          call.feature_stride = kept.stride;
          problem.run(gemm, call);
          std::vector<double> wanted;
          std::vector<const double*> computed(size_t{kSamples} * kSampleRows, nullptr);
          for (int row = 0; row < kSamples * kSampleRows; ++row) {
            for (int c = 0; c < columns; ++c) wanted.push_back(before[row * problem.ldo() + c]);
          }
          for (int r = 0; r < rows; ++r) {
            const int row = gathered ? scattered[r] : r;
            if (extra == Extra::Kept) computed[row] = problem.wanted.data() + r * columns;
            for (int c = 0; c < columns; ++c) {
              wanted[row * columns + c] +=
                  problem.wanted[r * columns + c] * (gated ? gates[row / kSampleRows][c] : 1.0f);
            }
          }
          expect_rows(out, before, problem.ldo(), wanted, columns);
          kept.expect(computed, columns);
          if (testing::Test::HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST_P(CpuKernels, GemmBf16AddsToTheResidualRowsInFloat32) {
  if (!dots_bf16()) GTEST_SKIP() << kNoDots;
  check_residual<Bf16, Bf16>(kernels().gemm_bf16, kernels().narrow_bf16);
}
TEST_P(CpuKernels, GemmFloatBf16AddsToTheResidualRows) {
  check_residual<float, Bf16>(kernels().gemm_float_bf16, kernels().narrow_float);
}
TEST_P(CpuKernels, GemmFloatAddsToTheResidualRows) {
  check_residual<float, float>(kernels().gemm_float, kernels().narrow_float);
}

// Any cut of rows and panels into calls gives the bits of one call.
template <typename A, typename W>
void check_cuts(void (*gemm)(const Gemm&), bool narrow) {
  constexpr int kRows = 49;
  for (const Layer& layer : kLayers) {
    const Problem<A, W> problem(layer, kRows, narrow);
    const auto before = random_values<A>(kRows * problem.ldo(), 5);
    auto whole = before;
    problem.run(gemm, problem.gemm(whole.data(), Epilogue::Gelu));
    for (const int rows : kRowCounts) {
      for (const size_t panels : {1, 3, 4}) {
        auto parts = before;
        for (int row = 0; row < kRows; row += rows) {
          Gemm part = problem.gemm(parts.data(), Epilogue::Gelu);
          part.row_begin = row;
          part.row_end = std::min(kRows, row + rows);
          problem.run(gemm, part, panels);
        }
        ASSERT_TRUE(same_bits(parts, whole))
            << "layer " << &layer - kLayers << ", " << rows << " rows and " << panels << " panels a call";
      }
    }
  }
}

TEST_P(CpuKernels, GemmBf16RowsAndColumnsDependOnThemselvesAlone) {
  if (!dots_bf16()) GTEST_SKIP() << kNoDots;
  check_cuts<Bf16, Bf16>(kernels().gemm_bf16, kernels().narrow_bf16);
}
TEST_P(CpuKernels, GemmFloatBf16RowsAndColumnsDependOnThemselvesAlone) {
  check_cuts<float, Bf16>(kernels().gemm_float_bf16, kernels().narrow_float);
}
TEST_P(CpuKernels, GemmFloatRowsAndColumnsDependOnThemselvesAlone) {
  check_cuts<float, float>(kernels().gemm_float, kernels().narrow_float);
}

// 65000 has no business in a sum: what lies in the padding of a row must be met by a zero weight.
TEST_P(CpuKernels, GemmIgnoresThePaddingOfItsRows) {
  Problem<float, float> problem(kLayers[5], 6, kernels().narrow_float);  // heads of 7 inputs
  std::vector<float> out(6 * problem.ldo()), again = out;
  problem.run(kernels().gemm_float, problem.gemm(out.data(), Epilogue::Store));
  for (int row = 0; row < 6; ++row) {
    for (const int pad : {7, 15, 23}) problem.a[row * problem.layer.lda() + pad] = 65000;
  }
  problem.run(kernels().gemm_float, problem.gemm(again.data(), Epilogue::Store));
  EXPECT_TRUE(same_bits(out, again));
}

// Activations of trained models reach some hundreds: GELU must neither overflow nor turn into NaN.
TEST_P(CpuKernels, GeluOfLargeValuesIsExact) {
  const std::vector<float> bias = {-1e4f, -300,  -40, -12, -6, -3, -1,  -1e-4f,
                                   0,     1e-4f, 1,   3,   6,  40, 300, 1e4f};
  const std::vector<float> weights(32, 0.0f), a(2, 0.0f);
  const Panel panel = {weights.data(), bias.data(), 0, 16};
  const int all = 0;
  std::vector<float> out(16);
  kernels().gemm_float({.a = a.data(),
                        .lda = 2,
                        .row_end = 1,
                        .panels = &panel,
                        .num_panels = 1,
                        .segments = &all,
                        .num_segments = 1,
                        .segment_pairs = 1,
                        .epilogue = Epilogue::Gelu,
                        .out = out.data(),
                        .ldo = 16});
  for (int c = 0; c < 16; ++c) {
    EXPECT_NEAR(out[c], gelu_tanh(bias[c]), 1e-6 * std::max(1.0f, std::abs(bias[c]))) << bias[c];
  }
}

// One head of N tokens; q, k and v lie side by side in rows of `stride`, as the engine has them.
template <typename T>
struct Head {
  Head(int N, int D, uint64_t index, float scale = 1.5f)
      : N(N), D(D), values(random_values<T>(size_t(N) * 3 * D, index, scale)) {}

  // softmax(q k^T / sqrt(D)) v, (N, D)
  std::vector<double> wanted() const {
    std::vector<double> out(size_t(N) * D), p(N);
    const auto at = [&](int part, int n, int d) { return value_of(values[(n * 3 + part) * D + d]); };
    for (int n = 0; n < N; ++n) {
      for (int m = 0; m < N; ++m) {
        p[m] = 0;
        for (int d = 0; d < D; ++d) p[m] += at(0, n, d) * at(1, m, d) / std::sqrt(double(D));
      }
      const double most = *std::max_element(p.begin(), p.end());
      for (double& x : p) x = std::exp(x - most);
      const double sum = std::accumulate(p.begin(), p.end(), 0.0);
      for (int m = 0; m < N; ++m) {
        for (int d = 0; d < D; ++d) out[n * D + d] += p[m] / sum * at(2, m, d);
      }
    }
    return out;
  }

  int N, D;
  std::vector<T> values;  // (N, 3, D)
};

int padded(int D) { return (D + 1) / 2 * 2; }

// The head as one of `heads` in wider rows; its neighbours and the scratch memory hold `around`.
template <typename T>
std::vector<T> attend(void (*attention)(const Attention&), const Head<T>& head, int heads, int slot,
                      float around) {
  const int N = head.N, D = head.D, stride = padded(heads * 3 * D), out_stride = heads * padded(D);
  std::vector<T> qkv(size_t(N) * stride + 1), out(size_t(N) * out_stride), result;
  for (T& x : qkv) set(x, around);
  for (T& x : out) set(x, around);
  for (int n = 0; n < N; ++n) {
    std::copy_n(head.values.begin() + n * 3 * D, 3 * D, qkv.begin() + n * stride + slot * 3 * D);
  }
  const size_t bytes = attention_scratch(N, D, sizeof(T));
  const auto scratch = allocate(bytes);
  std::fill_n(static_cast<float*>(scratch.get()), bytes / sizeof(float), around);
  const T* q = qkv.data() + slot * 3 * D;
  attention({.q = q,
             .k = q + D,
             .v = q + 2 * D,
             .stride = stride,
             .out = out.data() + slot * padded(D),
             .out_stride = out_stride,
             .N = N,
             .D = D,
             .scale = 1.0f / std::sqrt(static_cast<float>(D)),
             .scratch = scratch.get()});
  T left;
  set(left, around);
  for (int i = 0; i < N * out_stride; ++i) {
    const int within = i % out_stride - slot * padded(D);
    if (within >= 0 && within < padded(D)) {
      result.push_back(out[i]);
    } else {
      EXPECT_EQ(value_of(out[i]), value_of(left)) << "wrote beyond its head";
    }
  }
  return result;  // (N, padded(D))
}

constexpr int kTokens[] = {1, 5, 16, 49, 64, 130}, kHeadSizes[] = {3, 8, 32, 40, 72};

template <typename T>
void check_attention(void (*attention)(const Attention&)) {
  for (const int N : kTokens) {
    for (const int D : kHeadSizes) {
      SCOPED_TRACE(testing::Message() << "N = " << N << ", D = " << D);
      const Head<T> head(N, D, 8);
      const std::vector<T> out = attend(attention, head, 1, 0, 0);
      std::vector<T> zero(out.size());
      expect_rows(out, zero, padded(D), head.wanted(), D);  // zero in the padding
      if (testing::Test::HasFatalFailure()) return;
    }
  }
}

TEST_P(CpuKernels, AttentionBf16IsTheWeightedMeanOfTheValues) {
  if (!dots_bf16()) GTEST_SKIP() << kNoDots;
  check_attention<Bf16>(kernels().attention_bf16);
}
TEST_P(CpuKernels, AttentionFloatIsTheWeightedMeanOfTheValues) {
  check_attention<float>(kernels().attention_float);
}

template <typename T>
void check_heads(void (*attention)(const Attention&)) {
  for (const int N : kTokens) {
    for (const int D : kHeadSizes) {
      const Head<T> head(N, D, 8);
      const std::vector<T> alone = attend(attention, head, 1, 0, 0);
      for (const int slot : {0, 1, 2}) {
        EXPECT_TRUE(same_bits(attend(attention, head, 3, slot, 3e4f), alone))
            << "N = " << N << ", D = " << D << ", slot " << slot;
      }
    }
  }
}

TEST_P(CpuKernels, AttentionBf16DependsOnItsHeadAlone) {
  if (!dots_bf16()) GTEST_SKIP() << kNoDots;
  check_heads<Bf16>(kernels().attention_bf16);
}
TEST_P(CpuKernels, AttentionFloatDependsOnItsHeadAlone) { check_heads<float>(kernels().attention_float); }

// Scores in the thousands, which float32 holds to 1e-3 or so: mostly one token takes all, and the others'
// exponentials vanish without NaN.
TEST_P(CpuKernels, AttentionOfLargeScoresPicksTheLargest) {
  const Head<float> head(49, 8, 8, /*scale=*/60);
  const std::vector<float> out = attend(kernels().attention_float, head, 1, 0, 0);
  expect_rows(out, out, 8, head.wanted(), 8, /*tolerance=*/1e-3);
}

// Rows that lie far from zero, since the variance is of what is left without the mean.
template <typename T>
void check_norm(void (*norm)(T*, const float*, const float*, const float*, int, float)) {
  constexpr float kEps = 1e-3f;
  for (const int C : {1, 8, 15, 16, 24, 63, 64, 100, 1152}) {
    std::vector<float> x(C), shift(C), scale(C);
    fill_normal(x, 1, C, 0);
    fill_normal(shift, 2, C, 0);
    fill_normal(scale, 3, C, 0);
    for (float& value : x) value = 0.1f * value + 3;
    std::vector<T> out(C + 1);
    set(out[C], 99);
    norm(out.data(), x.data(), shift.data(), scale.data(), C, kEps);
    EXPECT_EQ(value_of(out[C]), 99) << "wrote beyond its row";
    const double mean = std::accumulate(x.begin(), x.end(), 0.0) / C;
    double variance = 0;
    for (const float value : x) variance += (value - mean) * (value - mean) / C;
    for (int i = 0; i < C; ++i) {
      const double wanted = (x[i] - mean) / std::sqrt(variance + kEps) * (1 + scale[i]) + shift[i];
      // The mean of 3 is exact to 2^-22; the variance is near 0.01.
      EXPECT_NEAR(value_of(out[i]), wanted, (sizeof(T) == 2 ? 4e-3 : 2e-5) * std::max(1.0, std::abs(wanted)))
          << "C = " << C << ", i = " << i;
    }
  }
}

TEST_P(CpuKernels, NormBf16IsTheModulatedNorm) {
  if (!dots_bf16()) GTEST_SKIP() << kNoDots;
  check_norm<Bf16>(kernels().norm_bf16);
}
TEST_P(CpuKernels, NormFloatIsTheModulatedNorm) { check_norm<float>(kernels().norm_float); }

TEST_P(CpuKernels, DotIsTheSumOfProducts) {
  for (const int size : {1, 2, 15, 16, 17, 24, 72, 100}) {
    auto a = random_values<float>(size + 1, 10), b = random_values<float>(size + 1, 11);
    a[size] = 1e6f;  // beyond the end
    double wanted = 0;
    for (int i = 0; i < size; ++i) wanted += double{a[i]} * b[i];
    EXPECT_NEAR(kernels().dot(a.data(), b.data(), size), wanted, 1e-5) << "size " << size;
  }
}

// Pages of this process that are in memory.
int64_t resident_bytes() {
  int64_t all = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> all >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

TEST(Arena, WhatIsNotTouchedTakesNoMemory) {
  Arena arena;
  const int64_t before = resident_bytes();
  for (int i = 0; i < 50; ++i) arena.take(size_t{10} << 20);
  EXPECT_LT(resident_bytes() - before, int64_t{4} << 20);
}

TEST(Arena, PiecesAreZeroAlignedAndApart) {
  Arena arena;
  std::byte* last_end = nullptr;
  for (const size_t bytes : {1, 64, 65, 3 << 20, 300 << 20, 7}) {
    auto* piece = static_cast<std::byte*>(arena.take(bytes));
    EXPECT_EQ(reinterpret_cast<uintptr_t>(piece) % 64, 0u);
    EXPECT_EQ(piece[0], std::byte{0});
    EXPECT_EQ(piece[bytes - 1], std::byte{0});
    piece[0] = piece[bytes - 1] = std::byte{1};  // the next would see it, were it not apart
    if (last_end != nullptr) {
      EXPECT_EQ(last_end[-1], std::byte{1});
    }
    last_end = piece + bytes;
  }
}

}  // namespace
}  // namespace dydit::cpu
