// Points with error bars on two axes, as SVG inside a page of html.h, whose style gives the colours.
#pragma once

#include <string>
#include <vector>

namespace dydit {

struct PlotPoint {
  double x = 0, y = 0;
  double error = 0;        // drawn as y +- error; 0: none
  std::string label = {};  // beside the point where there is room; empty: none
  std::string title = {};  // shown while the mouse is over it
};

enum class PlotLook { Points, Joined, Line };  // Joined: points and a line through them; Line: that alone

struct PlotSeries {
  std::string name = {};  // in the legend; empty: not there
  PlotLook look = PlotLook::Points;
  std::vector<PlotPoint> points = {};
  bool faint = false;  // one of many
};

struct Plot {
  std::string alt = {};  // what a reader is told who does not see it
  std::string x_name = {}, y_name = {};
  std::vector<PlotSeries> series = {};
};

/// All numbers are finite, and there is a point at least. An axis begins at 0 where its values reach down to
/// half of their largest. Series differ in colour and mark.
std::string plot_svg(const Plot& plot);

/// Multiples of 1, 2 or 5 times a power of ten, about `count` of them, from the last one not above `low` to
/// the first one not below `high`.
std::vector<double> axis_ticks(double low, double high, int count);

}  // namespace dydit
