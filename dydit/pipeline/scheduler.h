// Images in flight: each goes its own steps, and all share every forward.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include <ATen/core/Tensor.h>

#include "dydit/base/torch_noise.h"
#include "dydit/engine/engine.h"
#include "dydit/pipeline/request.h"

namespace dydit {

/// What else is wanted of a request's images; it changes none of their values.
struct Extras {
  bool x0 = false;       // what each step predicts, for previews
  bool entries = false;  // how often each token entered an MLP, where tokens are routed
};

/// What the images of a request have in common: all that is known before sampling.
struct Course {
  /// `plan`: of the request's timesteps; `small`: 1 for each step that the scheduler's small engine takes,
  /// whose plan that step is; empty: none. Throws as make_solver does.
  Course(const Request& request, RunPlan plan, Extras extras = {}, std::vector<uint8_t> small = {});

  const Request request;
  const RunPlan plan;
  const Extras extras;
  const std::vector<uint8_t> small;
  Solver solver;                     // an update for each step of the plan
  std::optional<TorchNoise> stream;  // of NoiseKind::Torch
  std::vector<float> drawn;          // from it, for the step in progress: the images' values in order
};

/// An image in flight: plain state that can be advanced by one step at a time.
struct Sample {
  std::shared_ptr<Course> course;
  int index = 0;  // of the request, from 0; keys the noise
  int label = 0;
  int step = 0;                 // of the plan, the next one to take; -1: none is left
  at::Tensor x;                 // (in_channels, side, side) float32
  at::Tensor x0;                // likewise: predicted in the last step; undefined where nobody asks
  at::Tensor held_x, held_eps;  // likewise: an evaluation that others look back to; undefined where none do
  at::Tensor entries;  // (N) float32: how often each token entered an MLP; undefined unless asked for
  // Of the plan's slots: the conditional row's and the one's that guides it, and (slots, guided values) of
  // guidance.
  std::array<History, 2> histories = {};
  at::Tensor differences = {};
  Work work = {};      // summed over steps and guidance halves
  double seconds = 0;  // its share of the time of its steps

  int steps_done() const { return static_cast<int>(course->plan.steps.size()) - 1 - step; }
};

/// Advances any samples of one model together: rows of a forward may lie at other steps of other plans. A
/// sample's values do not depend on those that share its forwards.
class Scheduler {
 public:
  /// The engines outlive it; `small`, of a model of the same images, takes the steps that courses say. Of
  /// `options`: the threads, and where to put the largest inputs.
  Scheduler(const Engine& engine, const SamplingOptions& options, const Engine* small = nullptr);

  /// Starts `count` images of a course, `first` and every `stride`-th after it; those of one with a stream of
  /// noise all at once.
  void add(const std::shared_ptr<Course>& course, int first, int count, int stride = 1);
  /// Takes up images where they stand, by their courses, which may be others than those that brought them
  /// there; x and x0 are theirs alone. What a course keeps is empty, and none has a stream of noise.
  void resume(std::vector<Sample> samples);
  /// Takes one step of every sample in flight (one forward, guidance, a reverse step each) and returns those
  /// that are finished, in the order in which they were added. After an exception none is in flight.
  std::vector<Sample> step();
  /// Takes those out of flight, at whatever step they are, that `leaves` is true of.
  void remove(const std::function<bool(const Sample&)>& leaves);
  std::span<const Sample> in_flight() const { return samples_; }
  /// (rows, out_channels, side, side) float32: what the model gave in the last step, before guidance. Rows of
  /// the samples then in flight, then of the guided ones the second, the null class's or the weak one.
  at::Tensor outputs() const { return output_.slice(0, 0, static_cast<int64_t>(rows_.size())); }

 private:
  // `size` values of samples_[sample] from `first` on.
  struct Part {
    size_t sample, first, size;
  };
  void give_memory(Sample& sample);
  void prepare_steps();
  void for_parts(size_t first_sample, const std::function<void(const Part&)>& fn);
  void lay_out_rows();
  void forward(TokenTrace* trace);
  void forward_rows(bool small);
  void draw_streams();
  void fill_inputs(const Part& part) const;
  History take_history(int slots);
  void guide_part(const Part& part, std::span<float> eps) const;
  void advance(const Part& part);
  void add_up(double seconds);
  void take_memory(Sample& sample);

  const Engine& engine_;
  const SamplingOptions options_;
  const Engine* const small_;  // null: none
  const std::unique_ptr<Workspace> workspace_, small_workspace_;
  const size_t values_;  // of a sample

  std::vector<Sample> samples_;
  std::vector<Row> rows_;           // of the samples, then of the guided ones the second
  std::vector<uint8_t> by_small_;   // of the rows
  std::vector<size_t> guide_rows_;  // the second of each sample, 0: not guided
  std::vector<Work> work_;          // of the rows
  std::vector<History> spare_;      // of samples that left
  at::Tensor input_, output_;       // of as many rows as there have been
  TokenTrace trace_;
};

}  // namespace dydit
