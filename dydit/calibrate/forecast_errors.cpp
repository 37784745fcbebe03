// Read measure_forecast_errors() last: the trajectories, then the table on their states, then what its
// simplest errors do further on.
#include "dydit/calibrate/forecast_errors.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <span>

#include <ATen/ops/stack.h>
#include <c10/core/InferenceMode.h>

#include "dydit/base/error.h"
#include "dydit/calibrate/distance.h"
#include "dydit/diffusion/guidance.h"
#include "dydit/model/macs.h"

namespace dydit {
namespace {

// In a long run errors are put into some of the steps, and what they do to the others lies between.
constexpr int kMostSensitivities = 64;

// Steps whose features are kept: those that a forecast may use, and the one that is computed.
constexpr int kRing = 3 * kSearchWindow + 1;

void check_cancel(const CancelFlag* cancel) {
  if (cancel && *cancel) throw Cancelled();
}

Sample copy_of(const Sample& sample) {
  Sample copy = sample;
  copy.x = sample.x.clone();
  if (sample.x0.defined()) copy.x0 = sample.x0.clone();
  return copy;
}

struct Trajectories {
  std::vector<std::vector<Sample>> before;  // (S) of (n): the images as each step finds them
  std::vector<Sample> finished;
};

Trajectories full_trajectories(const Pipeline& pipeline, const Request& request,
                               const SamplingOptions& options, const CancelFlag* cancel) {
  Scheduler scheduler(pipeline.engine(), options);
  scheduler.add(std::make_shared<Course>(request, pipeline.plan(request)), 0, request.num_images);
  const int S = request.total_steps();
  Trajectories result{std::vector<std::vector<Sample>>(S), {}};
  for (int s = S - 1; s >= 0; --s) {
    check_cancel(cancel);
    for (const Sample& sample : scheduler.in_flight()) result.before[s].push_back(copy_of(sample));
    result.finished = scheduler.step();
  }
  return result;
}

// Forwards of all rows at a step, by features of full steps before it. The slots are a ring of steps.
class Forecaster {
 public:
  Forecaster(const Engine& engine, const Request& request, const RunPlan& plan, int threads)
      : engine_(engine),
        request_(request),
        plan_(plan),
        branches_(2 * engine.config().depth),
        workspace_(engine.make_workspace({.threads = threads})) {
    const int rows = request.num_images * (request.guided() ? 2 : 1);
    for (int row = 0; row < rows; ++row) histories_.push_back(engine.make_history(kRing * branches_));
  }

  /// At this state and step (n images) from now on.
  void take(int step, const std::vector<Sample>& samples) {
    std::vector<at::Tensor> x;
    rows_.clear();
    for (const Sample& sample : samples) x.push_back(sample.x);
    for (const Sample& sample : samples) rows_.push_back({&step_, sample.label, &histories_[rows_.size()]});
    if (request_.guided()) {
      for (const Sample& sample : samples) {
        x.push_back(sample.x);
        rows_.push_back({&step_, engine_.config().null_class(), &histories_[rows_.size()]});
      }
    }
    x_ = at::stack(x);
    step_ = plan_.steps[step];
    step_.index = step;
    step_.slots = kRing * branches_;
    step_.branches.resize(branches_);
    workspace_->prepare({{step_.timestep}});
  }

  /// Guided eps (n, in_channels, side, side); everything is computed and kept.
  at::Tensor compute() {
    for (int b = 0; b < branches_; ++b)
      step_.branches[b] = {.action = kCompute, .store = slot(step_.index, b), .terms = {}};
    return guided_eps();
  }

  /// By the features of `anchors`, the newest first.
  at::Tensor forecast(std::span<const int> anchors) {
    const int order = static_cast<int>(anchors.size()) - 1;
    const std::vector<double> weights = forecast_weights(kSearchForecast, anchors, step_.index, order);
    for (int b = 0; b < branches_; ++b) {
      BranchPlan& branch = step_.branches[b];
      branch.action = static_cast<Action>(order);
      branch.store = -1;
      branch.terms.resize(anchors.size());
      for (size_t i = 0; i < anchors.size(); ++i)
        branch.terms[i] = {slot(anchors[i], b), anchors[i], static_cast<float>(weights[i])};
    }
    return guided_eps();
  }

 private:
  int slot(int step, int branch) const { return step % kRing * branches_ + branch; }

  at::Tensor guided_eps() {
    std::vector<Work> work(rows_.size());
    ForwardOutputs outputs{.out = out_, .work = work};
    engine_.forward(x_, rows_, *workspace_, outputs);
    out_ = outputs.out;
    at::Tensor eps = out_.slice(1, 0, engine_.config().in_channels).clone();
    const int64_t n = request_.num_images;
    if (request_.guided())
      apply_guidance(eps, request_.cfg_scale, request_.channels_guided(engine_.config()));
    return eps.slice(0, 0, n);
  }

  const Engine& engine_;
  const Request& request_;
  const RunPlan& plan_;
  const int branches_;
  const std::unique_ptr<Workspace> workspace_;
  std::vector<History> histories_;
  std::vector<Row> rows_;
  StepPlan step_;
  at::Tensor x_, out_;
};

double mean_distance(const at::Tensor& a, const at::Tensor& b) {
  double sum = 0;
  for (int64_t i = 0; i < a.size(0); ++i) sum += distance(a.select(0, i), b.select(0, i));
  return sum / static_cast<double>(a.size(0));
}

// All forecasts of a step from full steps within the window of each other.
void fill_step(Forecaster& forecaster, const at::Tensor& full, int t, ErrorTable& table) {
  const int last = table.steps() - 1, W = table.window();
  const auto measure = [&](std::initializer_list<int> anchors) {
    return mean_distance(forecaster.forecast(std::span(anchors.begin(), anchors.size())), full);
  };
  for (int a = 1; a <= std::min(W, last - t); ++a) {
    const int j = t + a;
    table.at(0, t, a) = measure({j});
    for (int b = 1; b <= std::min(W, last - j); ++b) {
      const int i = j + b;
      table.at(1, t, a, b) = measure({j, i});
      for (int c = 1; c <= std::min(W, last - i); ++c) table.at(2, t, a, b, c) = measure({j, i, i + c});
    }
  }
}

// How far the images end from the full ones when step t is reuse and all others are computed.
double reuse_distance(const Pipeline& pipeline, const Request& request, const SamplingOptions& options,
                      const Trajectories& full, int t, const CancelFlag* cancel) {
  const DiTConfig& config = pipeline.engine().config();
  Request one = request;
  one.plan = full_spec(config, run_spacing(request, config.objective).timesteps);
  StepSpec& step = one.plan->steps[t];
  step.attn = step.mlp = std::vector<Action>(config.depth, 0);
  const auto course = std::make_shared<Course>(one, pipeline.plan(one));
  std::vector<Sample> samples;
  for (const Sample& sample : full.before[t + 1]) {
    samples.push_back(copy_of(sample));
    samples.back().course = course;
  }
  Scheduler scheduler(pipeline.engine(), options);
  scheduler.resume(std::move(samples));
  std::vector<Sample> finished;
  while (finished.empty()) {
    check_cancel(cancel);
    finished = scheduler.step();
  }
  double sum = 0;
  for (size_t i = 0; i < finished.size(); ++i)
    sum += distance(finished[i].x, full.finished[i].x) / length(full.finished[i].x);
  return sum / static_cast<double>(finished.size());
}

// Between those that were measured: straight in the logarithm, as they fall over orders of magnitude.
void interpolate(std::vector<double>& values, std::span<const int> known) {
  for (size_t k = 0; k + 1 < known.size(); ++k) {
    const int from = known[k], to = known[k + 1];
    const double low = std::max(values[from], 1e-30), high = std::max(values[to], 1e-30);
    for (int t = from + 1; t < to; ++t) {
      const double part = static_cast<double>(t - from) / (to - from);
      values[t] = std::exp((1 - part) * std::log(low) + part * std::log(high));
    }
  }
}

StepCosts step_costs(const Pipeline& pipeline, const Request& request, const RunPlan& plan) {
  const DiTConfig& config = pipeline.engine().config();
  const double whole = static_cast<double>(static_macs_per_sample(config, request)),
               rows = request.guided() ? 2 : 1;
  StepCosts costs;
  for (StepPlan step : plan.steps) {
    step.branches.clear();
    costs.full.push_back(rows * static_cast<double>(required_macs(config, step)) / whole);
    step.branches.assign(2 * config.depth, {.action = 0, .store = -1, .terms = {}});
    costs.forecast.push_back(rows * static_cast<double>(required_macs(config, step)) / whole);
  }
  return costs;
}

}  // namespace

int64_t forecast_error_bytes(const DiTConfig& config, at::ScalarType kept, const Request& request) {
  return history_bytes(config, kept, kRing * 2 * config.depth) * (request.guided() ? 2 : 1);
}

ForecastErrors measure_forecast_errors(const Pipeline& pipeline, const Request& request, int threads,
                                       const ProgressFn& on_progress, const CancelFlag* cancel) {
  c10::InferenceMode guard;
  const SamplingOptions options{.batch = request.num_images, .threads = threads};
  const RunPlan plan = pipeline.plan(request);
  const int S = static_cast<int>(plan.steps.size());
  const auto tell = [&](const char* what, int done, int total) {
    if (on_progress) on_progress({what, done, total});
    check_cancel(cancel);
  };
  const Trajectories full = full_trajectories(pipeline, request, options, cancel);
  ForecastErrors result{ErrorTable(S, kSearchWindow), std::vector<double>(S, 0),
                        step_costs(pipeline, request, plan)};
  {
    Forecaster forecaster(pipeline.engine(), request, plan, threads);
    for (int t = S - 1; t >= 0; --t) {
      forecaster.take(t, full.before[t]);
      const at::Tensor eps = forecaster.compute();
      fill_step(forecaster, eps, t, result.table);
      tell("forecast steps", S - t, S);
    }
  }
  std::vector<int> known;
  const int stride = (S + kMostSensitivities - 1) / kMostSensitivities, last = S - 2;
  for (int t = 0; t < last; t += stride) known.push_back(t);
  known.push_back(last);
  for (size_t k = 0; k < known.size(); ++k) {
    const int t = known[k];
    const double error = result.table.at(0, t, 1);
    if (error > 0)
      result.sensitivity[t] = reuse_distance(pipeline, request, options, full, t, cancel) / error;
    tell("sensitive steps", static_cast<int>(k) + 1, static_cast<int>(known.size()));
  }
  interpolate(result.sensitivity, known);
  return result;
}

}  // namespace dydit
