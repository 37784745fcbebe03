// The diffusion loss of DiT: mse of the noise plus the variational bound of the learned variance, in bits.
#pragma once

#include <ATen/core/Tensor.h>

namespace dydit {

/// Per-sample terms, (B), mean over channels and pixels.
struct DiffusionLoss {
  at::Tensor mse;  // of eps
  at::Tensor vb;   // improved DDPM, eq. 4 and 5, in bits; zero for models without learned sigma
};

/// x_t = sqrt(a_t) x0 + sqrt(1 - a_t) noise.  x0, noise (B, C, H, W) float32; t (B) int64 in 0..999. (DDPM,
/// eq. 4)
at::Tensor q_sample(const at::Tensor& x0, const at::Tensor& t, const at::Tensor& noise);

/// `output` (B, C or 2C, H, W) is the model's for x_t. vb sees the mean detached: t > 0 the KL divergence
/// from the true posterior, t = 0 the negative log-likelihood of x0 under a discretised Gaussian. The
/// schedule is the 1000-step one.
DiffusionLoss diffusion_loss(const at::Tensor& output, const at::Tensor& x0, const at::Tensor& x_t,
                             const at::Tensor& t, const at::Tensor& noise);

}  // namespace dydit
