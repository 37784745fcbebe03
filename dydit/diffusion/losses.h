// The diffusion loss of DiT: mse of the noise plus the variational bound of the learned variance, in bits. In
// continuous time the mse of noise or velocity alone.
#pragma once

#include <ATen/core/Tensor.h>

#include "dydit/base/objective.h"

namespace dydit {

/// Per-sample terms, (B), mean over channels and pixels.
struct DiffusionLoss {
  at::Tensor mse;  // of what is predicted
  at::Tensor vb;   // improved DDPM, eq. 4 and 5, in bits; zero for models without learned sigma
};

/// x_t = alpha x0 + sigma noise.  x0, noise (B, C, H, W) float32; t (B) int64 in 0..999 of a table (DDPM, eq.
/// 4), else times of the objective's clock in any floating type.
at::Tensor q_sample(const at::Tensor& x0, const at::Tensor& t, const at::Tensor& noise,
                    const Objective& objective = {});

/// What the mse is the distance from: `noise`, or the velocity. (B, C, H, W)
at::Tensor loss_target(const at::Tensor& x0, const at::Tensor& t, const at::Tensor& noise,
                       const Objective& objective = {});

/// `output` (B, C or 2C, H, W) is the model's for x_t. vb sees the mean detached: t > 0 the KL divergence
/// from the true posterior, t = 0 the negative log-likelihood of x0 under a discretised Gaussian. The
/// schedule is the 1000-step one. In continuous time the first C channels alone are looked at. (SiT, eq. 5)
DiffusionLoss diffusion_loss(const at::Tensor& output, const at::Tensor& x0, const at::Tensor& x_t,
                             const at::Tensor& t, const at::Tensor& noise, const Objective& objective = {});

}  // namespace dydit
