// Losses on hidden features: which of them a run has, and how much they count.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>
#include <nlohmann/json.hpp>

#include "dydit/base/enum_names.h"

namespace dydit {

enum class Align {
  None,
  Self,        // to a deeper block of the model's own average on less noise (SRA, arXiv 2505.02831)
  Encoder,     // to a frozen network's features of the clean image (REPA, U-REPA)
  Dispersive,  // away from the other images of the batch (arXiv 2506.09027)
};
inline constexpr EnumNames<Align, 4> kAlignNames = {"align",
                                                    {{"none", Align::None},
                                                     {"self", Align::Self},
                                                     {"encoder", Align::Encoder},
                                                     {"dispersive", Align::Dispersive}}};

/// A frozen network whose features of the clean image are aligned to.
struct FeatureEncoder {
  std::string sha256;          // of its weights
  int side = 0;                // of the RGB images that it takes
  int grid = 0, channels = 0;  // of the map that it makes
  /// (B, 3, side, side) in [-1, 1] on the CPU -> (B, grid * grid, channels), row by row.
  std::function<at::Tensor(const at::Tensor& x0)> features;
};

inline constexpr size_t kMostHooks = 2;  // one alignment and the per-layer loss

/// Defaults: those of the papers' code, for 8 blocks.
struct HookOptions {
  Align align = Align::None;
  int block = 3;                // whose output is aligned, counted from 1
  int teacher_block = 6;        // Self: whose output of the average is the target
  double weight = 0;            // 0: that of the kind
  int interval = 200;           // Self: the teacher's t lies below the model's by up to so many thousandths
  double manifold = 3;          // Encoder: weight of the similarities of an image's tokens beside the cosine
  double manifold_inter = 0;    // Encoder: that of the similarities of a batch's images
  double tau = 0.5;             // Dispersive
  int64_t until = 0;            // the first step without alignment; 0: to the end
  double plr = 0;               // weight of the per-layer loss; 0: none
  FeatureEncoder encoder = {};  // of Encoder

  bool any() const { return align != Align::None || plr > 0; }
  bool aligns_at(int64_t step) const { return align != Align::None && (until == 0 || step < until); }
  /// Whether a sample's loss depends on the others of its batch.
  bool couples_samples() const {
    return align == Align::Dispersive || (align == Align::Encoder && manifold_inter > 0);
  }
  double align_weight() const {
    if (weight > 0) return weight;
    return align == Align::Self ? 0.04 : 0.5;
  }
};

/// Columns of the log, in the order of StepTerms::hooks.
std::vector<std::string> hook_names(const HookOptions& options);

/// What must agree between a run and its resumption; empty where there is no hook.
nlohmann::json hooks_to_json(const HookOptions& options);

}  // namespace dydit
