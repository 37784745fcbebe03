// Passes over flat float32 buffers: on the CPU loops in fixed blocks, so that results do not depend on the
// number of threads; on another device the same formulas with LibTorch's operators.
#pragma once

#include <ATen/core/Tensor.h>

namespace dydit::flat {

/// L2 norm, summed in double.
double l2_norm(const at::Tensor& x);

struct AdamWFactors {
  float beta1, beta2, eps;
  float decay;             // 1 - lr weight_decay
  float step_size;         // lr / (1 - beta1^step)
  float root_correction2;  // sqrt(1 - beta2^step)
};

/// One AdamW step of `values` by `grads`.
void adamw(const at::Tensor& values, const at::Tensor& grads, const at::Tensor& exp_avg,
           const at::Tensor& exp_avg_sq, const AdamWFactors& factors);

/// average <- average + (1 - decay) (values - average). Written as decay average + (1 - decay) values it
/// would shrink: in float32 the two factors do not add up to 1.
void move_average(const at::Tensor& average, const at::Tensor& values, double decay);

/// The same for any device.
namespace plain {
double l2_norm(const at::Tensor& x);
void adamw(const at::Tensor& values, const at::Tensor& grads, const at::Tensor& exp_avg,
           const at::Tensor& exp_avg_sq, const AdamWFactors& factors);
void move_average(const at::Tensor& average, const at::Tensor& values, double decay);
}  // namespace plain

}  // namespace dydit::flat
