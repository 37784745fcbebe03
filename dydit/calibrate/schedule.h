// Which steps to compute in full and with which order to forecast the others: an exact dynamic programme over
// what single forecasts were measured to do.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "dydit/plan/plan_spec.h"

namespace dydit {

/// How wrong a step is when all its branches are forecast, by the steps that were computed before it. Gaps:
/// from the step to the last full step a, from there to the one before b, and on to the one before that c,
/// each 1 to `window`. All are indices of steps, which fall as they are taken.
class ErrorTable {
 public:
  static constexpr int kOrders = 3;

  ErrorTable(int steps, int window);
  int steps() const { return steps_; }
  int window() const { return window_; }

  /// Of a forecast of order 0 (the gap a alone counts), 1 (a and b) or 2.
  double& at(int order, int step, int a, int b = 1, int c = 1) {
    return errors_[order][index(order, step, a, b, c)];
  }

  struct Best {
    double error;
    int order;
  };
  /// The best order, c = 0: there are only two full steps before.
  Best best(int step, int a, int b, int c) const;

 private:
  size_t index(int order, int step, int a, int b, int c) const;

  int steps_, window_;
  std::vector<double> errors_[kOrders];
};

/// What a step costs when it is computed and when it is forecast, as shares of any one whole.
struct StepCosts {
  std::vector<double> full, forecast;  // (S)
};

struct Schedule {
  std::vector<Action> actions;  // (S) of all branches of a step: kCompute, or the order of a forecast
  double error = 0;             // sum over the forecast steps of sensitivity x error
  double cost = 0;

  bool operator==(const Schedule&) const = default;
};

/// The schedule of least error + price * cost among those whose first two steps are full and whose full steps
/// lie at most the table's window apart. `sensitivity` (S): what an error of 1 in a step does to the image.
/// Steps: 3 or more.
Schedule best_schedule(const ErrorTable& table, std::span<const double> sensitivity, const StepCosts& costs,
                       double price);

/// All that are the best at some price, by cost: the lower hull of (cost, error).
std::vector<Schedule> efficient_schedules(const ErrorTable& table, std::span<const double> sensitivity,
                                          const StepCosts& costs);

}  // namespace dydit
