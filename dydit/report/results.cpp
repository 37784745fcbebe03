#include "dydit/report/results.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <functional>

#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "dydit/base/error.h"
#include "dydit/io/json.h"
#include "dydit/io/text.h"
#include "dydit/report/html.h"
#include "dydit/report/scatter.h"

namespace dydit {
namespace {

using nlohmann::json;

constexpr size_t kMaxBytes = 16 << 20;
constexpr int kMaxDepth = 8;
constexpr size_t kHashShown = 10;

// What is measured, in the order of the columns. Estimates without bias may be negative.
struct Measure {
  const char* key;
  const char* name;
  bool signs = false;
};
constexpr std::array kMeasures = {Measure{"fid", "FID", true},
                                  Measure{"fid_infinity", "FID at N = infinity", true},
                                  Measure{"sfid", "sFID", true},
                                  Measure{"kid", "KID", true},
                                  Measure{"is", "IS"},
                                  Measure{"is_all", "IS, all in one"},
                                  Measure{"precision", "precision"},
                                  Measure{"recall", "recall"},
                                  Measure{"class_agreement", "class agreement"}};
constexpr std::string_view kError = "_error";  // ends the key of a measure's
constexpr std::array<std::string_view, 7> kOtherNumbers = {"n",
                                                           "reference_n",
                                                           "steps",
                                                           "cfg_scale",
                                                           "gmacs_per_image",
                                                           "static_gmacs_per_image",
                                                           "seconds_per_image"};
// Of the generated images' distances to their nearest reference image, in an object "nearest".
constexpr std::array<std::string_view, 3> kNearest = {"median", "reference_median", "closer_share"};
constexpr std::array<std::string_view, 16> kTexts = {
    "name",     "model",     "model_sha256",    "plan",
    "sampler",  "mode",      "labels",          "seed",
    "protocol", "extractor", "extractor_dtype", "weights_sha256",
    "resize",   "reference", "reference_split", "reference_sha256"};
// Known, and left to the file.
constexpr std::array<std::string_view, 16> kNotShown = {"fid_raw",
                                                        "fid_without_group",
                                                        "fid_infinity_slope",
                                                        "sfid_raw",
                                                        "sfid_without_group",
                                                        "eta",
                                                        "cfg_channels",
                                                        "dtype",
                                                        "engine",
                                                        "vae",
                                                        "images",
                                                        "images_sha256",
                                                        "images_split",
                                                        "version",
                                                        "processes",
                                                        "seconds"};

bool is_among(std::span<const std::string_view> keys, std::string_view key) {
  return std::find(keys.begin(), keys.end(), key) != keys.end();
}
const Measure* find_measure(std::string_view key) {
  const auto found = std::find_if(kMeasures.begin(), kMeasures.end(),
                                  [&](const Measure& measure) { return measure.key == key; });
  return found == kMeasures.end() ? nullptr : &*found;
}

std::string number_text(double value) { return fmt::format("{:.5g}", value); }

std::optional<double> number_of(const EvalResult& result, std::string_view key) {
  const auto found = result.numbers.find(key);
  return found == result.numbers.end() ? std::nullopt : std::optional(found->second);
}
std::string text_of(const EvalResult& result, std::string_view key) {
  const auto found = result.texts.find(key);
  return found == result.texts.end() ? "" : found->second;
}

void take_number(const std::string& key, const json& value, bool signs, EvalResult& result) {
  DYDIT_CHECK(value.is_number() && (signs || value.get<double>() >= 0), "{}: {} is {}; a number{} is wanted",
              result.file, key, shown(value), signs ? "" : " from 0");
  result.numbers[key] = value.get<double>();
}

void read_value(const std::string& key, const json& value, EvalResult& result) {
  const Measure* measure = find_measure(key);
  const bool error = key.ends_with(kError) && find_measure(key.substr(0, key.size() - kError.size()));
  if (measure || error || is_among(kOtherNumbers, key)) {
    take_number(key, value, measure && measure->signs, result);
  } else if (key == "nearest") {
    DYDIT_CHECK(value.is_object(), "{}: nearest is {}; an object {{...}} is wanted", result.file,
                shown(value));
    for (const auto& [inner, number] : value.items()) {
      if (is_among(kNearest, inner)) {
        take_number("nearest_" + inner, number, /*signs=*/false, result);
      } else {
        result.passed_over.push_back("nearest_" + inner);
      }
    }
  } else if (is_among(kTexts, key)) {
    result.texts[key] = value.is_string() ? value.get<std::string>() : json_text(value);
  } else if (key == "warnings") {
    for (const json& warning : value.is_array() ? value : json::array({value}))
      result.warnings.push_back(warning.is_string() ? warning.get<std::string>() : json_text(warning));
  } else if (!is_among(kNotShown, key)) {
    result.passed_over.push_back(key);
  }
}

// What two results have in common when their numbers compare.
std::string ground_of(const EvalResult& result) {
  const std::string hash = text_of(result, "reference_sha256");
  return json::array({text_of(result, "extractor_dtype"), text_of(result, "reference_split"),
                      text_of(result, "protocol"), text_of(result, "extractor"),
                      text_of(result, "weights_sha256"), text_of(result, "resize"),
                      number_of(result, "n").value(), hash.empty() ? text_of(result, "reference") : hash,
                      number_of(result, "reference_n").value_or(0)})
      .dump(-1, ' ', false, json::error_handler_t::replace);
}

std::string said(const EvalResult& result, std::string_view key, std::string_view before) {
  const std::string text = text_of(result, key);
  return text.empty() ? "" : fmt::format("{}{}", before, text);
}

// "N = 5000, extractor resnet56 (weights 1234567890), resize bicubic, protocol adm, ..."
std::string ground_text(const EvalResult& result) {
  std::string text = fmt::format("N = {:.0f} images, extractor {}", number_of(result, "n").value(),
                                 text_of(result, "extractor"));
  if (const std::string hash = text_of(result, "weights_sha256"); !hash.empty())
    text += fmt::format(" (weights {})", hash.substr(0, kHashShown));
  text += said(result, "extractor_dtype", ", ") + said(result, "resize", ", resize ") +
          said(result, "protocol", ", protocol ") + said(result, "reference", ", reference ") +
          said(result, "reference_split", ", split ");
  if (const std::string hash = text_of(result, "reference_sha256"); !hash.empty())
    text += fmt::format(" (sha256 {})", hash.substr(0, kHashShown));
  if (const auto n = number_of(result, "reference_n")) text += fmt::format(" of {:.0f} images", *n);
  return text;
}

// What the result is called in plots.
std::string label_of(const EvalResult& result) {
  const std::string name = text_of(result, "name"), plan = text_of(result, "plan");
  return (name.empty() ? result.file : name) + (plan.empty() ? "" : ", " + plan);
}

std::string measured_text(const EvalResult& result, const Measure& key) {
  const auto value = number_of(result, key.key),
             error = number_of(result, std::string(key.key).append(kError));
  if (!value) return "";
  return number_text(*value) + (error ? " ± " + number_text(*error) : "");
}

// Of one measure against the cost; nothing where no result has both.
std::string measure_plot(std::span<const EvalResult> group, const Measure& measure) {
  Plot plot{.x_name = "GMACs an image, required", .y_name = measure.name};
  size_t drawn = 0, measured = 0;
  for (const EvalResult& result : group) {
    const auto x = number_of(result, "gmacs_per_image"), y = number_of(result, measure.key);
    measured += y ? 1 : 0;
    if (!x || !y) continue;
    ++drawn;
    const std::string model = std::filesystem::path(text_of(result, "model")).filename().string();
    auto series = std::find_if(plot.series.begin(), plot.series.end(),
                               [&](const PlotSeries& one) { return one.name == model; });
    if (series == plot.series.end()) series = plot.series.insert(series, {.name = model});
    series->points.push_back({*x, *y, number_of(result, std::string(measure.key).append(kError)).value_or(0),
                              label_of(result),
                              fmt::format("{}: {} {}, {} GMACs", label_of(result), measure.name,
                                          measured_text(result, measure), number_text(*x))});
  }
  if (drawn == 0) return "";
  plot.alt =
      fmt::format("{} of {} results against GMACs an image; the table has all values", measure.name, drawn);
  std::string caption = fmt::format("{} against required work. {}. Bars are the errors that evaluate gave.",
                                    measure.name, ground_text(group[0]));
  if (measured > drawn) caption += fmt::format(" Not drawn, without a cost: {}.", measured - drawn);
  return html_figure(plot_svg(plot), caption);
}

// Columns that no result has are left out.
class GroupTable {
 public:
  explicit GroupTable(std::span<const EvalResult> group) : group_(group), rows_(group.size()) {
    add("result", label_of);
  }

  void add(const std::string& name, const std::function<std::string(const EvalResult&)>& cell_of) {
    std::vector<std::string> cells;
    for (const EvalResult& result : group_) cells.push_back(cell_of(result));
    if (std::all_of(cells.begin(), cells.end(), [](const std::string& cell) { return cell.empty(); })) return;
    columns_.push_back(name);
    for (size_t i = 0; i < rows_.size(); ++i) rows_[i].push_back(cells[i]);
  }
  void add_text(const std::string& name, const char* key) {
    add(name, [&](const EvalResult& result) { return text_of(result, key); });
  }
  void add_number(const std::string& name, const char* key) {
    add(name, [&](const EvalResult& result) {
      const auto value = number_of(result, key);
      return value ? number_text(*value) : "";
    });
  }
  std::string html(const std::string& caption) const { return html_table(caption, columns_, rows_); }

 private:
  std::span<const EvalResult> group_;
  std::vector<std::string> columns_;
  std::vector<std::vector<std::string>> rows_;
};

// What was measured, and of what.
std::string group_tables(std::span<const EvalResult> group) {
  GroupTable measures(group), runs(group);
  for (const Measure& key : kMeasures)
    measures.add(key.name, [&](const EvalResult& result) { return measured_text(result, key); });
  measures.add_number("nearest, median", "nearest_median");
  measures.add_number("reference's", "nearest_reference_median");
  measures.add_number("share that is closer", "nearest_closer_share");
  measures.add_number("GMACs", "gmacs_per_image");
  measures.add("of static", [](const EvalResult& result) {
    const auto part = number_of(result, "gmacs_per_image"),
               whole = number_of(result, "static_gmacs_per_image");
    return part && whole && *whole > 0 ? fmt::format("{:.1f} %", 100 * *part / *whole) : "";
  });
  measures.add_number("seconds", "seconds_per_image");
  runs.add_text("model", "model");
  runs.add("sha256",
           [](const EvalResult& result) { return text_of(result, "model_sha256").substr(0, kHashShown); });
  runs.add_text("sampler", "sampler");
  runs.add_number("steps", "steps");
  runs.add_number("guidance", "cfg_scale");
  runs.add_text("mode", "mode");
  runs.add_text("labels", "labels");
  runs.add_text("plan", "plan");
  runs.add_text("seed", "seed");
  runs.add("file", [](const EvalResult& result) { return result.file; });
  return measures.html("What was measured, and the cost of an image. " + ground_text(group[0])) +
         runs.html("Of what it was measured");
}

}  // namespace

EvalResult parse_eval_result(std::string_view text, const std::string& file) {
  DYDIT_CHECK(text.size() <= kMaxBytes, "{}: a result of {} bytes; at most {} are read", file, text.size(),
              kMaxBytes);
  const json value = read_json(text, kMaxDepth, file);
  EvalResult result{.file = file};
  DYDIT_CHECK(
      value.is_object() && std::any_of(kMeasures.begin(), kMeasures.end(),
                                       [&](const Measure& key) { return value.contains(key.key); }),
      "{}: holds neither fid nor another measure: what dydit evaluate --json printed, or a file of dydit "
      "calibrate is wanted",
      file);
  for (const auto& [key, inner] : value.items()) read_value(key, inner, result);
  DYDIT_CHECK(result.numbers.contains("n") && result.texts.contains("extractor"),
              "{}: {} is missing, without which its numbers compare with no others; measure again with dydit "
              "evaluate",
              file, result.numbers.contains("n") ? "extractor" : "n");
  return result;
}

std::vector<std::vector<EvalResult>> comparable_groups(std::span<const EvalResult> results) {
  std::vector<std::vector<EvalResult>> groups;
  for (const EvalResult& result : results) {
    const auto group = std::find_if(groups.begin(), groups.end(),
                                    [&](const auto& one) { return ground_of(one[0]) == ground_of(result); });
    if (group == groups.end()) {
      groups.push_back({result});
    } else {
      group->push_back(result);
    }
  }
  return groups;
}

std::string results_html(std::span<const EvalResult> results) {
  const auto groups = comparable_groups(results);
  std::string body;
  if (groups.size() > 1) {
    body += html_paragraph(fmt::format(
        "These results fall into {} groups that differ in extractor, resize, number of images, protocol or "
        "reference. Numbers of different groups do not compare, so each has plots of its own.",
        groups.size()));
  }
  for (const auto& group : groups) {
    body += fmt::format(
        "<h3>{}</h3>\n",
        html_text(fmt::format("{}, N = {:.0f}{}", text_of(group[0], "extractor"),
                              number_of(group[0], "n").value(), said(group[0], "reference", ", against "))));
    for (const char* key : {"fid", "kid"}) body += measure_plot(group, *find_measure(key));
    body += group_tables(group);
    for (const EvalResult& result : group) {
      for (const std::string& warning : result.warnings)
        body += fmt::format("<p class=\"warning\">{}: {}</p>\n", html_text(result.file), html_text(warning));
      if (!result.passed_over.empty())
        body +=
            html_paragraph(fmt::format("{}: {} keys are not known here and were passed over: {}", result.file,
                                       result.passed_over.size(), fmt::join(result.passed_over, ", ")));
    }
  }
  return body;
}

std::string plan_curves_html(std::span<const PlanCurve> curves) {
  std::string body = html_paragraph(
      "Plans of caches and guidance, measured by dydit calibrate: how far the images lie from those of the "
      "same model with everything computed. That is closeness, not quality, and curves of different models "
      "or "
      "runs do not compare.");
  for (const PlanCurve& curve : curves) {
    PlotSeries series{.look = PlotLook::Joined};
    std::vector<std::vector<std::string>> rows;
    for (const CalibratedPlan& plan : curve.plans) {
      const std::string row = fmt::format("{}", rows.size() + 1);
      series.points.push_back(
          {plan.cost, plan.error, plan.error_se, row,
           fmt::format("{}: {}, work {:.4f}, error {:.4f}", row, plan.name, plan.cost, plan.error)});
      rows.push_back({row, plan.name, fmt::format("{:.4f}", plan.cost), fmt::format("{:.4f}", plan.cost_max),
                      fmt::format("{:.5f} ± {:.5f}", plan.error, plan.error_se),
                      plan.psnr ? fmt::format("{:.2f}", *plan.psnr) : ""});
    }
    const Plot plot{.alt = fmt::format("Error of {} plans against their work; the table has all values",
                                       curve.plans.size()),
                    .x_name = "work, share of the static model's",
                    .y_name = "relative L2 to the full run",
                    .series = {series}};
    body += fmt::format("<h3>{}</h3>\n", html_text(curve.file));
    body +=
        html_figure(plot_svg(plot),
                    fmt::format("{}. Numbers are rows of the table; bars are standard errors.", curve.run));
    const std::vector<std::string> columns = {"row", "plan", "work", "at most", "relative L2", "PSNR, dB"};
    body += html_table(fmt::format("The plans of {}", curve.file), columns, rows);
  }
  return body;
}

}  // namespace dydit
