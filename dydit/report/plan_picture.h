// The width plan as a picture: what is on over timesteps and blocks, and the work that leaves.
#pragma once

#include <string>
#include <string_view>

#include "dydit/plan/run_plan.h"

namespace dydit {

/// An SVG document of a plan with one step or more, timesteps ascending: two maps of blocks by timesteps, for
/// the shares of heads and of channel groups that are on where the branch is computed, what stands in its
/// place where it is not; when guidance runs, if not always; and the work of a step as a share of the static
/// model's (all tokens counted, or those that the capacity rule keeps).
std::string plan_svg(const RunPlan& plan, std::string_view title);

/// The same as CSV: timestep, work_share, heads_0 ... heads_{L-1}, groups_0 ... groups_{L-1} (counts that are
/// on); of a plan with actions or guidance of its own also attn_0 ..., mlp_0 ... and guide, as plan files say
/// them.
std::string plan_csv(const RunPlan& plan);

/// Work of step `step`, of its rows where guidance is not always paid for, as a share of the static model's.
double step_work_share(const RunPlan& plan, int step);

}  // namespace dydit
