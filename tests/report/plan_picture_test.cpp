// The pictures and rows of a plan say what the plan says.
#include "dydit/report/plan_picture.h"

#include <sstream>

#include <gtest/gtest.h>

#include "dydit/base/error.h"
#include "dydit/model/macs.h"
#include "tests/support/files.h"
#include "tests/support/random_model.h"

namespace dydit {
namespace {

// Two blocks of four heads at two timesteps.
RunPlan hand_made() {
  RunPlan plan;
  plan.config = test::tiny_config();
  plan.config.depth = 2;
  plan.config.num_heads = 4;
  const BlockWidth all{{1, 1, 1, 1}, {1, 1, 1, 1}}, half{{1, 0, 1, 0}, {1, 1, 1, 0}};
  plan.steps = {{.timestep = 0, .mode = Mode::Dynamic, .blocks = {all, all}},
                {.timestep = 500, .mode = Mode::Dynamic, .blocks = {all, half}}};
  return plan;
}

size_t count(const std::string& text, const std::string& part) {
  size_t found = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++found;
  return found;
}

TEST(PlanCsv, HasARowATimestepWithTheCountsOfEveryBlock) {
  std::istringstream csv(plan_csv(hand_made()));
  std::string header, first, second, more;
  std::getline(csv, header);
  std::getline(csv, first);
  std::getline(csv, second);
  EXPECT_FALSE(std::getline(csv, more));
  EXPECT_EQ(header, "timestep,work_share,heads_0,heads_1,groups_0,groups_1");
  EXPECT_EQ(first.substr(0, 2), "0,");
  EXPECT_EQ(first.substr(first.size() - 8), ",4,4,4,4");
  EXPECT_EQ(second.substr(0, 4), "500,");
  EXPECT_EQ(second.substr(second.size() - 8), ",4,2,4,3");
}

TEST(PlanSvg, NeighboursOfOneWidthShareARectangle) {
  const std::string svg = plan_svg(hand_made(), "title");
  EXPECT_EQ(count(svg, "<title>block 0, t 0 to 500: 4 of 4</title>"), 2u);  // heads and groups
  EXPECT_EQ(count(svg, "<title>block 1, t 500 to 500: 2 of 4</title>"), 1u);
  EXPECT_EQ(count(svg, "<title>block 1, t 500 to 500: 3 of 4</title>"), 1u);
}

TEST(PlanSvg, EscapesItsTitle) {
  EXPECT_NE(plan_svg(hand_made(), "a<b & c").find(">a&lt;b &amp; c<"), std::string::npos);
}

TEST(PlanSvg, RefusesAPlanWithoutTimesteps) {
  RunPlan plan = hand_made();
  plan.steps.clear();
  EXPECT_THROW(plan_svg(plan, ""), Error);
}

TEST(StepWorkShare, CountsTheTokensThatTheCapacityRuleKeeps) {
  RunPlan plan = hand_made();
  const double all = step_work_share(plan, 0);
  for (BlockWidth& width : plan.steps[0].blocks) width.keep_tokens = 1;
  const double saved = 2.0 * static_cast<double>(mlp_macs(plan.config, 4, plan.config.num_tokens() - 1));
  EXPECT_NEAR(all - step_work_share(plan, 0), saved / static_cast<double>(static_macs(plan.config)), 1e-12);
}

TEST(PlanSvg, OfNoTimestepsIsRefused) {
  test::expect_error([] { plan_svg(RunPlan(), "title"); }, "a plan of no timesteps has no picture");
}

}  // namespace
}  // namespace dydit
