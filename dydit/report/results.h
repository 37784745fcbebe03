// Quality against cost: what dydit evaluate and dydit calibrate measured, as plots and tables. Only results
// that can be compared share a plot.
#pragma once

#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace dydit {

/// What `dydit evaluate --json` says of one set of images: its keys, as far as they are known here.
struct EvalResult {
  std::string file;
  std::map<std::string, double, std::less<>> numbers = {};
  std::map<std::string, std::string, std::less<>> texts = {};
  std::vector<std::string> warnings = {};
  std::vector<std::string> passed_over = {};  // keys that are not known
};

/// Throws Error in one line that begins with `file`: no JSON (NaN is none), no result, none that compares
/// with any other (without n or extractor), a value of another kind.
EvalResult parse_eval_result(std::string_view text, const std::string& file);

/// Those of one protocol, extractor, resize, number of images and reference, in the order of the first of
/// each.
std::vector<std::vector<EvalResult>> comparable_groups(std::span<const EvalResult> results);

/// A heading for each group: plots of FID and of KID against GMACs an image, all values in a table, warnings.
std::string results_html(std::span<const EvalResult> results);

/// A plan of `dydit calibrate`.
struct CalibratedPlan {
  double cost = 0, cost_max = 0;  // shares of the static model's work
  double error = 0, error_se = 0;
  std::optional<double> psnr = {};
  std::string name;
};

/// The plans of one file, which are for one model and one run.
struct PlanCurve {
  std::string file;
  std::string run;  // what was run and measured, in words
  std::vector<CalibratedPlan> plans = {};
};

/// A plot and a table of each.
std::string plan_curves_html(std::span<const PlanCurve> curves);

}  // namespace dydit
