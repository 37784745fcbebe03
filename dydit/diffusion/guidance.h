// Classifier-free guidance: the batch is [x, x] with labels [y, null].
#pragma once

#include <span>

#include <ATen/core/Tensor.h>

namespace dydit {

/// cond <- uncond + scale (cond - uncond).
void guide(std::span<float> cond, std::span<const float> uncond, float scale);

/// out (2n, channels, H, W), conditional half first: the first `guided_channels` channels of both halves
/// become uncond + scale (cond - uncond), in place; the other channels keep their own half's value.
void apply_guidance(at::Tensor& out, float scale, int guided_channels);

}  // namespace dydit
