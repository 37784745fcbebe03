// Flags of verbs that sample: which branches are computed, and when guidance runs.
#pragma once

#include <string>

#include <nlohmann/json.hpp>

#include "cli.h"
#include "dydit/model/checkpoint.h"
#include "dydit/pipeline/request.h"
#include "dydit/plan/policies.h"

namespace dydit {

struct PlanFlags {
  std::string file, cache = "none";
  GuideOptions guide;
  double cache_memory_gb = 0;

  void add(Cli& cli);
  /// Fills in the request's plan, once all else of it is known. `chosen`: whether the command says which
  /// timesteps there are (else a plan file does).
  void resolve(Cli& cli, const DiTConfig& config, bool chosen, Request& request,
               SamplingOptions& options) const;
  /// How the plan was said, for the record: empty where there is none.
  nlohmann::json said(const Request& request) const;
};

}  // namespace dydit
