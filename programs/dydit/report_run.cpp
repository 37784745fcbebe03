#include "report_run.h"

#include <algorithm>
#include <map>

#include <ATen/ATen.h>

#include "dydit/pipeline/cost_map.h"
#include "dydit/pipeline/pixels.h"
#include "dydit/pipeline/record.h"
#include "dydit/pipeline/sink.h"

namespace dydit {
namespace {

constexpr int kStretches = 6;  // of timesteps, at most
constexpr int kScaleWidth = 128, kScaleHeight = 10;

// What each image's tokens did, by the counts that the scheduler adds up.
class TokenWatch {
 public:
  TokenWatch(const RunPlan& plan, bool guided) : plan_(plan), guided_(guided) {}

  int steps() const { return static_cast<int>(plan_.steps.size()); }
  int stretches() const { return std::min(kStretches, steps()); }
  int stretch_of(int steps_done) const { return steps_done * stretches() / steps(); }

  void look(std::span<const Sample> samples) {
    for (const Sample& sample : samples) {
      if (!sample.entries.defined()) continue;
      const int step = sample.step + 1;  // that was just taken
      Seen& seen = seen_[sample.index];
      if (seen.shares.empty()) {
        seen.shares.resize(steps());
        seen.before = at::zeros_like(sample.entries);
        for (int k = 0; k < stretches(); ++k) seen.maps.push_back(at::zeros_like(sample.entries));
      }
      const at::Tensor entered = sample.entries - seen.before;
      seen.before = sample.entries.clone();
      seen.shares[step] = entered.mean().item<double>() / forwards(step);
      seen.maps[stretch_of(steps() - 1 - step)] += entered;
    }
  }

  std::vector<double> shares(int index) const { return seen_.at(index).shares; }
  // (N) each, in the order of sampling.
  std::vector<at::Tensor> maps(int index) const {
    std::vector<double> counts(stretches());
    for (int done = 0; done < steps(); ++done) counts[stretch_of(done)] += forwards(steps() - 1 - done);
    std::vector<at::Tensor> maps;
    for (int k = 0; k < stretches(); ++k) maps.push_back(seen_.at(index).maps[k] / counts[k]);
    return maps;
  }
  // "980 to 820"
  std::vector<std::string> stretch_names() const {
    std::vector<std::string> names;
    for (int done = 0, begin = 0; done < steps(); ++done) {
      if (done + 1 < steps() && stretch_of(done + 1) == stretch_of(done)) continue;
      const auto timestep = [&](int at) { return plan_.steps[steps() - 1 - at].timestep; };
      names.push_back(begin == done ? fmt::format("{:.4g}", timestep(done))
                                    : fmt::format("{:.4g} to {:.4g}", timestep(begin), timestep(done)));
      begin = done + 1;
    }
    return names;
  }

 private:
  struct Seen {
    at::Tensor before;  // (N) counts
    std::vector<double> shares;
    std::vector<at::Tensor> maps;
  };
  // In which a token might have entered an MLP.
  double forwards(int step) const {
    return static_cast<double>(plan_.rows(step, guided_)) * plan_.config.depth;
  }

  const RunPlan& plan_;
  const bool guided_;
  std::map<int, Seen> seen_;  // by the image's index
};

// The colours of the maps, from the lowest to the highest.
Image colour_scale() {
  Image scale{kScaleHeight, kScaleWidth, 3, {}};
  for (int y = 0; y < kScaleHeight; ++y) {
    for (int x = 0; x < kScaleWidth; ++x)
      for (const uint8_t value : ramp_colour(static_cast<float>(x) / (kScaleWidth - 1)))
        scale.pixels.push_back(value);
  }
  return scale;
}

}  // namespace

ReportRun make_report_run(const Checkpoint& checkpoint, const GenerateOptions& options, const RunPlan& plan,
                          const LatentDecoder* decoder, GenerateCallbacks callbacks, nlohmann::json& record) {
  ReportRun run;
  const Objective& objective = plan.config.objective;
  run.time_axis = objective.continuous()
                      ? "noise share: 0 is the image, 1 noise; sampling goes from right to left"
                      : time_axis(objective);
  for (const StepPlan& step : plan.steps)
    run.timesteps.push_back(objective.continuous() ? noise_share(objective, step.timestep) : step.timestep);
  TokenWatch watch(plan, options.guided());
  std::vector<at::Tensor> shares;  // each image's of the whole run
  callbacks.on_step = [&](std::span<const Sample> samples) { watch.look(samples); };
  callbacks.on_sample = [&](GeneratedSample&& sample) {
    if (decoder) {
      decoder->decode(sample);
    } else if (makes_pixels(checkpoint.config)) {
      sample.pixels = sample.sample;
    }
    const nlohmann::json image = image_record(checkpoint, options, sample);
    ReportSample& shown = run.samples.emplace_back();
    shown.index = sample.index;
    shown.label = sample.label;
    shown.class_name = class_name_of(checkpoint, sample.label);
    if (sample.pixels.defined()) shown.picture = to_image(sample.pixels);
    shown.required_gmacs = image["required_gmacs"].get<double>();
    shown.required_share = image["required_share"].get<double>();
    shown.executed_gmacs = image["executed_gmacs"].get<double>();
    shown.seconds = sample.seconds;
    shown.decode_seconds = sample.decode_seconds;
    if (sample.token_share.defined()) shares.push_back(sample.token_share);
    record["images"].push_back(image);
  };
  generate(checkpoint, options, callbacks);
  if (shares.empty()) return run;

  run.stretches = watch.stretch_names();
  std::vector<at::Tensor> all = shares;
  for (const ReportSample& sample : run.samples) {
    for (const at::Tensor& map : watch.maps(sample.index)) all.push_back(map);
  }
  const ShareRange range = share_range(all);
  run.lowest_share = range.min;
  run.highest_share = range.max;
  run.scale = colour_scale();
  const int grid = checkpoint.config.grid();
  for (size_t i = 0; i < run.samples.size(); ++i) {
    ReportSample& sample = run.samples[i];
    sample.token_shares = watch.shares(sample.index);
    sample.token_map = heat_map(shares[i], range, grid);
    for (const at::Tensor& map : watch.maps(sample.index))
      sample.stretch_maps.push_back(heat_map(map.contiguous(), range, grid));
  }
  return run;
}

}  // namespace dydit
