// What inspect says of plans: one for a run, or those that a calibration wrote.
#pragma once

#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

#include "cli.h"
#include "dydit/calibrate/plan_set.h"

namespace dydit {

/// Whether a file's text is one of these; what it holds is printed.
bool is_plan_text(std::string_view text);
void inspect_plan_text(const Cli& cli, const std::string& path, std::string_view text);

/// A row of a table of measured plans, as JSON, and the rows as people read them.
nlohmann::json measured_plan_json(const MeasuredPlan& plan);
void print_measured_plans(const std::vector<MeasuredPlan>& plans);

}  // namespace dydit
