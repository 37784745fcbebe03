#include "bench_contestant.h"

#include <algorithm>

#include <ATen/ops/empty.h>
#include <ATen/ops/randn.h>
#include <c10/core/InferenceMode.h>

#include "dydit/base/timer.h"

namespace dydit {
namespace {

constexpr int kWarmupLaps = 3;  // kernels load, buffers grow, clocks settle, a GPU's steps are captured

}  // namespace

Contestant::Contestant(const Pipeline& pipeline, const LapFlags& flags, const GenerateOptions& options)
    : flags_(flags),
      config_(pipeline.engine().config()),
      profile_(config_.depth + 1),
      pipeline_(pipeline),
      plan_(pipeline_.plan(options)),
      options_(options) {
  if (!flags.run) {
    workspace_ = pipeline_.engine().make_workspace(
        {.threads = flags.threads, .profile = flags.times_operators ? &profile_ : nullptr});
    std::vector<double> timesteps;
    for (const StepPlan& step : plan_.steps) timesteps.push_back(step.timestep);
    workspace_->prepare({timesteps.rbegin(), timesteps.rend()});
    for (int b = 0; plan_.slots > 0 && b < flags.batch; ++b)
      histories_.push_back(pipeline_.engine().make_history(plan_.slots));
    x_ = at::randn({flags.batch, config_.in_channels, config_.input_size, config_.input_size}, at::kFloat);
    outputs_.out =
        at::empty({flags.batch, config_.out_channels(), config_.input_size, config_.input_size}, at::kFloat);
  }
}

void Contestant::start_lap() {
  rows_.assign(flags_.batch, {.label = config_.last_label()});
  for (int b = 0; b < (flags_.batch + 1) / 2; ++b)
    rows_[b].label = (lap_ + b) % std::max(config_.num_classes, 1);
  for (size_t b = 0; b < histories_.size(); ++b) rows_[b].history = &histories_[b];
  ++lap_;
  work_.assign(flags_.batch, {});
  outputs_.work = work_;
  lap_seconds_ = 0;
}

void Contestant::forward(int step) {
  c10::InferenceMode guard;
  for (Row& row : rows_) row.step = &plan_.steps[step];
  const Timer timer;
  pipeline_.engine().forward(x_, rows_, *workspace_, outputs_);
  lap_seconds_ += timer.seconds();
}

void Contestant::finish_lap() {
  const int samples = static_cast<int>(plan_.steps.size()) * flags_.batch;
  for (const Work& w : work_) {
    laps_work_.required += w.required / samples;
    laps_work_.executed += w.executed / samples;
  }
  ms_.push_back(lap_seconds_ / samples * 1e3);
}

void Contestant::sampling_run() {
  double seconds = 0;
  options_.seed = static_cast<uint64_t>(lap_++);
  GenerateCallbacks callbacks;
  callbacks.on_sample = [&](GeneratedSample&& sample) {
    seconds += sample.seconds / flags_.batch;
    laps_work_.required += sample.work.required / flags_.batch;
    laps_work_.executed += sample.work.executed / flags_.batch;
  };
  pipeline_.generate(options_, options_, callbacks);
  ms_.push_back(seconds * 1e3);
}

void Contestant::forget() {
  ms_.clear();
  laps_work_ = {};
  profile_.assign(profile_.size(), {});
}

Spread Contestant::milliseconds() const {
  std::vector<double> values = ms_;
  std::sort(values.begin(), values.end());
  const auto at = [&](double share) {
    return values[static_cast<size_t>(share * (values.size() - 1) + 0.5)];
  };
  return {at(0.5), at(0.25), at(0.75)};
}

nlohmann::json contestant_json(const Contestant& contestant, double complete_macs, double peak_macs) {
  const Spread ms = contestant.milliseconds();
  const double required = contestant.macs(&Work::required), executed = contestant.macs(&Work::executed);
  return {{"ms_per_sample", ms.median},
          {"ms_low", ms.low},
          {"ms_high", ms.high},
          {"gflops", 2 * required / ms.median / 1e6},
          {"peak_share", required / (ms.median / 1e3) / peak_macs},
          {"required_gmacs", required / 1e9},
          {"executed_gmacs", executed / 1e9},
          {"required_share", required / complete_macs},
          {"executed_share", executed / complete_macs}};
}

void run_laps(Cli& cli, const LapFlags& flags, std::span<const std::unique_ptr<Contestant>> contestants,
              int steps) {
  const auto lap = [&] {
    if (flags.run) {
      for (const auto& c : contestants) c->sampling_run();
      return;
    }
    for (const auto& c : contestants) c->start_lap();
    for (int step = steps - 1; step >= 0; --step) {
      for (const auto& c : contestants) c->forward(step);
    }
    for (const auto& c : contestants) c->finish_lap();
  };
  for (int i = 0; i < kWarmupLaps; ++i) lap();
  for (const auto& c : contestants) c->forget();
  const int each = static_cast<int>(contestants.size());
  for (int i = 0; i < flags.repeats; ++i) {
    lap();
    cli.console.progress({"laps", each * (i + 1), each * flags.repeats});
  }
}

}  // namespace dydit
