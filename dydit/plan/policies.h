// Who fills in a plan: the training-free caches of the field, as tables.
#pragma once

#include <span>
#include <string>

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

  bool is_default() const { return from == kNumTrainTimesteps - 1 && to == 0 && every == 1; }
};

/// What --help says of them.
inline constexpr const char* kPolicyHelp =
    "none, fora:N, taylor:N,O, lagrange:N,O, chebyshev:N,O, stack:N,O, delta:N[,B,K], l2c:FILE[,THETA], "
    "skip:N[,B]";

/// The plan that `policy` ("taylor:3,1") makes for these timesteps (ascending). Throws UsageError for a
/// policy that is unknown or does not fit, Error for a file of L2C's routers that cannot be read.
PlanSpec policy_plan(const std::string& policy, const DiTConfig& config, std::span<const double> timesteps);

/// Puts `guide` into a plan that has guidance everywhere. Where guidance comes on again, what was kept has
/// the conditional rows alone: that step computes everything, and what was kept is forgotten. Throws
/// UsageError for options that cannot be meant.
void apply_guide(const GuideOptions& guide, const Objective& objective, PlanSpec& spec);

}  // namespace dydit
