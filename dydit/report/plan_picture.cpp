// Plain SVG elements; neighbours of one colour share a rectangle.
#include "dydit/report/plan_picture.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "dydit/base/error.h"
#include "dydit/io/csv.h"
#include "dydit/model/macs.h"

namespace dydit {
namespace {

constexpr double kLeft = 64, kWidth = 640, kRight = 76, kTop = 44, kGap = 42, kLineHeight = 140, kBottom = 44;

std::string escape(std::string_view text) {
  std::string escaped;
  for (const char c : text) {
    if (c == '<') {
      escaped += "&lt;";
    } else if (c == '>') {
      escaped += "&gt;";
    } else if (c == '&') {
      escaped += "&amp;";
    } else {
      escaped += c;
    }
  }
  return escaped;
}

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
                     escape(content));
}

class Picture {
 public:
  Picture(const RunPlan& plan) : plan_(plan), steps_(static_cast<int>(plan.steps.size())) {}

  std::string draw(std::string_view title) {
    const double cell = std::clamp(160.0 / plan_.config.depth, 5.0, 18.0);
    const double map = cell * plan_.config.depth;
    body_ += fmt::format("<g font-size=\"14\">{}</g>", text(kLeft, 18, "start", title));
    double y = kTop;
    draw_map(y, cell, "heads on", &BlockWidth::active_heads);
    y += map + kGap;
    draw_map(y, cell, "channel groups on", &BlockWidth::active_groups);
    y += map + kGap;
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

  void draw_map(double top, double cell, std::string_view name, int (BlockWidth::*count)() const) {
    const int parts = plan_.config.num_heads;
    body_ += text(kLeft, top - 6, "start", name);
    for (int l = 0; l < plan_.config.depth; ++l) {
      const double y = top + l * cell;
      if (cell >= 12 || l % 4 == 0) body_ += text(kLeft - 6, y + cell / 2 + 4, "end", fmt::format("{}", l));
      const auto on = [&](int s) { return (plan_.steps[s].blocks[l].*count)(); };
      for (int s = 0, end = 0; s < steps_; s = end) {
        for (end = s + 1; end < steps_ && on(end) == on(s);) ++end;
        body_ += fmt::format(
            "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" fill=\"{}\"><title>block {}, "
            "t "
            "{} to {}: {} of {}</title></rect>\n",
            x_of(s), y, x_of(end) - x_of(s), cell, colour(static_cast<double>(on(s)) / parts), l,
            plan_.steps[s].timestep, plan_.steps[end - 1].timestep, on(s), parts);
      }
    }
    const double height = cell * plan_.config.depth;
    body_ += fmt::format(
        "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" fill=\"none\" "
        "stroke=\"#888888\"/>\n",
        kLeft, top, kWidth, height);
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
    body_ += text(kLeft, top - 6, "start", "work of a forward, share of the static model's");
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
                    fmt::format("{}", plan_.steps[s].timestep));
    }
    body_ += text(kLeft + kWidth / 2, top + kLineHeight + 36, "middle",
                  "timestep t: 0 is the image, 999 noise; sampling goes from right to left");
  }

  const RunPlan& plan_;
  const int steps_;
  std::string body_;
};

}  // namespace

double step_work_share(const RunPlan& plan, int step) {
  std::vector<int> kept;
  for (const BlockWidth& width : plan.steps.at(step).blocks) {
    kept.push_back(width.keep_tokens >= 0 ? width.keep_tokens : plan.config.num_tokens());
  }
  return static_cast<double>(required_macs(plan.config, plan.steps[step], kept)) /
         static_cast<double>(static_macs(plan.config));
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
  std::string csv = csv_line(header);
  for (size_t s = 0; s < plan.steps.size(); ++s) {
    const StepPlan& step = plan.steps[s];
    CsvCells row = {fmt::format("{}", step.timestep),
                    fmt::format("{:.6f}", step_work_share(plan, static_cast<int>(s)))};
    for (const BlockWidth& width : step.blocks) row.push_back(fmt::format("{}", width.active_heads()));
    for (const BlockWidth& width : step.blocks) row.push_back(fmt::format("{}", width.active_groups()));
    csv += csv_line(row);
  }
  return csv;
}

}  // namespace dydit
