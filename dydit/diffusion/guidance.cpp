#include "dydit/diffusion/guidance.h"

#include <algorithm>
#include <cassert>

namespace dydit {

void guide(std::span<float> cond, std::span<const float> uncond, float scale) {
  for (size_t i = 0; i < cond.size(); ++i) cond[i] = uncond[i] + scale * (cond[i] - uncond[i]);
}

void apply_guidance(at::Tensor& out, float scale, int guided_channels) {
  assert(out.is_contiguous() && out.size(0) % 2 == 0 && guided_channels <= out.size(1));
  const int64_t n = out.size(0) / 2, row = out.stride(0), guided = guided_channels * out.stride(1);
  for (int64_t b = 0; b < n; ++b) {
    float *cond = out.data_ptr<float>() + b * row, *uncond = cond + n * row;
    guide({cond, static_cast<size_t>(guided)}, {uncond, static_cast<size_t>(guided)}, scale);
    std::copy_n(cond, guided, uncond);
  }
}

}  // namespace dydit
