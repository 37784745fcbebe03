// Samples of a pixel model as 8-bit images.
#pragma once

#include <ATen/core/Tensor.h>

#include "dydit/io/image.h"

namespace dydit {

/// sample (3, H, W) float32 in about [-1, 1] -> clamp(127.5 x + 128, 0, 255), truncated, as DiT and ADM do.
Image to_image(const at::Tensor& sample);

}  // namespace dydit
