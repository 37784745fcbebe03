// One loop; see the header.
#include "dydit/diffusion/guidance.h"

#include <cassert>

namespace dydit {

void apply_guidance(at::Tensor& out, float scale, int guided_channels) {
  assert(out.is_contiguous() && out.size(0) % 2 == 0 && guided_channels <= out.size(1));
  const int64_t n = out.size(0) / 2, row = out.stride(0), guided = guided_channels * out.stride(1);
  float* data = out.data_ptr<float>();
  for (int64_t b = 0; b < n; ++b) {
    float *cond = data + b * row, *uncond = data + (n + b) * row;
    for (int64_t i = 0; i < guided; ++i) {
      const float value = uncond[i] + scale * (cond[i] - uncond[i]);
      cond[i] = uncond[i] = value;
    }
  }
}

}  // namespace dydit
