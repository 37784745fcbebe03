#include "dydit/report/model_report.h"

#include <algorithm>
#include <numeric>

#include <fmt/ranges.h>

#include "dydit/base/version.h"
#include "dydit/model/macs.h"
#include "dydit/report/plan_picture.h"
#include "dydit/report/scatter.h"

namespace dydit {
namespace {

constexpr int kSampleSide = 152, kMapSide = 72;  // CSS pixels
constexpr size_t kNamesShown = 24;               // of classes, before they are folded
constexpr size_t kTableSteps = 11;

double mean_of(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}
std::string percent(double share) { return fmt::format("{:.1f} %", 100 * share); }

template <typename Get>
double mean_over(const std::vector<ReportSample>& samples, const Get& get) {
  double sum = 0;
  for (const ReportSample& sample : samples) sum += get(sample);
  return sum / static_cast<double>(samples.size());
}

std::string file_name(const Checkpoint& checkpoint) {
  const std::filesystem::path& path = checkpoint.path;
  return (path.has_filename() ? path : path.parent_path()).filename().string();
}

std::string name_of(const ReportSample& sample) {
  return sample.class_name.empty() ? fmt::format("class {}", sample.label) : sample.class_name;
}

std::string tile(const std::string& value, std::string_view name) {
  return fmt::format("<li><b>{}</b><span>{}</span></li>\n", html_text(value), html_text(name));
}

// What one looks for first.
std::string lead(const ModelReport& report) {
  const Checkpoint& checkpoint = report.checkpoint;
  std::string tiles =
      tile(fmt::format("{:.4g} M", static_cast<double>(checkpoint.num_parameters()) / 1e6), "parameters") +
      tile(fmt::format("{:.4g}", static_cast<double>(static_macs(checkpoint.config)) / 1e9),
           "GMACs, complete forward");
  if (checkpoint.lambda) tiles += tile(fmt::format("{}", *checkpoint.lambda), "lambda it was tuned for");
  if (report.run) {
    const std::vector<ReportSample>& samples = report.run->samples;
    tiles += tile(percent(mean_over(samples, [](const auto& s) { return s.required_share; })),
                  "of the static work, images below") +
             tile(fmt::format("{:.3g} s", mean_over(samples, [](const auto& s) { return s.seconds; })),
                  "an image, this machine");
  }
  return fmt::format("<p class=\"under\">{}. Written by dydit {}.</p>\n<ul class=\"tiles\">\n{}</ul>\n",
                     html_text(model_name(checkpoint.config)), kVersion, tiles);
}

HtmlSection model_section(const ModelReport& report) {
  const Checkpoint& checkpoint = report.checkpoint;
  const DiTConfig& config = checkpoint.config;
  std::vector<Fact> facts = {
      {"file", checkpoint.path.string()},
      {"format", checkpoint.format},
      {"model", model_name(config)},
      {"blocks", fmt::format("{} of hidden size {}, {} heads of {}, MLP {} in {} groups", config.depth,
                             config.hidden_size, config.num_heads, config.head_size(), config.mlp_hidden,
                             config.num_heads)},
      {"input", fmt::format("{} channels of {}x{}, patches of {}: {} tokens", config.in_channels,
                            config.input_size, config.input_size, config.patch_size, config.num_tokens())},
      {"classes", fmt::format("{}", config.num_classes)},
      {"variance", config.learn_sigma ? "learned" : "fixed"},
      {"routers", fmt::format("width (TDW) {}, token (SDT) {}", config.width_routers ? "yes" : "no",
                              config.token_routers ? "yes" : "no")}};
  if (config.levels() > 1) facts.push_back({"patch sizes", levels_text(config)});
  if (config.is_dynamic())
    facts.push_back({"gate rule", std::string(kGateRuleNames[checkpoint.gate_rule()])});
  if (checkpoint.lambda) facts.push_back({"lambda", fmt::format("{}", *checkpoint.lambda)});
  facts.push_back({"parameters", fmt::format("{}", checkpoint.num_parameters())});
  facts.push_back(
      {"forward",
       fmt::format("{:.4g} GMACs (multiply-adds; FLOPs are twice that) of the complete model{}",
                   static_cast<double>(static_macs(config)) / 1e9,
                   config.is_dynamic() ? fmt::format(", routers {:.3g} beside it",
                                                     static_cast<double>(router_macs(config)) / 1e9)
                                       : "")});
  if (semantics_of(config) == Semantics::Diffusers)
    facts.push_back({"computed", "as diffusers does, not as the original"});
  if (!checkpoint.weights_key.empty()) facts.push_back({"weights", checkpoint.weights_key});
  facts.push_back({"sha256", checkpoint.sha256});
  for (const auto& [key, value] : checkpoint.notes) facts.push_back({"its note: " + key, value});
  for (const std::string& note : checkpoint.read_notes) facts.push_back({"on reading", note});
  facts.insert(facts.end(), report.facts.begin(), report.facts.end());
  std::string body = html_facts("What the file is", facts);
  if (const std::vector<std::string>& names = checkpoint.class_names; !names.empty()) {
    const std::string all = html_paragraph(fmt::format("{}", fmt::join(names, ", ")));
    body += names.size() <= kNamesShown
                ? "<h3>Classes</h3>\n" + all
                : fmt::format("<h3>Classes</h3>\n<details><summary>{} names</summary>\n{}</details>\n",
                              names.size(), all);
  }
  return {"model", "The model", body};
}

// The picture brings a white ground of its own.
std::string plan_figure(const RunPlan& plan, const std::string& title, std::string_view caption) {
  return html_figure(
      fmt::format("<div class=\"white\" role=\"img\" aria-label=\"{}\">{}</div>",
                  html_text("Heads and channel groups on, by block and timestep, and the work that "
                            "leaves; the table has numbers"),
                  plan_svg(plan, title)),
      caption);
}

// Some of the steps in numbers.
std::string plan_table(const RunPlan& plan) {
  const DiTConfig& config = plan.config;
  std::vector<std::vector<std::string>> rows;
  const size_t steps = plan.steps.size(), shown = std::min(steps, kTableSteps);
  for (size_t i = 0; i < shown; ++i) {
    const size_t s = shown == 1 ? 0 : i * (steps - 1) / (shown - 1);
    const StepPlan& step = plan.steps[s];
    double heads = 0, groups = 0, tokens = 0;
    for (int l = 0; l < config.depth; ++l) {
      const BlockWidth& width = step.blocks[static_cast<size_t>(l)];
      if (step.computes(l, Branch::Attention)) heads += width.active_heads();
      if (!step.computes(l, Branch::Mlp)) continue;
      groups += width.active_groups();
      tokens += width.keep_tokens < 0 ? config.num_tokens(step.level) : width.keep_tokens;
    }
    const double parts = static_cast<double>(config.depth) * config.num_heads;
    rows.push_back({fmt::format("{:.4g}", step.timestep), percent(step_work_share(plan, static_cast<int>(s))),
                    percent(heads / parts), percent(groups / parts),
                    percent(tokens / (static_cast<double>(config.depth) * config.num_tokens(step.level)))});
  }
  const bool kept = plan.steps[0].blocks[0].keep_tokens >= 0;
  const std::vector<std::string> columns = {"t", "work of a step", "heads on", "groups on",
                                            kept ? "tokens kept" : "tokens, at most"};
  return html_table("Shares of the complete model's, over all blocks", columns, rows);
}

HtmlSection widths_section(const ModelReport& report) {
  const RunPlan& plan = *report.widths;
  const std::string tokens =
      report.checkpoint.keep_counts
          ? "Tokens are counted as the capacity rule keeps them."
          : "Tokens are decided inside the loop and all counted here, so this is a bound "
            "from above where a token router chooses.";
  return {"widths", "Width plan",
          plan_figure(
              plan, model_title(report.checkpoint),
              fmt::format("What the width routers switch on at {} timesteps. {} {} of (block, timestep) are "
                          "prefixes of the parts ordered by how often they are on.",
                          plan.steps.size(), tokens, percent(nesting_share(plan)))) +
              plan_table(plan)};
}

HtmlSection plan_section(const ModelReport& report) {
  return {"plan", "Plan of a run",
          html_facts("Which branches each step computes, and when guidance runs", report.plan_facts) +
              plan_figure(*report.plan, "plan " + report.plan->name,
                          "Blue: computed, darker the more is on; orange: forecast from what earlier steps "
                          "computed; grey: skipped.") +
              plan_table(*report.plan)};
}

std::string cost_lines(const ReportSample& sample) {
  std::string lines = fmt::format("{:.4g} GMACs ({} of static)<br>{:.3g} s", sample.required_gmacs,
                                  percent(sample.required_share), sample.seconds);
  if (sample.decode_seconds > 0) lines += fmt::format(" + {:.3g} s decoding", sample.decode_seconds);
  if (!sample.token_shares.empty())
    lines += fmt::format("<br>{} of tokens", percent(mean_of(sample.token_shares)));
  return lines;
}

HtmlSection samples_section(const ModelReport& report) {
  const ReportRun& run = *report.run;
  std::string sheet;
  for (const ReportSample& sample : run.samples) {
    const std::string name = name_of(sample);
    sheet += "<figure>";
    if (!sample.picture.pixels.empty())
      sheet += html_image(sample.picture, fmt::format("Image {}: {}", sample.index, name), kSampleSide);
    sheet += fmt::format("<figcaption><b>{}</b><br>{}</figcaption></figure>\n", html_text(name),
                         cost_lines(sample));
  }
  std::string body = html_facts("How they were made", run.facts);
  if (run.samples[0].picture.pixels.empty()) {
    body += html_paragraph(
        "The model makes latents and no autoencoder was given (--vae), so there are costs and "
        "no pictures.");
  }
  body += fmt::format("<div class=\"sheet\">\n{}</div>\n", sheet);
  const auto mean = [&](auto member) {
    return mean_over(run.samples, [&](const ReportSample& sample) { return sample.*member; });
  };
  body += html_paragraph(
      fmt::format("An image takes {:.4g} GMACs in the mean, {} of the static model's; the engine multiplied "
                  "{:.4g}, padding "
                  "included, in {:.3g} s. Both rows of guidance are counted.",
                  mean(&ReportSample::required_gmacs), percent(mean(&ReportSample::required_share)),
                  mean(&ReportSample::executed_gmacs), mean(&ReportSample::seconds)));
  if (run.stretches.empty())
    body += html_paragraph("No token router decides: all tokens enter all MLPs that are computed.");
  return {"samples", "Images and what they cost", body};
}

std::string token_plot(const ReportRun& run) {
  Plot plot{.alt = "Share of tokens that enter the MLPs over the timesteps; the table has numbers",
            .x_name = run.time_axis,
            .y_name = "share of tokens"};
  PlotSeries mean{.name = "mean of the images", .look = PlotLook::Line};
  for (size_t s = 0; s < run.timesteps.size(); ++s)
    mean.points.push_back(
        {static_cast<double>(run.timesteps[s]),
         mean_over(run.samples, [&](const auto& sample) { return sample.token_shares[s]; })});
  for (size_t i = 0; i < run.samples.size(); ++i) {
    PlotSeries one{.name = i == 0 ? "each image" : "", .look = PlotLook::Line, .faint = true};
    for (size_t s = 0; s < run.timesteps.size(); ++s)
      one.points.push_back({static_cast<double>(run.timesteps[s]), run.samples[i].token_shares[s]});
    plot.series.push_back(std::move(one));
  }
  plot.series.push_back(std::move(mean));
  return html_figure(
      plot_svg(plot),
      "Of all (block, guidance row) of a step, the share of tokens that entered the MLP. A step that "
      "forecasts an MLP lets none in.");
}

// An image a line: the picture, where its tokens went in all, and in each stretch of timesteps.
std::string map_strips(const ReportRun& run) {
  std::string
      head = "<th scope=\"col\">image</th><th scope=\"col\">picture</th><th scope=\"col\">whole run</th>",
      rows;
  for (const std::string& stretch : run.stretches)
    head += fmt::format("<th scope=\"col\">t {}</th>", html_text(stretch));
  for (const ReportSample& sample : run.samples) {
    const std::string name = name_of(sample);
    const auto map = [&](const Image& image, const std::string& when) {
      return fmt::format("<td>{}</td>",
                         html_image(image,
                                    fmt::format("Image {}, {}: share of MLPs that each token entered, {}",
                                                sample.index, name, when),
                                    kMapSide));
    };
    rows += fmt::format(
        "<tr><th scope=\"row\">{}</th><td>{}</td>", html_text(name),
        sample.picture.pixels.empty()
            ? ""
            : html_image(sample.picture, fmt::format("Image {}: {}", sample.index, name), kMapSide));
    rows += map(sample.token_map, "whole run");
    for (size_t k = 0; k < run.stretches.size(); ++k)
      rows += map(sample.stretch_maps[k], "t " + run.stretches[k]);
    rows += "</tr>\n";
  }
  return fmt::format(
      "<div class=\"wide\" tabindex=\"0\"><table class=\"strip\"><caption>Where the computation went: from "
      "noise on the "
      "left to the image on the right, each token's share of MLPs entered, {} {} to {}</caption>\n"
      "<thead><tr>{}</tr></thead>\n<tbody>\n{}</tbody></table></div>\n",
      percent(run.lowest_share), html_image(run.scale, "the colours, dark to light", 128),
      percent(run.highest_share), head, rows);
}

HtmlSection tokens_section(const ReportRun& run) {
  std::vector<std::vector<std::string>> rows;
  const size_t steps = run.timesteps.size(), count = run.stretches.size();
  for (size_t k = 0; k < count; ++k) {
    // Stretches go as sampling does, timesteps ascend.
    const size_t end = steps - k * steps / count, begin = steps - (k + 1) * steps / count;
    double low = 1, high = 0, sum = 0;
    for (const ReportSample& sample : run.samples) {
      const double share =
          std::accumulate(sample.token_shares.begin() + static_cast<std::ptrdiff_t>(begin),
                          sample.token_shares.begin() + static_cast<std::ptrdiff_t>(end), 0.0) /
          static_cast<double>(end - begin);
      low = std::min(low, share);
      high = std::max(high, share);
      sum += share;
    }
    rows.push_back({run.stretches[k], percent(sum / static_cast<double>(run.samples.size())), percent(low),
                    percent(high)});
  }
  const std::vector<std::string> columns = {"t", "mean", "lowest image", "highest image"};
  return {
      "tokens", "Tokens over t",
      token_plot(run) + html_table("Share of tokens that entered the MLPs", columns, rows) + map_strips(run)};
}

HtmlSection pictures_section(const std::vector<ReportPicture>& pictures) {
  std::string body;
  for (const ReportPicture& picture : pictures) {
    body += fmt::format("<h3>{}</h3>\n", html_text(picture.title)) +
            html_figure(html_image(picture.image, picture.title, 2 * kSampleSide), picture.caption);
  }
  return {"pictures", "Pictures from files", body};
}

}  // namespace

std::string model_title(const Checkpoint& checkpoint) {
  return fmt::format("{}: {}{}", file_name(checkpoint), model_name(checkpoint.config),
                     checkpoint.lambda ? fmt::format(", lambda {}", *checkpoint.lambda) : "");
}

std::string report_html(const ModelReport& report) {
  std::vector<HtmlSection> sections = {model_section(report)};
  if (report.widths) sections.push_back(widths_section(report));
  if (report.plan) sections.push_back(plan_section(report));
  if (report.run) sections.push_back(samples_section(report));
  if (report.run && !report.run->stretches.empty()) sections.push_back(tokens_section(*report.run));
  if (!report.pictures.empty()) sections.push_back(pictures_section(report.pictures));
  if (!report.results.empty())
    sections.push_back({"quality", "Quality against cost", results_html(report.results)});
  if (!report.curves.empty())
    sections.push_back({"plans", "Plans: distance against work", plan_curves_html(report.curves)});
  return html_page(file_name(report.checkpoint), lead(report), sections);
}

}  // namespace dydit
