// Consistency distillation (LCM: Luo et al. 2023, arXiv 2310.04378): at every point of the teacher's
// path a student learns to say where the path ends, so a few evaluations make an image.
#pragma once

#include <ATen/core/Tensor.h>

#include "dydit/base/enum_names.h"

namespace dydit {

/// How far a student is from its target. L2: (f - g)^2. Huber: sqrt((f - g)^2 + .001^2) - .001.
enum class ConsistencyLoss { L2, Huber };
inline constexpr EnumNames<ConsistencyLoss, 2> kConsistencyLossNames = {
    "consistency loss", {{"l2", ConsistencyLoss::L2}, {"huber", ConsistencyLoss::Huber}}};

// x, eps (B, C, side, side) float32; t (B) int64 in 0..999 on their device; factors in float32.

/// The image that eps says: x0 = (x - sqrt(1 - a) eps) / sqrt(a), never clamped.
at::Tensor lcm_x0(const at::Tensor& x, const at::Tensor& eps, const at::Tensor& t);
/// f(x, eps, t)
at::Tensor lcm_consistency(const at::Tensor& x, const at::Tensor& eps, const at::Tensor& t);
/// Where the teacher's step from t of the grid arrives: max(t - 20, 0).
at::Tensor lcm_previous(const at::Tensor& t);
/// That step of DDIM, guidance on x0 and eps of all channels: c + w (c - u), w (1) or (B, 1, 1, 1), is the
/// guidance scale less 1. eps_uncond may be undefined: w is not read, the step is unguided.
at::Tensor lcm_teacher_step(const at::Tensor& x, const at::Tensor& eps_cond, const at::Tensor& eps_uncond,
                            const at::Tensor& t, const at::Tensor& w);
/// f, g (B, C, side, side) -> (B), the mean over all but the batch.
at::Tensor consistency_loss(const at::Tensor& f, const at::Tensor& g, ConsistencyLoss loss);

}  // namespace dydit
