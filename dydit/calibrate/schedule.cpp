// A state is the last three full steps: j, j + b and j + b + c; the next full step k is chosen from it.
#include "dydit/calibrate/schedule.h"

#include <algorithm>
#include <cassert>
#include <limits>

namespace dydit {
namespace {

constexpr double kFar = std::numeric_limits<double>::infinity();
constexpr double kHighest = 1e6;  // a price at which cost alone counts, and error between equals
constexpr double kRounding = 1e-12;

class Programme {
 public:
  Programme(const ErrorTable& table, std::span<const double> sensitivity, const StepCosts& costs,
            double price)
      : table_(table),
        sensitivity_(sensitivity),
        costs_(costs),
        price_(price),
        S_(table.steps()),
        W_(table.window()),
        states_(static_cast<size_t>(S_) * (W_ + 1) * (W_ + 1)) {}

  Schedule solve() {
    assert(S_ >= 3);
    at(S_ - 2, 1, 0).value = price_ * (costs_.full[S_ - 1] + costs_.full[S_ - 2]);
    double least = kFar;
    int end_j = 0, end_b = 0, end_c = 0;
    for (int j = S_ - 2; j >= 0; --j) {
      for (int b = 1; b <= W_; ++b) {
        for (int c = 0; c <= W_; ++c) {
          const State& state = at(j, b, c);
          if (state.value == kFar) continue;
          double between = 0;  // of the steps below j down to the one above k
          for (int k = j - 1; k >= 0 && j - k <= W_; --k) {
            State& next = at(k, j - k, b);
            const double value = state.value + between + price_ * costs_.full[k];
            if (value < next.value) next = {value, c};
            between += forecast_value(k, j, b, c);
          }
          if (j <= W_ && state.value + between < least) {
            least = state.value + between;
            end_j = j, end_b = b, end_c = c;
          }
        }
      }
    }
    return walk_back(end_j, end_b, end_c);
  }

 private:
  struct State {
    double value = kFar;
    int before = 0;  // the gap c of the state that it was reached from
  };
  State& at(int j, int b, int c) { return states_[(static_cast<size_t>(j) * (W_ + 1) + b) * (W_ + 1) + c]; }
  double forecast_value(int step, int j, int b, int c) const {
    return sensitivity_[step] * table_.best(step, j - step, b, c).error + price_ * costs_.forecast[step];
  }

  Schedule walk_back(int j, int b, int c) {
    Schedule schedule{.actions = std::vector<Action>(S_, kCompute)};
    const auto forecast = [&](int first, int last) {
      for (int t = first; t < last; ++t) {
        const ErrorTable::Best best = table_.best(t, last - t, b, c);
        schedule.actions[t] = static_cast<Action>(best.order);
        schedule.error += sensitivity_[t] * best.error;
      }
    };
    forecast(0, j);
    while (c > 0) {
      const int k = j, gap = b;
      const int before = at(j, b, c).before;
      j = k + gap, b = c, c = before;
      forecast(k + 1, j);
    }
    for (int t = 0; t < S_; ++t)
      schedule.cost += schedule.actions[t] == kCompute ? costs_.full[t] : costs_.forecast[t];
    return schedule;
  }

  const ErrorTable& table_;
  const std::span<const double> sensitivity_;
  const StepCosts& costs_;
  const double price_;
  const int S_, W_;
  std::vector<State> states_;
};

}  // namespace

ErrorTable::ErrorTable(int steps, int window) : steps_(steps), window_(window) {
  size_t size = steps;
  for (std::vector<double>& errors : errors_) errors.assign(size *= window, kFar);
}

size_t ErrorTable::index(int order, int step, int a, int b, int c) const {
  assert(step >= 0 && step < steps_ && a >= 1 && a <= window_ && b >= 1 && b <= window_ && c >= 1 &&
         c <= window_);
  size_t index = static_cast<size_t>(step) * window_ + a - 1;
  if (order >= 1) index = index * window_ + b - 1;
  if (order >= 2) index = index * window_ + c - 1;
  return index;
}

ErrorTable::Best ErrorTable::best(int step, int a, int b, int c) const {
  Best best{kFar, 0};
  for (int order = 0; order < (c > 0 ? kOrders : kOrders - 1); ++order) {
    const double error = errors_[order][index(order, step, a, b, std::max(c, 1))];
    if (error < best.error) best = {error, order};
  }
  return best;
}

Schedule best_schedule(const ErrorTable& table, std::span<const double> sensitivity, const StepCosts& costs,
                       double price) {
  return Programme(table, sensitivity, costs, price).solve();
}

std::vector<Schedule> efficient_schedules(const ErrorTable& table, std::span<const double> sensitivity,
                                          const StepCosts& costs) {
  const auto solve = [&](double price) { return best_schedule(table, sensitivity, costs, price); };
  // Between two neighbours on the hull nothing lies below the line through them.
  std::vector<Schedule> hull;
  const auto refine = [&](const auto& self, const Schedule& cheap, const Schedule& dear) -> void {
    if (dear.cost <= cheap.cost || dear.error >= cheap.error) return;
    const double price = (cheap.error - dear.error) / (dear.cost - cheap.cost);
    const Schedule middle = solve(price);
    if (!(middle.error + price * middle.cost < (cheap.error + price * cheap.cost) * (1 - kRounding)) ||
        middle.cost <= cheap.cost || middle.cost >= dear.cost)
      return;
    self(self, cheap, middle);
    hull.push_back(middle);
    self(self, middle, dear);
  };
  const Schedule dear = solve(0), cheap = solve(kHighest);
  hull.push_back(cheap);
  refine(refine, cheap, dear);
  if (dear != cheap) hull.push_back(dear);
  return hull;
}

}  // namespace dydit
