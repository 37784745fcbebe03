// The width plan as a picture: what is on over timesteps and blocks, and the work that leaves.
#pragma once

#include <string>
#include <string_view>

#include "dydit/plan/run_plan.h"

namespace dydit {

/// An SVG document of a plan with one step or more, timesteps ascending: two maps of blocks by timesteps, for
/// the shares of heads and of channel groups that are on, above the work of a forward as a share of the
/// static model's (all tokens counted, or those that the capacity rule keeps).
std::string plan_svg(const RunPlan& plan, std::string_view title);

/// The same as CSV: timestep, work_share, heads_0 ... heads_{L-1}, groups_0 ... groups_{L-1} (counts that are
/// on).
std::string plan_csv(const RunPlan& plan);

/// Work of step `step` as a share of the static model's.
double step_work_share(const RunPlan& plan, int step);

}  // namespace dydit
