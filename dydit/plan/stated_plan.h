// Plans that stand in other JSON; of one without its model, what is known is what it states.
#pragma once

#include <string>
#include <string_view>

#include <nlohmann/json_fwd.hpp>

#include "dydit/plan/plan_spec.h"

namespace dydit {

struct StatedPlan {
  DiTConfig config;  // depth, heads and tokens as the plan has them; all else default
  PlanSpec spec;
};

/// Read as strictly as parse_plan does, and held against check_spec in a run with guidance.
StatedPlan parse_stated_plan(std::string_view text, const std::string& name);
StatedPlan parse_stated_plan(const nlohmann::json& json, const std::string& name);
/// parse_plan of what was read already.
PlanSpec parse_plan(const nlohmann::json& json, const DiTConfig& config, const std::string& name);

}  // namespace dydit
