// Which of the compiled kernels run on this processor, and what they do at best.
#include <algorithm>
#include <array>
#include <numeric>
#include <vector>

#include "dydit/base/isa.h"
#include "dydit/base/team.h"
#include "dydit/base/timer.h"
#include "dydit/engine/cpu/int8.h"
#include "dydit/engine/cpu/kernels.h"
#include "dydit/engine/engine.h"

namespace dydit {
namespace cpu {

namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
namespace avx512_bf16 {
extern const Kernels kernels;
}
namespace amx {
extern const Kernels kernels;
}
namespace avx_vnni {
extern const Int8Kernels int8_kernels;
}
namespace avx512_vnni {
extern const Int8Kernels int8_kernels;
}
namespace avx512_bf16_vnni {
extern const Int8Kernels int8_kernels;
}

const Kernels& kernels() {
  if (active_isa() >= Isa::Amx) return amx::kernels;
  if (active_isa() >= Isa::Avx512Bf16) return avx512_bf16::kernels;
  return active_isa() >= Isa::Avx512 ? avx512::kernels : avx2::kernels;
}

const Int8Kernels* int8_kernels() {
  const Isa isa = active_isa();
  if (!has_vnni(isa)) return nullptr;
  return isa >= Isa::Avx512Bf16 ? &avx512_bf16_vnni::int8_kernels
         : isa >= Isa::Avx512   ? &avx512_vnni::int8_kernels
                                : &avx_vnni::int8_kernels;
}

size_t attention_scratch(int N, int D, size_t element) {
  const size_t tokens = (N + kPanel - 1) / kPanel * kPanel, channels = (D + kPanel - 1) / kPanel * kPanel;
  const size_t keys = tokens * ((D + 1) / 2 * 2), values = channels * ((N + 1) / 2 * 2),
               weights = kAttentionRows * tokens;
  const size_t scores = element == sizeof(float) ? 0 : weights * sizeof(float);  // else in the weights' place
  return (keys + values + weights) * element + scores + 64;
}

}  // namespace cpu

double measure_peak_macs(const Level& level, int threads, double seconds) {
  const auto peak = level.weights == at::kChar           ? cpu::int8_kernels()->peak
                    : level.activations == at::kBFloat16 ? cpu::kernels().peak_bf16
                                                         : cpu::kernels().peak_float;
  Team team(threads);
  std::vector<std::array<float, 16>> sinks(threads);  // one cache line a thread
  std::vector<int64_t> macs(threads);
  double best = 0;
  const Timer whole;
  while (whole.seconds() < seconds) {
    const Timer timer;
    team.run(threads, [&](int task, int) { macs[task] = peak(250, sinks[task].data()); });
    best = std::max(
        best, static_cast<double>(std::accumulate(macs.begin(), macs.end(), int64_t{0})) / timer.seconds());
  }
  return best;
}

}  // namespace dydit
