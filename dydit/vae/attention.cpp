#include "dydit/vae/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "dydit/conv/conv.h"
#include "dydit/engine/cpu/packed_linear.h"

namespace dydit::vae {
namespace {

using cpu::ceil_div;
using cpu::even;
using cpu::kPanel;

constexpr int kStrip = 48;  // rows whose weights a thread holds
constexpr int kTokens =
    1024;  // whose values are multiplied at a time, so that their panels stay in the cache
constexpr float kZeros[kPanel] = {};

int padded(int N) { return ceil_div(N, kPanel) * kPanel; }

}  // namespace

// Keys are panels of 16 tokens, C inputs each, values panels of 16 channels, N inputs each.
void attend(Team& team, const Map& qkv, Map& out) {
  const int N = qkv.H * qkv.W, C = qkv.C / 3, key_panels = ceil_div(N, kPanel), key_inputs = even(C),
            value_panels = ceil_div(C, kPanel), value_inputs = padded(N);
  const auto keys_memory = cpu::allocate(sizeof(float) * key_panels * kPanel * key_inputs);
  const auto values_memory = cpu::allocate(sizeof(float) * value_panels * kPanel * value_inputs);
  auto* const keys = static_cast<float*>(keys_memory.get());
  auto* const values = static_cast<float*>(values_memory.get());
  const auto* const q = qkv.as<float>();
  team.run(key_panels, [&](int panel, int) {
    const int first = panel * kPanel, count = std::min(kPanel, N - first);
    for (int i = 0; i < count; ++i) {
      const float *k = q + (first + i) * qkv.stride + C, *v = k + C;
      float* const key = keys + int64_t{first} * key_inputs + i;
      for (int c = 0; c < C; ++c) key[c * kPanel] = k[c];
      for (int c = 0; c < C; ++c)
        values[(int64_t{c / kPanel} * value_inputs + first + i) * kPanel + c % kPanel] = v[c];
    }
  });
  std::vector<cpu::Panel> key_list, value_list;
  for (int p = 0; p < key_panels; ++p)
    key_list.push_back(
        {keys + int64_t{p} * kPanel * key_inputs, kZeros, p * kPanel, std::min(kPanel, N - p * kPanel)});
  for (int p = 0; p < value_panels; ++p)
    value_list.push_back(
        {values + int64_t{p} * kPanel * value_inputs, kZeros, p * kPanel, std::min(kPanel, C - p * kPanel)});

  std::vector<cpu::Buffer> strips(team.threads());
  for (cpu::Buffer& strip : strips) strip.reserve(sizeof(float) * kStrip * value_inputs);
  team.run(ceil_div(N, kStrip), [&](int task, int thread) {
    const int first = task * kStrip, rows = std::min(kStrip, N - first), whole = 0;
    auto* const weights = strips[thread].as<float>();
    float* const to = out.as<float>() + out.stride * first;
    cpu::Gemm scores;
    scores.a = q + first * qkv.stride;
    scores.lda = qkv.stride;
    scores.row_end = rows;
    scores.panels = key_list.data();
    scores.num_panels = key_panels;
    scores.segments = &whole;
    scores.num_segments = 1;
    scores.segment_pairs = key_inputs / 2;
    scores.out = weights;
    scores.ldo = value_inputs;
    cpu::kernels().gemm_float(scores);
    float inverse[kStrip];
    for (int i = 0; i < rows; ++i) {
      float* const row = weights + int64_t{i} * value_inputs;
      inverse[i] = kernels().exponentials(row, N, 1 / std::sqrt(static_cast<float>(C)));
      std::fill(row + N, row + value_inputs, 0.0f);
    }
    for (int token = 0; token < N; token += kTokens) {
      const int pair = token / 2;
      cpu::Gemm sums;
      sums.a = weights + token;
      sums.lda = value_inputs;
      sums.row_end = rows;
      sums.panels = value_list.data();
      sums.num_panels = value_panels;
      sums.segments = &pair;
      sums.num_segments = 1;
      sums.segment_pairs = std::min(kTokens, value_inputs - token) / 2;
      sums.epilogue = token == 0 ? cpu::Epilogue::Store : cpu::Epilogue::Residual;
      sums.out = to;
      sums.ldo = out.stride;
      cpu::kernels().gemm_float(sums);
    }
    for (int i = 0; i < rows; ++i) kernels().scale_row(to + i * out.stride, C, inverse[i]);
  });
}

double attention_bytes(int H, int W, int C, int threads) {
  const double tokens = padded(H * W), packed = tokens * (even(C) + padded(C));
  return sizeof(float) * (packed + static_cast<double>(threads) * kStrip * tokens);
}

}  // namespace dydit::vae
