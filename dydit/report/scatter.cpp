#include "dydit/report/scatter.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <limits>
#include <optional>

#include <fmt/format.h>

#include "dydit/io/text.h"
#include "dydit/report/html.h"

namespace dydit {
namespace {

constexpr double kWidth = 760, kHeight = 400, kLeft = 72, kRight = 28, kTop = 16, kBottom = 52;
constexpr double kLegendLine = 22, kLetter = 6.6, kLetterHeight = 13, kMark = 4.5;
constexpr int kColours = 6;  // of the page's style
constexpr size_t kLongestLabel = 36;

struct Box {
  double left, top, right, bottom;

  bool meets(const Box& other) const {
    return left < other.right && other.left < right && top < other.bottom && other.top < bottom;
  }
};

size_t letters_of(std::string_view text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

std::string shortened(std::string_view text) {
  if (letters_of(text) <= kLongestLabel) return std::string(text);
  std::string_view rest = text;
  for (size_t i = 0; i + 1 < kLongestLabel; ++i) take_code_point(rest);
  return std::string(text.substr(0, text.size() - rest.size())) + "…";
}

std::string number(double value) { return fmt::format("{:.6g}", value); }

struct Axis {
  std::vector<double> ticks;

  double at(double value) const { return (value - ticks.front()) / (ticks.back() - ticks.front()); }
};

Axis make_axis(double low, double high, int count) {
  if (low >= 0 && low <= high / 2) low = 0;
  if (low == high) {
    const double around = low == 0 ? 1 : std::abs(low) / 10;
    low -= around;
    high += around;
  }
  return {axis_ticks(low, high, count)};
}

class Drawing {
 public:
  explicit Drawing(const Plot& plot) : plot_(plot) {
    double x_low = std::numeric_limits<double>::infinity(), x_high = -x_low, y_low = x_low, y_high = -x_low;
    for (const PlotSeries& series : plot.series) {
      named_ += series.name.empty() ? 0 : 1;
      for (const PlotPoint& point : series.points) {
        x_low = std::min(x_low, point.x);
        x_high = std::max(x_high, point.x);
        y_low = std::min(y_low, point.y - point.error);
        y_high = std::max(y_high, point.y + point.error);
      }
    }
    assert(std::isfinite(x_low) && std::isfinite(y_low));
    x_axis_ = make_axis(x_low, x_high, 8);
    y_axis_ = make_axis(y_low, y_high, 6);
  }

  std::string draw() {
    draw_legend();
    draw_axes();
    for (size_t s = 0; s < plot_.series.size(); ++s) draw_series(s);
    for (const PlotSeries& series : plot_.series) {
      for (const PlotPoint& point : series.points) place_label(point);
    }
    return fmt::format(
        "<svg class=\"plot\" role=\"img\" aria-label=\"{}\" width=\"{:.0f}\" height=\"{:.0f}\" viewBox=\"0 0 "
        "{:.0f} {:.0f}\">\n{}</svg>",
        html_text(plot_.alt), kWidth, bottom() + kBottom, kWidth, bottom() + kBottom, body_);
  }

 private:
  double top() const { return kTop + kLegendLine * legend_lines_; }
  double bottom() const { return top() + kHeight - kTop - kBottom; }
  double x_of(double x) const { return kLeft + (kWidth - kLeft - kRight) * x_axis_.at(x); }
  double y_of(double y) const { return bottom() - (bottom() - top()) * y_axis_.at(y); }

  void text(double x, double y, std::string_view anchor, std::string_view content) {
    body_ +=
        fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\" fill=\"currentColor\">{}</text>\n", x,
                    y, anchor, html_text(content));
  }
  void line(double x1, double y1, double x2, double y2, std::string_view look) {
    body_ += fmt::format(
        "<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"currentColor\"{}/>\n", x1, y1,
        x2, y2, look);
  }

  // In as many lines as the names take; one name alone needs none.
  void draw_legend() {
    if (named_ < 2) return;
    double x = kLeft;
    legend_lines_ = 1;
    for (size_t s = 0; s < plot_.series.size(); ++s) {
      const std::string& name = plot_.series[s].name;
      if (name.empty()) continue;
      const double width = 36 + kLetter * static_cast<double>(letters_of(name));
      if (x > kLeft && x + width > kWidth - kRight) {
        x = kLeft;
        ++legend_lines_;
      }
      const double y = kTop + kLegendLine * (legend_lines_ - 0.5);
      open(s);
      if (plot_.series[s].look != PlotLook::Points) line(x, y, x + 16, y, stroke(plot_.series[s]));
      if (plot_.series[s].look != PlotLook::Line) draw_mark(s, x + 8, y, "");
      close();
      text(x + 22, y + 4, "start", name);
      x += width;
    }
  }

  void draw_axes() {
    for (const double tick : x_axis_.ticks) {
      line(x_of(tick), top(), x_of(tick), bottom(), " opacity=\".13\"");
      text(x_of(tick), bottom() + 18, "middle", number(tick));
    }
    for (const double tick : y_axis_.ticks) {
      line(kLeft, y_of(tick), kWidth - kRight, y_of(tick), " opacity=\".13\"");
      text(kLeft - 8, y_of(tick) + 4, "end", number(tick));
    }
    line(kLeft, bottom(), kWidth - kRight, bottom(), "");
    line(kLeft, top(), kLeft, bottom(), "");
    text((kLeft + kWidth - kRight) / 2, bottom() + 40, "middle", plot_.x_name);
    body_ += fmt::format(
        "<text transform=\"translate(16 {:.1f}) rotate(-90)\" text-anchor=\"middle\" "
        "fill=\"currentColor\">{}</text>\n",
        (top() + bottom()) / 2, html_text(plot_.y_name));
  }

  // Faint ones have one colour, the others one each.
  void open(size_t index) {
    const auto colour =
        std::count_if(plot_.series.begin(), plot_.series.begin() + static_cast<std::ptrdiff_t>(index),
                      [](const PlotSeries& series) { return !series.faint; });
    body_ +=
        fmt::format("<g class=\"s{}\">\n",
                    plot_.series[index].faint ? kColours - 1 : static_cast<int>(colour) % (kColours - 1));
  }
  void close() { body_ += "</g>\n"; }
  static std::string_view stroke(const PlotSeries& series) {
    return series.faint ? " opacity=\".45\"" : " stroke-width=\"2\"";
  }

  void draw_series(size_t index) {
    const PlotSeries& series = plot_.series[index];
    open(index);
    if (series.look != PlotLook::Points) {
      std::string path;
      for (const PlotPoint& point : series.points)
        path += fmt::format("{}{:.1f} {:.1f}", path.empty() ? "M" : "L", x_of(point.x), y_of(point.y));
      body_ +=
          fmt::format("<path d=\"{}\" fill=\"none\" stroke=\"currentColor\"{}/>\n", path, stroke(series));
    }
    for (const PlotPoint& point : series.points) {
      if (series.look == PlotLook::Line) break;
      const double x = x_of(point.x), y = y_of(point.y);
      if (point.error > 0) {
        const double high = y_of(point.y + point.error), low = y_of(point.y - point.error);
        line(x, high, x, low, " stroke-width=\"1.5\"");
        for (const double end : {high, low}) line(x - 4, end, x + 4, end, " stroke-width=\"1.5\"");
        taken_.push_back({x - 4, high, x + 4, low});
      }
      draw_mark(index, x, y, point.title);
      taken_.push_back({x - kMark, y - kMark, x + kMark, y + kMark});
    }
    close();
  }

  // Circle, square, diamond, triangle: not told apart by colour alone.
  void draw_mark(size_t series, double x, double y, const std::string& title) {
    const double r = kMark;
    std::string shape;
    switch (series % 4) {
      case 0:
        shape = fmt::format("circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"{}\"", x, y, r);
        break;
      case 1:
        shape = fmt::format("rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{}\" height=\"{}\"", x - r, y - r, 2 * r,
                            2 * r);
        break;
      case 2:
        shape =
            fmt::format("path d=\"M{0:.1f} {1:.1f}l{2} {2}l-{2} {2}l-{2} -{2}z\"", x, y - 1.3 * r, 1.3 * r);
        break;
      default:
        shape =
            fmt::format("path d=\"M{:.1f} {:.1f}l{} {}h-{}z\"", x, y - 1.2 * r, 1.2 * r, 2.1 * r, 2.4 * r);
    }
    const std::string element = shape.substr(0, shape.find(' '));
    body_ += title.empty() ? fmt::format("<{} fill=\"currentColor\"/>\n", shape)
                           : fmt::format("<{} fill=\"currentColor\"><title>{}</title></{}>\n", shape,
                                         html_text(title), element);
  }

  // At the first side of the point where it meets nothing; where there is none, its title and the table
  // beside the plot say it.
  void place_label(const PlotPoint& point) {
    if (point.label.empty()) return;
    const std::string label = shortened(point.label);
    const double width = kLetter * static_cast<double>(letters_of(label)), x = x_of(point.x),
                 y = y_of(point.y);
    struct Place {
      double dx, dy;
      const char* anchor;
    };
    for (const auto& [dx, dy, anchor] :
         {Place{9, 4, "start"}, Place{-9, 4, "end"}, Place{0, -10, "middle"}, Place{0, 20, "middle"},
          Place{8, -8, "start"}, Place{-8, -8, "end"}, Place{8, 18, "start"}, Place{-8, 18, "end"}}) {
      const double left = x + dx - (anchor[0] == 's' ? 0 : anchor[0] == 'e' ? width : width / 2);
      const Box box{left, y + dy - kLetterHeight + 3, left + width, y + dy + 3};
      if (box.left < kLeft || box.right > kWidth || box.top < top() || box.bottom > bottom()) continue;
      if (std::any_of(taken_.begin(), taken_.end(), [&](const Box& other) { return box.meets(other); }))
        continue;
      text(x + dx, y + dy, anchor, label);
      taken_.push_back(box);
      return;
    }
  }

  const Plot& plot_;
  int named_ = 0, legend_lines_ = 0;
  Axis x_axis_, y_axis_;
  std::vector<Box> taken_;
  std::string body_;
};

}  // namespace

std::vector<double> axis_ticks(double low, double high, int count) {
  assert(high > low && count > 0);
  const double wanted = (high - low) / count, power = std::pow(10, std::floor(std::log10(wanted)));
  double step = 10 * power;
  for (const double multiple : {5.0, 2.0, 1.0}) {
    if (multiple * power >= wanted) step = multiple * power;
  }
  constexpr double kSlack = 1e-9;  // of a step: 0.3 is the third multiple of 0.1, and so is 0.1 + 0.2
  const double first = std::floor(low / step + kSlack), last = std::ceil(high / step - kSlack);
  std::vector<double> ticks;
  for (double i = first; i <= last; ++i) ticks.push_back(i * step);
  return ticks;
}

std::string plot_svg(const Plot& plot) { return Drawing(plot).draw(); }

}  // namespace dydit
