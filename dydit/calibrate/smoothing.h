// Factors that move outliers of activations into weights before both are rounded to 8 bits (SmoothQuant, Xiao
// et al. 2023, equation 4), from images that the model makes itself.
#pragma once

#include <ATen/core/Tensor.h>

#include "dydit/base/progress.h"
#include "dydit/pipeline/generate.h"

namespace dydit {

/// max|x_c|^exponent / max|w_c|^(1 - exponent) of the channels of qkv's and fc1's inputs, (L, 2, C) float32;
/// 1 where either is zero. The activations are those of the request's images, all of their steps.
at::Tensor smoothing_factors(const Checkpoint& checkpoint, const GenerateOptions& options, double exponent,
                             const ProgressFn& on_progress, const CancelFlag* cancel);

}  // namespace dydit
