// Who fills in a plan: the training-free caches of the field, as tables.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "dydit/base/timesteps.h"
#include "dydit/plan/plan_spec.h"

namespace dydit {

/// When guidance is paid for, for policies that say nothing of it.
struct GuideOptions {
  // Full where to <= t <= from, else off. In continuous time t is 1000 times the noise share.
  int from = kNumTrainTimesteps - 1;
  int to = 0;
  // Full at the first two steps that compute everything, and at every so-manieth of them (the third, the
  // sixth,
  // ... with 3); elsewhere a forecast of order 1. 1: everywhere.
  int every = 1;
  // The second row is the conditional one at the level of the largest patches, in place of the null class's
  // (FlexiDiT, weak guidance), and s becomes 1 + (s - 1) / 2.5; not at steps that are at that level
  // themselves.
  bool weak = false;

  bool is_default() const { return from == kNumTrainTimesteps - 1 && to == 0 && every == 1 && !weak; }
};

/// Which steps have larger patches: the first, noisiest ones. One of the two is empty.
struct LevelSchedule {
  std::vector<int> steps = {};  // how many steps are at level 1 or above, at level 2 or above, ...
  std::vector<int> from =
      {};  // from which t on they are, in continuous time in thousandths of the noise share

  bool is_default() const { return steps.empty() && from.empty(); }
};

/// How a plan is asked for without a file: caches, patch sizes, guidance.
struct PlanPolicy {
  std::string cache = "none";
  LevelSchedule levels = {};
  GuideOptions guide = {};

  bool is_default() const { return cache == "none" && levels.is_default() && guide.is_default(); }
};

/// What --help says of caches.
inline constexpr const char* kPolicyHelp =
    "none, fora:N, taylor:N,O, lagrange:N,O, chebyshev:N,O, stack:N,O, delta:N[,B,K], l2c:FILE[,THETA], "
    "skip:N[,B]";

/// The plan that `policy` ("taylor:3,1") makes for these timesteps (ascending). Throws UsageError for a
/// policy that is unknown or does not fit, Error for a file of L2C's routers that cannot be read.
PlanSpec policy_plan(const std::string& policy, const DiTConfig& config, std::span<const double> timesteps);

/// Puts larger patches into a plan that has none. A step whose patches are others than those of the one
/// before computes everything, since what was kept is of those. Throws UsageError for a schedule that the
/// model's levels and the plan's steps cannot follow.
void apply_levels(const LevelSchedule& levels, const DiTConfig& config, PlanSpec& spec);

/// Puts `guide` into a plan that has guidance everywhere, of scale `scale`. Where guidance comes on again,
/// what was kept has the conditional rows alone: that step computes everything, and what was kept is
/// forgotten. Throws UsageError for options that cannot be meant.
void apply_guide(const GuideOptions& guide, const DiTConfig& config, float scale, PlanSpec& spec);

}  // namespace dydit
