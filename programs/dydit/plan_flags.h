// Flags of verbs that sample: which branches are computed, and when guidance runs.
#pragma once

#include <string>

#include <nlohmann/json.hpp>

#include "cli.h"
#include "dydit/calibrate/plan_set.h"
#include "dydit/model/checkpoint.h"
#include "dydit/plan/policies.h"

namespace dydit {

struct PlanFlags {
  std::string file;
  PlanPolicy policy;
  double cache_memory_gb = 0;
  double budget = 0;
  std::string plans;
  bool force = false;

  void add(Cli& cli);
  /// --budget and what belongs to it; the verb has --timesteps.
  void add_budget(Cli& cli);
  /// Fills in the plan of `options`, once all else of them is known. `chosen`: whether the command says which
  /// timesteps there are (else a plan file does).
  void resolve(Cli& cli, const Checkpoint& checkpoint, bool chosen, GenerateOptions& options);
  /// The file that the plan comes from; empty: from none.
  std::string input(const Checkpoint& checkpoint) const;
  /// How the plan was said, for the record: empty where there is none.
  nlohmann::json said(const Request& request) const;

 private:
  void check_policy(Cli& cli, const GenerateOptions& options) const;
  void take_budget(Cli& cli, const Checkpoint& checkpoint, GenerateOptions& options);

  std::string weak_steps_, level_from_;  // comma-separated
  bool has_budget_ = false;              // the verb takes one
  MeasuredPlan chosen_;                  // by the budget
};

}  // namespace dydit
