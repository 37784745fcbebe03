// Plain SVG elements; neighbours of one colour share a rectangle.
#include "dydit/report/plan_picture.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "dydit/base/error.h"
#include "dydit/io/csv.h"
#include "dydit/model/macs.h"
#include "dydit/report/html.h"

namespace dydit {
namespace {

std::string time_text(double timestep) { return fmt::format("{:.4g}", timestep); }

constexpr double kLeft = 64, kWidth = 640, kStrip = 16, kRight = 76, kTop = 44, kGap = 42, kLineHeight = 140,
                 kBottom = 44;

// A share of 0 is nearly white, 1 dark blue; straight lines between three colours of falling lightness.
std::string colour(double share) {
  constexpr int kRamp[3][3] = {{247, 251, 255}, {107, 174, 214}, {8, 48, 107}};
  const double at = std::clamp(share, 0.0, 1.0) * 2;
  const int i = std::min(1, static_cast<int>(at));
  const auto mix = [&](int c) {
    return static_cast<int>(std::lround(kRamp[i][c] + (at - i) * (kRamp[i + 1][c] - kRamp[i][c])));
  };
  return fmt::format("#{:02x}{:02x}{:02x}", mix(0), mix(1), mix(2));
}

std::string text(double x, double y, std::string_view anchor, std::string_view content) {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\">{}</text>\n", x, y, anchor,
                     html_text(content));
}

// Forecasts are orange, darker the higher their order; what a range skips is grey.
std::string colour_of(Action action) {
  static constexpr const char* kForecasts[kMaxOrder + 1] = {"#fde0c5", "#facba6", "#f8a872", "#eb7a3c",
                                                            "#c9541c"};
  return action == kSkipped ? "#bdbdbd" : kForecasts[action];
}
char character(Action action) {
  return action == kCompute ? 'c' : action == kSkipped ? '-' : static_cast<char>('0' + action);
}
std::string_view described(GuideKind kind) {
  return kind == GuideKind::Full   ? "full"
         : kind == GuideKind::Weak ? "weak"
         : kind == GuideKind::Off  ? "off"
                                   : "forecast";
}

bool has_actions(const RunPlan& plan) {
  return std::any_of(plan.steps.begin(), plan.steps.end(), [&](const StepPlan& step) {
    return std::any_of(step.branches.begin(), step.branches.end(),
                       [](const BranchPlan& branch) { return branch.action != kCompute; });
  });
}
bool has_guides(const RunPlan& plan) {
  return std::any_of(plan.steps.begin(), plan.steps.end(),
                     [](const StepPlan& step) { return step.guide.kind != GuideKind::Full; });
}

bool has_levels(const RunPlan& plan) {
  return std::any_of(plan.steps.begin(), plan.steps.end(),
                     [](const StepPlan& step) { return step.level > 0; });
}

class Picture {
 public:
  Picture(const RunPlan& plan) : plan_(plan), steps_(static_cast<int>(plan.steps.size())) {}

  std::string draw(std::string_view title) {
    const double cell = std::clamp(160.0 / plan_.config.depth, 5.0, 18.0);
    const double map = cell * plan_.config.depth;
    body_ += fmt::format("<g font-size=\"14\">{}</g>", text(kLeft, 18, "start", title));
    double y = kTop;
    const char* legend =
        has_actions(plan_) ? " (orange: forecast, darker the higher the order; grey: skipped)" : "";
    draw_map(y, cell, fmt::format("heads on{}", legend), Branch::Attention, &BlockWidth::active_heads);
    y += map + kGap;
    draw_map(y, cell, fmt::format("channel groups on{}", legend), Branch::Mlp, &BlockWidth::active_groups);
    y += map + kGap;
    if (has_levels(plan_)) {
      draw_levels(y);
      y += kStrip + kGap;
    }
    if (has_guides(plan_)) {
      draw_guides(y);
      y += kStrip + kGap;
    }
    draw_work(y);
    const double height = y + kLineHeight + kBottom;
    return fmt::format(
               "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0:.0f}\" height=\"{1:.0f}\" viewBox=\"0 0 "
               "{0:.0f} {1:.0f}\" font-family=\"sans-serif\" font-size=\"12\">\n"
               "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
               kLeft + kWidth + kRight, height) +
           body_ + "</svg>\n";
  }

 private:
  // The left edge of step s; s = steps: the right end.
  double x_of(int s) const { return kLeft + kWidth * s / steps_; }

  // Steps of which `same` says that they look alike share a rectangle; `look` gives its colour and its title.
  template <typename Same, typename Look>
  void draw_row(double y, double height, const Same& same, const Look& look) {
    for (int s = 0, end = 0; s < steps_; s = end) {
      for (end = s + 1; end < steps_ && same(end, s);) ++end;
      const auto [fill, title] = look(s);
      body_ += fmt::format(
          "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" fill=\"{}\"><title>{}t {} to "
          "{}: "
          "{}</title></rect>\n",
          x_of(s), y, x_of(end) - x_of(s), height, fill, row_name_, time_text(plan_.steps[s].timestep),
          time_text(plan_.steps[end - 1].timestep), title);
    }
  }

  void draw_levels(double top) {
    body_ += text(kLeft, top - 6, "start", "patches (the darker, the smaller)");
    const auto level = [&](int s) { return plan_.steps[s].level; };
    row_name_.clear();
    draw_row(
        top, kStrip, [&](int a, int b) { return level(a) == level(b); },
        [&](int s) {
          const int p = plan_.config.patch(level(s));
          return std::pair{colour(1.0 / (1 << level(s))), fmt::format("level {}, {} x {}", level(s), p, p)};
        });
    draw_frame(top, kStrip);
  }

  void draw_guides(double top) {
    body_ += text(kLeft, top - 6, "start",
                  "guidance (blue: both rows, paler where the second is weak; orange: forecast; white: off)");
    const auto kind = [&](int s) { return plan_.steps[s].guide.kind; };
    row_name_.clear();
    draw_row(
        top, kStrip, [&](int a, int b) { return kind(a) == kind(b); },
        [&](int s) {
          return std::pair{kind(s) == GuideKind::Full   ? colour(1)
                           : kind(s) == GuideKind::Weak ? colour(0.5)
                           : kind(s) == GuideKind::Off  ? std::string("#ffffff")
                                                        : std::string(colour_of(1)),
                           std::string(described(kind(s)))};
        });
    draw_frame(top, kStrip);
  }

  void draw_frame(double top, double height) {
    body_ += fmt::format(
        "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" fill=\"none\" "
        "stroke=\"#888888\"/>\n",
        kLeft, top, kWidth, height);
  }

  void draw_map(double top, double cell, std::string_view name, Branch which,
                int (BlockWidth::*count)() const) {
    const int parts = plan_.config.num_heads;
    body_ += text(kLeft, top - 6, "start", name);
    for (int l = 0; l < plan_.config.depth; ++l) {
      const double y = top + l * cell;
      if (cell >= 12 || l % 4 == 0) body_ += text(kLeft - 6, y + cell / 2 + 4, "end", fmt::format("{}", l));
      const auto on = [&](int s) { return (plan_.steps[s].blocks[l].*count)(); };
      const auto action = [&](int s) { return plan_.steps[s].branch(l, which).action; };
      row_name_ = fmt::format("block {}, ", l);
      draw_row(
          y, cell,
          [&](int a, int b) { return action(a) == action(b) && (action(a) != kCompute || on(a) == on(b)); },
          [&](int s) {
            if (action(s) == kCompute)
              return std::pair{colour(static_cast<double>(on(s)) / parts),
                               fmt::format("{} of {}", on(s), parts)};
            return std::pair{colour_of(action(s)), action(s) == kSkipped
                                                       ? std::string("skipped")
                                                       : fmt::format("forecast of order {}", action(s))};
          });
    }
    const double height = cell * plan_.config.depth;
    draw_frame(top, height);
    draw_scale(top, height, parts);
  }

  void draw_scale(double top, double height, int parts) {
    constexpr int kShades = 24;
    const double x = kLeft + kWidth + 16;
    for (int i = 0; i < kShades; ++i) {
      body_ += fmt::format("<rect x=\"{:.1f}\" y=\"{:.2f}\" width=\"12\" height=\"{:.2f}\" fill=\"{}\"/>\n",
                           x, top + height * (kShades - 1 - i) / kShades, height / kShades + 0.3,
                           colour((i + 0.5) / kShades));
    }
    body_ += text(x + 18, top + 10, "start", fmt::format("{}", parts));
    body_ += text(x + 18, top + height, "start", "0");
  }

  void draw_work(double top) {
    const auto y_of = [&](double share) { return top + kLineHeight * (1 - share); };
    body_ += text(
        kLeft, top - 6, "start",
        fmt::format("work of a {}, share of the static model's", has_guides(plan_) ? "step" : "forward"));
    for (const double share : {0.0, 0.25, 0.5, 0.75, 1.0}) {
      body_ +=
          fmt::format("<line x1=\"{:.1f}\" x2=\"{:.1f}\" y1=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"#dddddd\"/>\n",
                      kLeft, kLeft + kWidth, y_of(share), y_of(share));
      body_ += text(kLeft - 6, y_of(share) + 4, "end", fmt::format("{}", share));
    }
    std::string path;
    for (int s = 0; s < steps_; ++s) {
      path += fmt::format("{}{:.1f} {:.1f}", s ? "L" : "M", (x_of(s) + x_of(s + 1)) / 2,
                          y_of(std::min(1.0, step_work_share(plan_, s))));
    }
    body_ += fmt::format("<path d=\"{}\" fill=\"none\" stroke=\"#08306b\" stroke-width=\"2\"/>\n", path);
    const int marks = std::min(steps_, 11);  // timesteps named below
    for (int i = 0; i < marks; ++i) {
      const int s = marks == 1 ? 0 : i * (steps_ - 1) / (marks - 1);
      body_ += text((x_of(s) + x_of(s + 1)) / 2, top + kLineHeight + 18, "middle",
                    time_text(plan_.steps[s].timestep));
    }
    body_ += text(kLeft + kWidth / 2, top + kLineHeight + 36, "middle", time_axis(plan_.config.objective));
  }

  const RunPlan& plan_;
  const int steps_;
  std::string row_name_;
  std::string body_;
};

}  // namespace

double step_work_share(const RunPlan& plan, int step) {
  // Without guidance that changes both rows do the same.
  const int rows = has_guides(plan) ? plan.rows(step, /*guided=*/true) : 1;
  int64_t macs = 0;
  for (int row = 0; row < rows; ++row) macs += required_macs(plan.config, plan.of_row(step, row));
  return static_cast<double>(macs) /
         static_cast<double>((has_guides(plan) ? 2 : 1) * static_macs(plan.config));
}

std::string plan_svg(const RunPlan& plan, std::string_view title) {
  DYDIT_CHECK(!plan.steps.empty(), "a plan of no timesteps has no picture");
  return Picture(plan).draw(title);
}

std::string plan_csv(const RunPlan& plan) {
  CsvCells header = {"timestep", "work_share"};
  for (const char* kind : {"heads", "groups"}) {
    for (int l = 0; l < plan.config.depth; ++l) header.push_back(fmt::format("{}_{}", kind, l));
  }
  const bool actions = has_actions(plan) || has_guides(plan), levels = has_levels(plan);
  for (const char* kind : {"attn", "mlp"}) {
    for (int l = 0; actions && l < plan.config.depth; ++l) header.push_back(fmt::format("{}_{}", kind, l));
  }
  if (actions) header.push_back("guide");
  if (levels) header.push_back("level");
  std::string csv = csv_line(header);
  for (size_t s = 0; s < plan.steps.size(); ++s) {
    const StepPlan& step = plan.steps[s];
    CsvCells row = {fmt::format("{}", step.timestep),
                    fmt::format("{:.6f}", step_work_share(plan, static_cast<int>(s)))};
    for (const BlockWidth& width : step.blocks) row.push_back(fmt::format("{}", width.active_heads()));
    for (const BlockWidth& width : step.blocks) row.push_back(fmt::format("{}", width.active_groups()));
    for (const Branch which : {Branch::Attention, Branch::Mlp}) {
      for (int l = 0; actions && l < plan.config.depth; ++l)
        row.push_back(std::string(1, character(step.branch(l, which).action)));
    }
    if (actions) row.emplace_back(described(step.guide.kind));
    if (levels) row.push_back(fmt::format("{}", step.level));
    csv += csv_line(row);
  }
  return csv;
}

}  // namespace dydit
