// The recorded models of golden/sit, golden/uvit and golden/skip_dit, and what was recorded of their forward.
#pragma once

#include <ostream>
#include <string>

#include <ATen/ATen.h>

#include "dydit/model/checkpoint.h"
#include "tests/support/golden.h"

namespace dydit::test {

struct Family {
  const char *name, *model, *forward;
  bool labels, routers;
  const char* all_channels = "out";  // with the recorded gates, those that nothing was trained for included

  Checkpoint checkpoint() const { return load_checkpoint(golden_path(std::string(model) + ".safetensors")); }
  at::Tensor recorded(const std::string& tensor) const { return golden(forward, tensor); }
  /// By the clock that the network is given: U-ViT's are recorded in [0, 1].
  at::Tensor times(const DiTConfig& config) const {
    const at::Tensor t = recorded("t");
    return config.objective.clock == ModelClock::Scaled ? t * 999.0 : t;
  }
};
inline constexpr Family kSiT = {"SiT", "sit/model", "sit/forward", true, true, "out_all_channels"};
inline constexpr Family kUViT = {"UViT", "uvit/uncond", "uvit/uncond_forward", false, true};
inline constexpr Family kUViTWithLabels = {"UViTWithLabels", "uvit/cond", "uvit/cond_forward", true, true};
inline constexpr Family kSkipDiT = {"SkipDiT", "skip_dit/model", "skip_dit/forward", true, false};

inline void PrintTo(const Family& family, std::ostream* out) { *out << family.name; }

}  // namespace dydit::test
