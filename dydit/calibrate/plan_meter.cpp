#include "dydit/calibrate/plan_meter.h"

#include <algorithm>
#include <cmath>

#include "dydit/calibrate/distance.h"

namespace dydit {
namespace {

constexpr double kRange = 2;  // of values in [-1, 1]

}  // namespace

PlanMeter::PlanMeter(const Pipeline& pipeline, const Request& request, const SamplingOptions& options,
                     const CancelFlag* cancel)
    : pipeline_(pipeline), request_(request), options_(options), cancel_(cancel), full_(make(request)) {}

std::vector<GeneratedSample> PlanMeter::make(const Request& request) const {
  std::vector<GeneratedSample> samples;
  pipeline_.generate(request, options_,
                     {.on_sample = [&](GeneratedSample&& sample) { samples.push_back(std::move(sample)); },
                      .cancel = cancel_});
  return samples;
}

MeasuredPlan PlanMeter::measure(const PlanSpec& plan) const {
  Request request = request_;
  request.plan = plan;
  const std::vector<GeneratedSample> samples = make(request);
  const double n = static_cast<double>(samples.size()),
               complete = static_cast<double>(static_macs_per_sample(pipeline_.engine().config(), request_));
  MeasuredPlan measured{.plan = plan};
  double squares = 0, mean_square = 0;
  for (size_t i = 0; i < samples.size(); ++i) {
    const double cost = static_cast<double>(samples[i].work.required) / complete,
                 apart = distance(samples[i].sample, full_[i].sample),
                 error = apart / length(full_[i].sample);
    measured.cost += cost / n;
    measured.cost_max = std::max(measured.cost_max, cost);
    measured.error += error / n;
    measured.executed += static_cast<double>(samples[i].work.executed) / complete / n;
    measured.seconds += samples[i].seconds / n;
    squares += error * error / n;
    mean_square += apart * apart / static_cast<double>(full_[i].sample.numel()) / n;
  }
  measured.cost = std::min(measured.cost, measured.cost_max);  // equal but for rounding
  if (n > 1)
    measured.error_se = std::sqrt(std::max(0.0, squares - measured.error * measured.error) / (n - 1));
  if (mean_square > 0) measured.psnr = 10 * std::log10(kRange * kRange / mean_square);
  return measured;
}

std::vector<MeasuredPlan> pareto_set(std::vector<MeasuredPlan> plans) {
  std::stable_sort(plans.begin(), plans.end(), [](const MeasuredPlan& a, const MeasuredPlan& b) {
    return a.cost_max < b.cost_max || (a.cost_max == b.cost_max && a.error < b.error);
  });
  std::vector<MeasuredPlan> kept;
  for (MeasuredPlan& plan : plans) {
    if (kept.empty() || plan.error < kept.back().error) kept.push_back(std::move(plan));
  }
  return kept;
}

}  // namespace dydit
