#include "evaluate_result.h"

#include <optional>
#include <string>
#include <vector>

#include <fmt/ranges.h>

#include "streams.h"

namespace dydit {

using nlohmann::ordered_json;

namespace {

void put(ordered_json& result, const char* key, const std::optional<double>& value) {
  if (value) result[key] = *value;
}

}  // namespace

ordered_json metrics_json(const Metrics& metrics) {
  ordered_json result = {{"n", metrics.n}};
  const auto distance = [&](const std::string& name, const std::optional<Distance>& found) {
    if (!found) return;
    result[name] = found->value;
    result[name + "_raw"] = found->raw;
    if (found->error) result[name + "_error"] = *found->error;
    if (!found->without_group.empty()) result[name + "_without_group"] = found->without_group;
  };
  distance("fid", metrics.fid);
  distance("sfid", metrics.sfid);
  if (metrics.fid_infinity) {
    result["fid_infinity"] = metrics.fid_infinity->intercept;
    result["fid_infinity_slope"] = metrics.fid_infinity->slope;
  }
  put(result, "kid", metrics.kid);
  put(result, "kid_error", metrics.kid_error);
  put(result, "is", metrics.inception_score);
  put(result, "is_error", metrics.inception_score_error);
  put(result, "is_all", metrics.inception_score_all);
  put(result, "precision", metrics.precision);
  put(result, "precision_error", metrics.precision_error);
  put(result, "recall", metrics.recall);
  put(result, "recall_error", metrics.recall_error);
  if (metrics.torch_fidelity_score) {
    result["torch_fidelity_is"] = metrics.torch_fidelity_score->mean;
    result["torch_fidelity_is_std"] = metrics.torch_fidelity_score->deviation;
  }
  if (metrics.torch_fidelity_kid) {
    result["torch_fidelity_kid"] = metrics.torch_fidelity_kid->mean;
    result["torch_fidelity_kid_std"] = metrics.torch_fidelity_kid->deviation;
  }
  put(result, "class_agreement", metrics.class_agreement);
  if (metrics.nearest)
    result["nearest"] = {{"median", metrics.nearest->median},
                         {"reference_median", metrics.nearest->reference_median},
                         {"closer_share", metrics.nearest->closer_share}};
  return result;
}

namespace {

std::string with_error(const ordered_json& result, const std::string& key, int digits) {
  std::string text = fmt::format("{:.{}f}", result[key].get<double>(), digits);
  if (result.contains(key + "_error"))
    text += fmt::format(" +- {:.{}f}", result[key + "_error"].get<double>(), digits);
  return text;
}

// One line as a paper would have it.
std::string summary_of(const ordered_json& result) {
  std::vector<std::string> parts;
  const auto add = [&](const char* key, const char* name, int digits) {
    if (result.contains(key)) parts.push_back(fmt::format("{} {}", name, with_error(result, key, digits)));
  };
  const std::string extractor = result["extractor"];
  add("fid", "FID", 3);
  add("sfid", "sFID", 3);
  if (result.contains("kid"))
    parts.push_back(fmt::format("KIDx1000 {:.3f} +- {:.3f}", 1e3 * result["kid"].get<double>(),
                                1e3 * result.value("kid_error", 0.0)));
  add("is", extractor == "lite0" ? "IS(lite0)" : "IS", 2);
  add("precision", "P", 3);
  add("recall", "R", 3);
  add("class_agreement", "agreement", 3);
  std::string text = fmt::format("{} ({}, {}, resize {}, N {}", fmt::join(parts, ", "),
                                 result["protocol"].get<std::string>(), extractor,
                                 result["resize"].get<std::string>(), result["n"].get<int64_t>());
  if (result.contains("reference_n"))
    text += fmt::format(" against {}", result["reference_n"].get<int64_t>());
  return text + ")";
}

}  // namespace

void print_evaluation(const ordered_json& result) {
  for (const auto& [key, value] : result.items()) {
    if (value.is_object() || value.is_array()) continue;
    print_out("{:<22} {}\n", key,
              value.is_string()         ? value.get<std::string>()
              : value.is_number_float() ? fmt::format("{:.6g}", value.get<double>())
                                        : value.dump());
  }
  if (result.contains("nearest"))
    print_out(
        "{:<22} median {:.4g}, of the reference among itself {:.4g}; {:.2f} % closer than its closest 1 %\n",
        "nearest", result["nearest"]["median"].get<double>(),
        result["nearest"]["reference_median"].get<double>(),
        100 * result["nearest"]["closer_share"].get<double>());
  for (const auto& warning : result["warnings"]) print_out("warning: {}\n", warning.get<std::string>());
  print_out("{}\n", summary_of(result));
}

}  // namespace dydit
