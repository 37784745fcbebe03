#include "dydit/pipeline/scheduler.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <map>
#include <set>
#include <utility>

#include <ATen/ops/empty.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include "dydit/base/error.h"
#include "dydit/base/noise.h"
#include "dydit/base/timer.h"
#include "dydit/diffusion/guidance.h"

namespace dydit {
namespace {

constexpr size_t kPartValues = 1024;  // a multiple of 4 (fill_normal); worth the way to another thread

float* values_of(const at::Tensor& tensor) { return tensor.data_ptr<float>(); }

// The number of the noise that is added to a start, which no step's is.
constexpr uint64_t kStartNoise = uint64_t{1} << 32;

bool takes_small(const Course& course, int step) {
  return !course.small.empty() && course.small[static_cast<size_t>(step)] != 0;
}

std::vector<double> timesteps_of(const RunPlan& plan) {
  std::vector<double> timesteps;
  for (const StepPlan& step : plan.steps) timesteps.push_back(step.timestep);
  return timesteps;
}

// entries (N) += mask (N), whose first values are of the level's patches, each as many of `entries`' as it
// covers.
void add_entries(const DiTConfig& config, int level, const at::Tensor& mask, at::Tensor& entries) {
  if (level == 0) {
    entries += mask;
    return;
  }
  const int64_t g = config.grid(level), factor = int64_t{1} << level;
  entries.view({g, factor, g, factor}) += mask.slice(0, 0, g * g).view({g, 1, g, 1});
}

}  // namespace

Course::Course(const Request& request, RunPlan plan, Extras extras, std::vector<uint8_t> small)
    : request(request),
      plan(std::move(plan)),
      extras(extras),
      small(std::move(small)),
      solver(make_solver(this->plan.config.objective, request.sampler, timesteps_of(this->plan))) {
  if (request.noise == NoiseKind::Torch) stream.emplace(request.seed);
}

Scheduler::Scheduler(const Engine& engine, const SamplingOptions& options, const Engine* small)
    : engine_(engine),
      options_(options),
      small_(small),
      workspace_(
          engine.make_workspace({.threads = options.threads, .largest_inputs = options.largest_inputs})),
      small_workspace_(small ? small->make_workspace({.threads = options.threads}) : nullptr),
      values_(static_cast<size_t>(engine.config().in_channels) * engine.config().input_size *
              engine.config().input_size) {}

void Scheduler::add(const std::shared_ptr<Course>& course, int first, int count, int stride) {
  const DiTConfig& config = engine_.config();
  const Request& request = course->request;
  const size_t before = samples_.size();
  const auto image = [&] {
    return at::empty({config.in_channels, config.input_size, config.input_size}, at::kFloat);
  };
  const bool keeps_x0 = course->extras.x0 || request.sampler.kind == SamplerKind::Dpm,
             counts_tokens = course->extras.entries && course->plan.steps[0].routes_tokens(config);
  for (int n = 0; n < count; ++n) {
    const int i = first + n * stride;
    samples_.push_back(
        {.course = course,
         .index = i,
         .label = request.label(i),
         .step = static_cast<int>(course->plan.steps.size()) - 1,
         .x = image(),
         .x0 = keeps_x0 ? image() : at::Tensor(),
         .held_x = course->solver.holds() ? image() : at::Tensor(),
         .held_eps = course->solver.holds() ? image() : at::Tensor(),
         .entries = counts_tokens ? at::zeros({config.num_tokens()}, at::kFloat) : at::Tensor()});
    give_memory(samples_.back());
  }
  if (course->stream) {
    course->drawn.resize(count * values_);
    course->stream->fill(course->drawn);
  }
  for_parts(before, [&](const Part& part) {
    const Sample& sample = samples_[part.sample];
    const std::span<float> x(values_of(sample.x) + part.first, part.size);
    if (course->stream) {
      std::copy_n(course->drawn.begin() + sample.index * values_ + part.first, part.size, x.begin());
    } else {
      fill_normal(x, request.seed, sample.index, /*draw=*/0, part.first);
    }
    if (const float sigma = course->solver.start_sigma; sigma > 0) {
      std::array<float, kPartValues> noise;
      fill_normal({noise.data(), part.size}, request.seed, sample.index, kStartNoise, part.first);
      for (size_t i = 0; i < part.size; ++i) x[i] += sigma * noise[i];
    }
  });
  prepare_steps();
}

void Scheduler::resume(std::vector<Sample> samples) {
  for (Sample& sample : samples) {
    give_memory(sample);
    samples_.push_back(std::move(sample));
  }
  prepare_steps();
}

// For what its plan keeps.
void Scheduler::give_memory(Sample& sample) {
  const Request& request = sample.course->request;
  const RunPlan& plan = sample.course->plan;
  sample.histories = {};
  for (size_t row = 0; plan.slots > 0 && row < (request.guided() ? 2 : 1); ++row)
    sample.histories[row] = take_history(plan.slots);
  if (plan.guide_slots > 0)
    sample.differences = at::empty({plan.guide_slots, request.guided_values(engine_.config())}, at::kFloat);
}

// Tells the workspaces which timesteps come next, and at which levels.
void Scheduler::prepare_steps() {
  std::map<const Course*, int> next;  // each course's samples in flight go these steps and those below
  for (const Sample& sample : samples_) {
    int& step = next[sample.course.get()];
    step = std::max(step, sample.step);
  }
  std::array<std::set<Visit>, 2> visits;  // of the engine, of the small one
  for (const auto& [other, last] : next) {
    for (int step = 0; step <= last; ++step) {
      for (int row = 0; row < 2; ++row) {
        const StepPlan& plan = other->plan.of_row(step, row);
        visits[takes_small(*other, step)].insert({plan.timestep, plan.level});
      }
    }
  }
  const auto prepare = [&](Workspace& workspace, const std::set<Visit>& ascending) {
    if (noise_share(engine_.config().objective, 0) < 0.5)
      return workspace.prepare({ascending.rbegin(), ascending.rend()});
    workspace.prepare({ascending.begin(), ascending.end()});
  };
  prepare(*workspace_, visits[0]);
  if (small_workspace_) prepare(*small_workspace_, visits[1]);
}

// Parts of all samples from `first_sample` on, on all threads.
void Scheduler::for_parts(size_t first_sample, const std::function<void(const Part&)>& fn) {
  const size_t parts = (values_ + kPartValues - 1) / kPartValues,
               total = (samples_.size() - first_sample) * parts;
  const int tasks = static_cast<int>(std::min<size_t>(total, 8 * options_.threads));
  workspace_->team().run(tasks, [&](int task, int) {
    for (size_t i = total * task / tasks; i < total * (task + 1) / tasks; ++i) {
      const size_t first = i % parts * kPartValues;
      fn({first_sample + i / parts, first, std::min(kPartValues, values_ - first)});
    }
  });
}

std::vector<Sample> Scheduler::step() {
  const Timer timer;
  std::vector<Sample> finished;
  try {
    lay_out_rows();
    draw_streams();
    for_parts(0, [&](const Part& part) { fill_inputs(part); });
    const bool traces =
        std::any_of(samples_.begin(), samples_.end(), [](const Sample& s) { return s.entries.defined(); });
    forward(traces ? &trace_ : nullptr);
    for_parts(0, [&](const Part& part) { advance(part); });
    add_up(timer.seconds());
  } catch (...) {
    samples_.clear();
    throw;
  }
  const auto left = std::stable_partition(samples_.begin(), samples_.end(),
                                          [](const Sample& sample) { return sample.step >= 0; });
  for (auto sample = left; sample != samples_.end(); ++sample) take_memory(*sample);
  std::move(left, samples_.end(), std::back_inserter(finished));
  samples_.erase(left, samples_.end());
  return finished;
}

void Scheduler::remove(const std::function<bool(const Sample&)>& leaves) {
  std::erase_if(samples_, [&](Sample& sample) {
    if (!leaves(sample)) return false;
    take_memory(sample);
    return true;
  });
}

void Scheduler::take_memory(Sample& sample) {
  for (History& history : sample.histories) {
    if (history.features.defined()) spare_.push_back(std::move(history));
    history = {};
  }
  sample.differences = at::Tensor();
}

// All rows, each by the engine that takes its step.
void Scheduler::forward(TokenTrace* trace) {
  const size_t by_small = std::count(by_small_.begin(), by_small_.end(), 1);
  DYDIT_USAGE_CHECK(by_small == 0 || trace == nullptr,
                    "a map of tokens: two models on one path have no tokens in common");
  if (by_small > 0 && by_small < rows_.size()) {
    forward_rows(/*small=*/false);
    forward_rows(/*small=*/true);
    return;
  }
  const auto rows = static_cast<int64_t>(rows_.size());
  ForwardOutputs outputs{output_.slice(0, 0, rows), work_, trace};
  (by_small > 0 ? *small_ : engine_)
      .forward(input_.slice(0, 0, rows), rows_, by_small > 0 ? *small_workspace_ : *workspace_, outputs);
}

// Of rows that both engines take, those of one.
void Scheduler::forward_rows(bool small) {
  std::vector<int64_t> which;
  std::vector<Row> rows;
  for (size_t i = 0; i < rows_.size(); ++i) {
    if ((by_small_[i] != 0) != small) continue;
    which.push_back(static_cast<int64_t>(i));
    rows.push_back(rows_[i]);
  }
  std::vector<Work> work(rows.size());
  const at::Tensor index = at::tensor(which, at::kLong);
  ForwardOutputs outputs{.work = work};
  (small ? *small_ : engine_)
      .forward(input_.index_select(0, index), rows, small ? *small_workspace_ : *workspace_, outputs);
  output_.index_copy_(0, index, outputs.out);
  for (size_t i = 0; i < work.size(); ++i) work_[static_cast<size_t>(which[i])] = work[i];
}

void Scheduler::lay_out_rows() {
  const DiTConfig& config = engine_.config();
  rows_.clear();
  by_small_.clear();
  guide_rows_.assign(samples_.size(), 0);
  const auto add_row = [&](Sample& sample, int row, int64_t label) {
    History& history = sample.histories[row];
    by_small_.push_back(takes_small(*sample.course, sample.step));
    rows_.push_back({&sample.course->plan.of_row(sample.step, row), label,
                     history.features.defined() ? &history : nullptr});
  };
  for (Sample& sample : samples_) add_row(sample, 0, sample.label);
  for (size_t i = 0; i < samples_.size(); ++i) {
    Sample& sample = samples_[i];
    if (sample.course->plan.rows(sample.step, sample.course->request.guided()) < 2) continue;
    guide_rows_[i] = rows_.size();
    const bool weak = sample.course->plan.steps[sample.step].guide.kind == GuideKind::Weak;
    add_row(sample, 1, weak ? sample.label : config.null_class());
  }
  work_.assign(rows_.size(), {});
  const auto rows = static_cast<int64_t>(rows_.size());
  if (input_.defined() && input_.size(0) >= rows) return;
  const int side = config.input_size;
  input_ = at::empty({rows, config.in_channels, side, side}, at::kFloat);
  output_ = at::empty({rows, config.out_channels(), side, side}, at::kFloat);
}

// The original draws for both guidance halves in every step and drops the second at the end.
void Scheduler::draw_streams() {
  for (const Sample& sample : samples_) {
    Course& course = *sample.course;
    if (!course.stream || sample.index != 0 || !course.solver.steps[sample.step].noisy) continue;
    const size_t halves = course.request.guided() ? 2 : 1;
    course.drawn.resize(halves * course.request.num_images * values_);
    course.stream->fill(course.drawn);
  }
}

void Scheduler::fill_inputs(const Part& part) const {
  const float* x = values_of(samples_[part.sample].x) + part.first;
  float* input = values_of(input_) + part.first;
  std::copy_n(x, part.size, input + part.sample * values_);
  if (const size_t guide_row = guide_rows_[part.sample])
    std::copy_n(x, part.size, input + guide_row * values_);
}

History Scheduler::take_history(int slots) {
  std::erase_if(spare_, [&](const History& history) {  // of other plans
    return history.kept_at.size() != static_cast<size_t>(slots);
  });
  if (spare_.empty()) return engine_.make_history(slots);
  History history = std::move(spare_.back());
  spare_.pop_back();
  history.kept_at.assign(slots, -1);
  return history;
}

// eps <- what guidance makes of it: of both rows, or of the difference between them as earlier steps had it.
void Scheduler::guide_part(const Part& part, std::span<float> eps) const {
  const DiTConfig& config = engine_.config();
  const Sample& sample = samples_[part.sample];
  const Request& request = sample.course->request;
  const GuidePlan& plan = sample.course->plan.steps[sample.step].guide;
  const float scale = plan.scale.value_or(request.cfg_scale);
  const auto guided = static_cast<size_t>(request.guided_values(config));
  const size_t count = std::min(part.size, guided - std::min(guided, part.first));
  const auto difference = [&](int slot) {
    return std::span(values_of(sample.differences) + slot * guided + part.first, count);
  };
  if (const size_t guide_row = guide_rows_[part.sample]) {
    const size_t row_values = config.learn_sigma ? 2 * values_ : values_;
    const std::span<const float> uncond(values_of(output_) + guide_row * row_values + part.first, count);
    if (plan.store >= 0)
      std::transform(eps.begin(), eps.begin() + count, uncond.begin(), difference(plan.store).begin(),
                     std::minus<>());
    guide(eps.first(count), uncond, scale);
  } else if (!plan.terms.empty()) {
    for (size_t i = 0; i < count; ++i) {
      float value = 0;
      for (const Term& term : plan.terms) value += term.weight * difference(term.slot)[i];
      eps[i] += (scale - 1) * value;
    }
  }
}

// Guidance and the reverse step.
void Scheduler::advance(const Part& part) {
  const DiTConfig& config = engine_.config();
  const Sample& sample = samples_[part.sample];
  const Request& request = sample.course->request;
  const SolverStep& solver = sample.course->solver.steps[sample.step];
  const size_t row_values = config.learn_sigma ? 2 * values_ : values_;
  const float* const output = values_of(output_) + part.sample * row_values + part.first;
  std::array<float, kPartValues> guided, drawn;
  const std::span<float> eps(guided.data(), part.size);
  std::copy_n(output, part.size, eps.begin());
  guide_part(part, eps);
  std::span<const float> noise;
  if (solver.noisy && sample.course->stream) {
    noise = std::span(sample.course->drawn).subspan(sample.index * values_ + part.first, part.size);
  } else if (solver.noisy) {
    fill_normal({drawn.data(), part.size}, request.seed, sample.index, sample.steps_done() + 1, part.first);
    noise = {drawn.data(), part.size};
  }
  const bool learned = config.learn_sigma && !config.drops_variance;
  const auto part_of = [&](const at::Tensor& image) {
    return image.defined() ? std::span(values_of(image) + part.first, part.size) : std::span<float>();
  };
  apply_step(solver, {.x = part_of(sample.x),
                      .eps = eps,
                      .variance = {output + values_, learned ? part.size : 0},
                      .noise = noise,
                      .x0 = part_of(sample.x0),
                      .held_x = part_of(sample.held_x),
                      .held_eps = part_of(sample.held_eps)});
}

void Scheduler::add_up(double seconds) {
  for (size_t i = 0; i < samples_.size(); ++i) {
    Sample& sample = samples_[i];
    sample.seconds += seconds / static_cast<double>(samples_.size());
    --sample.step;
    const auto add_row = [&](size_t row) {
      sample.work.required += work_[row].required;
      sample.work.executed += work_[row].executed;
      if (!sample.entries.defined()) return;
      // Small whole numbers: exact in any order.
      add_entries(engine_.config(), rows_[row].step->level, trace_.masks[static_cast<int64_t>(row)].sum(0),
                  sample.entries);
    };
    add_row(i);
    if (guide_rows_[i] > 0) add_row(guide_rows_[i]);
  }
}

}  // namespace dydit
