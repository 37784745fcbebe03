// What dydit bench times of a model: contestants that take turns, forward by forward, so that a busy moment
// of the machine hits all of them.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include <ATen/core/Tensor.h>
#include <nlohmann/json.hpp>

#include "cli.h"
#include "dydit/pipeline/generate.h"

namespace dydit {

inline constexpr double kPeakSeconds = 1;  // on a shared machine both threads may be slow for a moment

struct LapFlags {
  int batch = 2, threads = 1, repeats = 7;
  bool run = false;             // whole sampling runs instead of forwards
  bool times_operators = true;  // costs nothing but on a GPU
};

// Medians and quartiles of milliseconds per sample.
struct Spread {
  double median, low, high;
};

// One way to execute the model; a lap keeps milliseconds per sample and adds a sample's work.
class Contestant {
 public:
  // `options`: of a run; those of forwards have no guidance.
  Contestant(const Pipeline& pipeline, const LapFlags& flags, const GenerateOptions& options);

  // A lap of forwards: every step of the plan once, adaLN included; labels alternate, so that no lap finds it
  // computed.
  void start_lap();
  void forward(int step);
  void finish_lap();
  // A lap of --run.
  void sampling_run();
  void forget();  // the warm-up

  Spread milliseconds() const;
  double macs(int64_t Work::*kind) const { return static_cast<double>(laps_work_.*kind) / ms_.size(); }
  const RunPlan& plan() const { return plan_; }
  // Of its forwards, warm-up included; null of --run and of engines that count nothing.
  std::optional<EngineStatistics> statistics() const {
    return workspace_ ? pipeline_.engine().statistics(*workspace_) : std::nullopt;
  }
  // Milliseconds of one sample's unit (a forward) by block and operator.
  double operator_ms(int row, int op) const {
    return profile_[row][op] * 1e3 / (static_cast<double>(ms_.size() * plan_.steps.size()) * flags_.batch);
  }

 private:
  const LapFlags& flags_;
  const DiTConfig& config_;
  Profile profile_;
  const Pipeline& pipeline_;
  const RunPlan plan_;
  GenerateOptions options_;
  std::vector<History> histories_;  // of the rows
  std::unique_ptr<Workspace> workspace_;
  at::Tensor x_;
  std::vector<Row> rows_;  // of the lap, and what it did
  std::vector<Work> work_;
  ForwardOutputs outputs_;
  double lap_seconds_ = 0;
  std::vector<double> ms_;  // of a sample, one a lap
  Work laps_work_;
  int lap_ = 0;
};

/// Time and work of a contestant, against the complete model's and the peak's multiply-adds.
nlohmann::json contestant_json(const Contestant& contestant, double complete_macs, double peak_macs);

/// Laps of forwards of all contestants, step by step in turns, or of whole runs one after the other; the
/// first laps are forgotten.
void run_laps(Cli& cli, const LapFlags& flags, std::span<const std::unique_ptr<Contestant>> contestants,
              int steps);

}  // namespace dydit
