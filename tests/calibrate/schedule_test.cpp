// The dynamic programme against all schedules there are.
#include "dydit/calibrate/schedule.h"

#include <algorithm>
#include <random>
#include <vector>

#include <gtest/gtest.h>

namespace dydit {
namespace {

struct Problem {
  ErrorTable table;
  std::vector<double> sensitivity;
  StepCosts costs;
};

Problem random_problem(int S, int W, unsigned seed) {
  std::mt19937 draw(seed);
  std::uniform_real_distribution<double> uniform(0.01, 1);
  Problem problem{ErrorTable(S, W), {}, {}};
  for (int t = 0; t < S; ++t) {
    problem.sensitivity.push_back(uniform(draw));
    problem.costs.full.push_back(0.5 + uniform(draw));
    problem.costs.forecast.push_back(0.1 * uniform(draw));
    for (int a = 1; a <= W; ++a) {
      problem.table.at(0, t, a) = uniform(draw);
      for (int b = 1; b <= W; ++b) {
        problem.table.at(1, t, a, b) = uniform(draw);
        for (int c = 1; c <= W; ++c) problem.table.at(2, t, a, b, c) = uniform(draw);
      }
    }
  }
  return problem;
}

// Error and cost of the schedule whose full steps these are, highest first; false: one is too far from the
// next.
bool evaluate(const Problem& problem, const std::vector<int>& full, double& error, double& cost) {
  const int S = problem.table.steps(), W = problem.table.window();
  error = cost = 0;
  for (size_t k = 0; k < full.size(); ++k) {
    const int j = full[k], next = k + 1 < full.size() ? full[k + 1] : -1;
    cost += problem.costs.full[j];
    if (next >= 0 ? j - next > W : j > W) return false;
    for (int t = j - 1; t > next; --t) {
      const int c = k >= 2 ? full[k - 2] - full[k - 1] : 0;
      error += problem.sensitivity[t] * problem.table.best(t, j - t, full[k - 1] - j, c).error;
      cost += problem.costs.forecast[t];
    }
  }
  return full[0] == S - 1 && full[1] == S - 2;
}

std::vector<std::pair<double, double>> all_schedules(const Problem& problem) {  // (cost, error)
  const int S = problem.table.steps();
  std::vector<std::pair<double, double>> all;
  for (unsigned set = 0; set < 1u << (S - 2); ++set) {
    std::vector<int> full = {S - 1, S - 2};
    for (int t = S - 3; t >= 0; --t) {
      if (set >> t & 1) full.push_back(t);
    }
    double error, cost;
    if (evaluate(problem, full, error, cost)) all.emplace_back(cost, error);
  }
  return all;
}

TEST(Schedule, IsTheBestOfAllAtEveryPrice) {
  for (const auto& [S, W] : {std::pair{3, 2}, {4, 4}, {9, 3}, {11, 2}, {12, 8}}) {
    const Problem problem = random_problem(S, W, 7 * S + W);
    const auto all = all_schedules(problem);
    for (const double price : {0.0, 0.05, 0.2, 0.5, 1.0, 5.0, 1e6}) {
      SCOPED_TRACE(testing::Message() << S << " steps, window " << W << ", price " << price);
      const Schedule found = best_schedule(problem.table, problem.sensitivity, problem.costs, price);
      double least = 1e300;
      for (const auto& [cost, error] : all) least = std::min(least, error + price * cost);
      EXPECT_NEAR(found.error + price * found.cost, least, 1e-9 * std::max(1.0, least));
    }
  }
}

TEST(Schedule, SaysTheOrdersAndTheSumsOfItsSteps) {
  const Problem problem = random_problem(12, 4, 3);
  const Schedule found = best_schedule(problem.table, problem.sensitivity, problem.costs, 0.3);
  std::vector<int> full;
  for (int t = 11; t >= 0; --t) {
    if (found.actions[t] == kCompute) full.push_back(t);
  }
  ASSERT_GT(full.size(), 3u);
  ASSERT_LT(full.size(), 12u);
  double error, cost;
  ASSERT_TRUE(evaluate(problem, full, error, cost));
  EXPECT_NEAR(found.error, error, 1e-12);
  EXPECT_NEAR(found.cost, cost, 1e-12);
  for (int t = full[2] - 1; t > (full.size() > 3 ? full[3] : -1); --t) {
    const int j = full[2];
    EXPECT_EQ(found.actions[t], problem.table.best(t, j - t, full[1] - j, full[0] - full[1]).order);
  }
}

TEST(Schedule, EfficientOnesAreTheLowerHullOfAll) {
  const Problem problem = random_problem(12, 5, 5);
  const auto all = all_schedules(problem);
  const std::vector<Schedule> hull = efficient_schedules(problem.table, problem.sensitivity, problem.costs);
  ASSERT_GT(hull.size(), 4u);
  for (size_t k = 0; k + 1 < hull.size(); ++k) {
    const Schedule &cheap = hull[k], &dear = hull[k + 1];
    ASSERT_LT(cheap.cost, dear.cost);
    const double price = (cheap.error - dear.error) / (dear.cost - cheap.cost);
    for (const auto& [cost, error] : all)  // none lies below the line through two neighbours
      EXPECT_GE(error + price * cost, cheap.error + price * cheap.cost - 1e-9);
  }
  const auto cheapest = std::min_element(all.begin(), all.end());
  EXPECT_NEAR(hull.front().cost, cheapest->first, 1e-9);
  EXPECT_EQ(hull.back().error, 0);
}

TEST(Schedule, TwoStepsBeforeHaveNoOrderTwo) {
  Problem problem = random_problem(6, 4, 9);
  problem.table.at(2, 2, 2, 1, 1) = 0;
  EXPECT_NE(problem.table.best(2, 2, 1, 0).order, 2);
  EXPECT_EQ(problem.table.best(2, 2, 1, 1).order, 2);
}

}  // namespace
}  // namespace dydit
