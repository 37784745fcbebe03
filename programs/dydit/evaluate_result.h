// What dydit evaluate says of a set of images: one JSON object, text for people, a line for a paper.
#pragma once

#include <nlohmann/json.hpp>

#include "dydit/eval/metrics.h"

namespace dydit {

/// The metrics that are there, by the keys of the verb's result.
nlohmann::ordered_json metrics_json(const Metrics& metrics);

/// Prints a whole result.
void print_evaluation(const nlohmann::ordered_json& result);

}  // namespace dydit
