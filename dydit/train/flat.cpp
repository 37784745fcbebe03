// See the header.
#include "dydit/train/flat.h"

#include <cmath>
#include <numeric>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

namespace dydit::flat {
namespace {

constexpr int64_t kBlock = 1 << 16;  // elements a task

// fn(begin, end) over [0, size) in blocks.
template <typename Fn>
void for_blocks(int64_t size, const Fn& fn) {
  const int64_t blocks = (size + kBlock - 1) / kBlock;
  at::parallel_for(0, blocks, 1, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) fn(b * kBlock, std::min(size, (b + 1) * kBlock));
  });
}

}  // namespace

double l2_norm(const at::Tensor& x) {
  if (!x.is_cpu()) return plain::l2_norm(x);
  const float* values = x.data_ptr<float>();
  std::vector<double> partial((x.numel() + kBlock - 1) / kBlock);
  for_blocks(x.numel(), [&](int64_t begin, int64_t end) {
    double sum = 0;
    for (int64_t i = begin; i < end; ++i) sum += static_cast<double>(values[i]) * values[i];
    partial[begin / kBlock] = sum;
  });
  return std::sqrt(std::accumulate(partial.begin(), partial.end(), 0.0));
}

void adamw(const at::Tensor& values, const at::Tensor& grads, const at::Tensor& exp_avg,
           const at::Tensor& exp_avg_sq, const AdamWFactors& factors) {
  if (!values.is_cpu()) return plain::adamw(values, grads, exp_avg, exp_avg_sq, factors);
  const auto [beta1, beta2, eps, decay, step_size, root_correction2] = factors;
  float* w = values.data_ptr<float>();
  const float* g = grads.data_ptr<float>();
  float *m = exp_avg.data_ptr<float>(), *v = exp_avg_sq.data_ptr<float>();
  for_blocks(values.numel(), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      m[i] += (1.0f - beta1) * (g[i] - m[i]);
      v[i] = beta2 * v[i] + (1.0f - beta2) * g[i] * g[i];
      w[i] = w[i] * decay - step_size * m[i] / (std::sqrt(v[i]) / root_correction2 + eps);
    }
  });
}

void move_average(const at::Tensor& average, const at::Tensor& values, double decay) {
  if (!average.is_cpu()) return plain::move_average(average, values, decay);
  const auto take = static_cast<float>(1.0 - decay);
  float* a = average.data_ptr<float>();
  const float* w = values.data_ptr<float>();
  for_blocks(average.numel(), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) a[i] += take * (w[i] - a[i]);
  });
}

namespace plain {

double l2_norm(const at::Tensor& x) {
  return at::linalg_vector_norm(x, 2, {}, /*keepdim=*/false, at::kDouble).item<double>();
}

void adamw(const at::Tensor& values, const at::Tensor& grads, const at::Tensor& exp_avg,
           const at::Tensor& exp_avg_sq, const AdamWFactors& factors) {
  exp_avg.lerp_(grads, 1.0f - factors.beta1);
  exp_avg_sq.mul_(factors.beta2).addcmul_(grads, grads, 1.0f - factors.beta2);
  const at::Tensor divisor = exp_avg_sq.sqrt().div_(factors.root_correction2).add_(factors.eps);
  values.mul_(factors.decay).addcdiv_(exp_avg, divisor, -factors.step_size);
}

void move_average(const at::Tensor& average, const at::Tensor& values, double decay) {
  average.lerp_(values, 1.0 - decay);
}

}  // namespace plain

}  // namespace dydit::flat
