#include "dydit/calibrate/calibrate.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <map>
#include <set>
#include <string>

#include "dydit/base/error.h"
#include "dydit/base/machine.h"
#include "dydit/base/timer.h"
#include "dydit/calibrate/forecast_errors.h"
#include "dydit/calibrate/input_change.h"
#include "dydit/plan/policies.h"

namespace dydit {
namespace {

constexpr int kLeastInterval = 2, kMostInterval = 8;
constexpr int kGuideIntervals[] = {2, 3, 5};
constexpr double kLevelShares[] = {0.2, 0.35, 0.5, 0.65, 0.8};  // of the steps, with larger patches
// Of the search: shares of the full run's cost, and how many schedules are tried for each.
constexpr double kBudgets[] = {0.15, 0.2, 0.24, 0.28, 0.32, 0.37, 0.42, 0.47, 0.53, 0.6};
constexpr int kTriedPerBudget = 3;
constexpr int kPolishRounds = 2;
constexpr double kThresholds[] = {0.05, 0.08, 0.12, 0.15, 0.2, 0.3, 0.4};
constexpr int kLeastSearchSteps = 4;

int full_steps(const PlanSpec& plan) {
  return static_cast<int>(std::count_if(plan.steps.begin(), plan.steps.end(),
                                        [](const StepSpec& step) { return step.computes_all(); }));
}

class Calibration {
 public:
  Calibration(const Checkpoint& checkpoint, const CalibrateOptions& options,
              const CalibrateCallbacks& callbacks)
      : options_(options),
        families_(options.families.begin(), options.families.end()),
        callbacks_(callbacks),
        checkpoint_(checkpoint),
        config_(checkpoint.config),
        pipeline_(checkpoint, options.engine, options.engine_options()),
        timesteps_(run_spacing(options, config_.objective).timesteps),
        meter_(pipeline_, options, options, callbacks.cancel) {}

  std::vector<MeasuredPlan> measure() {
    measure_all("plans", {full_spec(config_, timesteps_)});
    measure_all("plans", uniform_plans());
    if (families_.contains(Family::Threshold)) measure_all("threshold plans", threshold_plans());
    if (families_.contains(Family::Search) && timesteps_.size() >= kLeastSearchSteps)
      measure_all("searched plans", searched_plans());
    if (families_.contains(Family::Levels) && config_.levels() > 1)
      measure_all("plans of levels", level_plans());
    if (families_.contains(Family::Guide) && options_.guided()) measure_all("guided plans", guided_plans());
    return pareto_set(std::move(measured_));
  }

 private:
  // A plan that does the same as one before is passed over.
  void measure_all(const char* what, const std::vector<PlanSpec>& plans) {
    for (size_t i = 0; i < plans.size(); ++i) {
      const bool known = std::any_of(measured_.begin(), measured_.end(), [&](const MeasuredPlan& other) {
        return other.plan.steps == plans[i].steps && other.plan.forecast == plans[i].forecast;
      });
      if (!known) {
        measured_.push_back(meter_.measure(plans[i]));
        if (callbacks_.on_plan) callbacks_.on_plan(measured_.back());
      }
      tell({what, static_cast<long>(i) + 1, static_cast<long>(plans.size())});
    }
  }
  void tell(const Progress& progress) const {
    if (callbacks_.on_progress) callbacks_.on_progress(progress);
  }

  std::vector<PlanSpec> uniform_plans() const {
    std::vector<PlanSpec> plans;
    const auto add = [&](Family family, const char* policy, int N, const char* order) {
      if (families_.contains(family))
        plans.push_back(policy_plan(fmt::format("{}:{}{}", policy, N, order), config_, timesteps_));
    };
    const int S = static_cast<int>(timesteps_.size());
    for (int N = kLeastInterval; N <= std::min(kMostInterval, S - 1); ++N) {
      add(Family::Fora, "fora", N, "");
      add(Family::Taylor, "taylor", N, ",1");
      add(Family::Taylor, "taylor", N, ",2");
      add(Family::Lagrange, "lagrange", N, ",2");
      add(Family::Stack, "stack", N, ",2");
      if (!families_.contains(Family::Steps)) continue;
      // As many as a cache with this interval computes.
      const int full = full_steps(policy_plan(fmt::format("taylor:{},0", N), config_, timesteps_));
      int steps = full;  // that evaluate no more often
      while (steps > 1 && evaluations(options_.sampler, steps) > full) --steps;
      plans.push_back(
          full_spec(config_, choose_timesteps(config_.objective, options_.sampler, steps).timesteps));
      plans.back().name = fmt::format("{}-{}", kSamplerNames[options_.sampler.kind], steps);
    }
    return plans;
  }

  std::vector<PlanSpec> threshold_plans() const {
    const std::vector<double> changes =
        input_changes(checkpoint_, pipeline_, other_images(), options_, callbacks_.cancel);
    std::vector<PlanSpec> plans;
    for (const double threshold : kThresholds)
      plans.push_back(threshold_plan(changes, threshold, config_, timesteps_));
    return plans;
  }

  // Of noise that plans are not measured on.
  Request other_images() const {
    Request request = options_;
    request.seed += 1;
    request.num_images = options_.search_images;
    return request;
  }

  // As many of them as may be kept.
  Request search_request() const {
    Request request = other_images();
    const int64_t allowed = cache_allowance(options_);
    const int64_t image =
        forecast_error_bytes(config_, kept_type(options_.engine, {.dtype = options_.dtype}), request);
    DYDIT_CHECK(image <= allowed,
                "the search keeps {} of features for one image, and may keep {}: take a larger "
                "--cache-memory, or --families without search",
                memory_text(image), memory_text(allowed));
    request.num_images = static_cast<int>(std::min<int64_t>(request.num_images, allowed / image));
    return request;
  }

  std::vector<PlanSpec> searched_plans() const {
    const Request request = search_request();
    const ForecastErrors errors = measure_forecast_errors(pipeline_, request, options_.threads,
                                                          callbacks_.on_progress, callbacks_.cancel);
    const std::vector<Schedule> hull = efficient_schedules(errors.table, errors.sensitivity, errors.costs);
    double full = 0;
    for (const double cost : errors.costs.full) full += cost;
    const PlanMeter meter(pipeline_, request, options_, callbacks_.cancel);
    std::vector<PlanSpec> plans;
    std::map<int, int> of_length;  // schedules by their number of full steps
    for (size_t i = 0; i < std::size(kBudgets); ++i) {
      size_t end = 0;  // of those within the budget; the dearest of them err least by the table
      while (end < hull.size() && hull[end].cost <= kBudgets[i] * full) ++end;
      std::vector<MeasuredPlan> tried;
      for (size_t k = end - std::min<size_t>(end, kTriedPerBudget); k < end; ++k)
        tried.push_back(meter.measure(plan_of(hull[k])));
      if (!tried.empty()) {
        PlanSpec plan = polished(
            meter, *std::min_element(tried.begin(), tried.end(),
                                     [](const auto& a, const auto& b) { return a.error < b.error; }));
        const int length = full_steps(plan), others = of_length[length]++;
        plan.name = fmt::format("search:{}{}", length, others > 0 ? fmt::format(".{}", others + 1) : "");
        plans.push_back(std::move(plan));
      }
      tell({"searched plans", static_cast<long>(i) + 1, static_cast<long>(std::size(kBudgets))});
    }
    return plans;
  }

  PlanSpec plan_of(const Schedule& schedule) const {
    PlanSpec plan = full_spec(config_, timesteps_);
    plan.forecast = kSearchForecast;
    for (size_t s = 0; s < plan.steps.size(); ++s)
      plan.steps[s].attn = plan.steps[s].mlp = std::vector<Action>(config_.depth, schedule.actions[s]);
    return plan;
  }

  // The table knows single forecasts in runs that are full before them. Here full steps move by one as long
  // as whole runs come closer and cost no more.
  PlanSpec polished(const PlanMeter& meter, MeasuredPlan best) const {
    const int fixed = static_cast<int>(timesteps_.size()) - 2;  // the first two steps stay full
    bool moved = true;
    for (int round = 0; moved && round < kPolishRounds; ++round) {
      moved = false;
      for (int s = 0; s < fixed; ++s) {
        for (const int to : {s - 1, s + 1}) {
          if (to < 0 || to >= fixed || !best.plan.steps[s].computes_all() ||
              best.plan.steps[to].computes_all())
            continue;
          PlanSpec plan = best.plan;
          std::swap(plan.steps[s].attn, plan.steps[to].attn);
          std::swap(plan.steps[s].mlp, plan.steps[to].mlp);
          MeasuredPlan other = meter.measure(plan);
          if (other.error >= best.error || other.cost_max > best.cost_max) continue;
          best = std::move(other);
          moved = true;
        }
      }
    }
    return best.plan;
  }

  // The largest patches, in more and more of the first steps.
  std::vector<PlanSpec> level_plans() const {
    std::vector<PlanSpec> plans;
    for (const MeasuredPlan& best : pareto_set(measured_)) {
      for (const double share : kLevelShares) {
        const int steps = static_cast<int>(std::lround(share * static_cast<double>(best.plan.steps.size())));
        if (steps == 0) continue;
        plans.push_back(best.plan);
        apply_levels({.steps = std::vector<int>(config_.levels() - 1, steps)}, config_, plans.back());
        plans.back().name += fmt::format(" weak-steps {}", steps);
      }
    }
    return plans;
  }

  std::vector<PlanSpec> guided_plans() const {
    std::vector<PlanSpec> plans;
    for (const MeasuredPlan& best : pareto_set(measured_)) {
      for (const int every : kGuideIntervals) {
        plans.push_back(best.plan);
        apply_guide({.every = every}, config_, options_.cfg_scale, plans.back());
        plans.back().name += fmt::format(" guide-every {}", every);
      }
      if (config_.levels() == 1) continue;
      plans.push_back(best.plan);
      apply_guide({.weak = true}, config_, options_.cfg_scale, plans.back());
      plans.back().name += " guide-weak";
    }
    return plans;
  }

  const CalibrateOptions& options_;
  const std::set<Family> families_;
  const CalibrateCallbacks& callbacks_;
  const Checkpoint& checkpoint_;
  const DiTConfig& config_;
  const Pipeline pipeline_;
  const std::vector<double> timesteps_;
  const PlanMeter meter_;
  std::vector<MeasuredPlan> measured_;
};

}  // namespace

PlanSet calibrate(const Checkpoint& checkpoint, const CalibrateOptions& options,
                  const CalibrateCallbacks& callbacks) {
  const Timer timer;
  check_request(checkpoint.config, options);
  check_run(options, options);
  PlanSet set{.model_sha256 = checkpoint.sha256,
              .run = calibrated_run(checkpoint.config, options),
              .measured = {options.num_images, {options.seed}, {}, 0}};
  for (int i = 0; i < options.num_images; ++i) set.measured.classes.push_back(options.label(i));
  set.plans = Calibration(checkpoint, options, callbacks).measure();
  set.measured.seconds = timer.seconds();
  return set;
}

}  // namespace dydit
