// T-Stitch (Pan et al. 2024, arXiv 2402.14167): on one path a small model takes the noisy steps and a large
// one the rest, both of them trained apart. Nothing is trained for it: what dynamic width is to be held
// against.
#pragma once

#include <cstdint>
#include <vector>

#include "dydit/model/checkpoint.h"
#include "dydit/pipeline/request.h"
#include "dydit/plan/run_plan.h"

namespace dydit {

/// The small model takes an evaluation iff the noise share is at least 1 - ratio (t / 1000 of a DiT).
struct Stitch {
  const Checkpoint* small = nullptr;
  double ratio = 0.4;

  bool takes(const Objective& objective, double timestep) const;
  /// The small model's mode in a request of the large one: its own where the large one has no routers.
  Mode mode(const DiTConfig& large, const Request& request) const;
};

/// Throws UsageError for models that cannot go one path, or a share that is none.
void check_stitch(const Checkpoint& large, const Stitch& stitch);

/// A run of both, one entry a step in the order of the timesteps.
struct StitchedPlan {
  RunPlan plan;                // each step as its own model takes it; the configuration is the large one's
  std::vector<uint8_t> small;  // 1: the small model's
};

/// Of the large model's plan, guidance included, and the small one's widths at the same timesteps. Throws
/// UsageError where the plan keeps or forecasts anything: no feature of one model is the other's.
StitchedPlan stitched_plan(const Stitch& stitch, RunPlan large, const RunPlan& small);
/// The same from the checkpoints, for records.
StitchedPlan stitched_plan(const Checkpoint& large, const Stitch& stitch, const Request& request);

/// Multiply-adds of one image, both rows where guidance is paid for: a bound from above as plan_macs.
struct StitchedMacs {
  int64_t small = 0, large = 0;
};
StitchedMacs stitched_macs(const StitchedPlan& stitched, const DiTConfig& small, bool guided);

}  // namespace dydit
