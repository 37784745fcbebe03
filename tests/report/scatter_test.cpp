// Plots show what they are given: round ticks, bars of the errors' length, labels that do not cover anything.
#include "dydit/report/scatter.h"

#include <regex>

#include <gtest/gtest.h>

namespace dydit {
namespace {

TEST(AxisTicks, AreRoundAndHoldTheRange) {
  EXPECT_EQ(axis_ticks(0, 10, 5), (std::vector<double>{0, 2, 4, 6, 8, 10}));
  const std::vector<double> small = axis_ticks(0.0012, 0.0031, 4);
  ASSERT_EQ(small.size(), 6u);
  EXPECT_NEAR(small.front(), 0.001, 1e-12);
  EXPECT_NEAR(small.back(), 0.0035, 1e-12);
  EXPECT_EQ(axis_ticks(0.1, 0.3, 2).size(), 3u);  // .1, .2, .3 and nothing for rounding
  const std::vector<double> across = axis_ticks(-3, 12, 5);
  EXPECT_LE(across.front(), -3);
  EXPECT_GE(across.back(), 12);
}

size_t count(const std::string& text, const std::string& part) {
  size_t found = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++found;
  return found;
}

Plot of(std::vector<PlotPoint> points) {
  return {.alt = "a plot", .x_name = "work", .y_name = "FID", .series = {{.points = std::move(points)}}};
}

TEST(PlotSvg, DrawsABarWhereThereIsAnErrorAndNoneElsewhere) {
  const auto bars = [](const std::string& svg) { return count(svg, "stroke-width=\"1.5\""); };
  EXPECT_EQ(bars(plot_svg(of({{.x = 1, .y = 5, .error = 1}, {.x = 2, .y = 4}}))), 3u);  // and its two ends
  EXPECT_EQ(bars(plot_svg(of({{.x = 1, .y = 5}, {.x = 2, .y = 4}}))), 0u);
}

TEST(PlotSvg, AnAxisHoldsTheBars) {
  const std::string svg = plot_svg(of({{.x = 1, .y = 5, .error = 4}, {.x = 2, .y = 5}}));
  EXPECT_NE(svg.find(">10</text>"), std::string::npos) << svg;  // 9 is below it
}

TEST(PlotSvg, IsTaughtToThoseWhoDoNotSeeItAndEscapesNames) {
  Plot plot = of({{.x = 1, .y = 5, .label = "<a>", .title = "b & c"}});
  plot.alt = "\"x\"";
  const std::string svg = plot_svg(plot);
  EXPECT_NE(svg.find("role=\"img\" aria-label=\"&quot;x&quot;\""), std::string::npos);
  EXPECT_NE(svg.find(">&lt;a&gt;</text>"), std::string::npos);
  EXPECT_NE(svg.find("<title>b &amp; c</title></circle>"), std::string::npos);
}

TEST(PlotSvg, OnePointHasAxesToo) {
  EXPECT_EQ(plot_svg(of({{.x = 3, .y = 0}})).find("nan"), std::string::npos);
}

TEST(PlotSvg, LabelsNeverCoverEachOther) {
  std::vector<PlotPoint> crowd;
  for (int i = 0; i < 40; ++i) crowd.push_back({.x = 1 + 1e-3 * i, .y = 5, .label = "the same place"});
  crowd.push_back({.x = 9, .y = 9, .label = "far away"});
  const std::string svg = plot_svg(of(crowd));
  EXPECT_LT(count(svg, ">the same place</text>"), 12u);
  EXPECT_GE(count(svg, ">the same place</text>"), 1u);
  EXPECT_EQ(count(svg, ">far away</text>"), 1u);
}

TEST(PlotSvg, ALongLabelIsCutBetweenLetters) {
  std::string name;
  for (int i = 0; i < 60; ++i) name += "ä";
  const std::string svg = plot_svg(of({{.x = 1, .y = 1, .label = name}, {.x = 5, .y = 5}}));
  std::string cut;
  for (int i = 0; i < 35; ++i) cut += "ä";
  EXPECT_NE(svg.find(">" + cut + "…</text>"), std::string::npos);
}

TEST(PlotSvg, SeriesHaveALegendAndMarksOfTheirOwn) {
  Plot plot = of({{.x = 1, .y = 1}});
  plot.series[0].name = "static";
  EXPECT_EQ(plot_svg(plot).find(">static</text>"), std::string::npos);  // alone it needs none
  plot.series.push_back({.name = "dynamic", .points = {{.x = 2, .y = 2}}});
  const std::string svg = plot_svg(plot);
  EXPECT_EQ(count(svg, ">static</text>"), 1u);
  EXPECT_EQ(count(svg, ">dynamic</text>"), 1u);
  EXPECT_EQ(count(svg, "<circle"), 2u);
  EXPECT_EQ(count(svg, "<rect"), 2u);
}

TEST(PlotSvg, ALineGoesThroughItsPoints) {
  Plot plot = of({{.x = 0, .y = 0}, {.x = 10, .y = 10}});
  plot.series[0].look = PlotLook::Line;
  const std::string svg = plot_svg(plot);
  EXPECT_TRUE(std::regex_search(svg, std::regex("<path d=\"M72\\.0 [0-9.]+L732\\.0 [0-9.]+\""))) << svg;
  EXPECT_EQ(count(svg, "<circle"), 0u);
}

}  // namespace
}  // namespace dydit
