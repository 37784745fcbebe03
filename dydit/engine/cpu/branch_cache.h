// What a pass keeps of its branches and ranges, and what it puts in the place of those it does not compute.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "dydit/base/team.h"
#include "dydit/engine/cpu/kernels.h"
#include "dydit/engine/cpu/memory.h"
#include "dydit/engine/engine.h"

namespace dydit::cpu {

/// Rows that go through the blocks together: their plans do the same work.
struct PassRows {
  std::span<const int> rows;  // of the batch
  std::span<const Row> batch;
  const float* const* modulation;  // of each row of the batch
  const float* const* times;       // the embeddings of their timesteps
  const StepPlan& plan;            // of the first row
  int N, T;  // tokens of a sample at the plan's level: patches, and those in front of them, too

  int samples() const { return static_cast<int>(rows.size()); }
  const Row& row(int sample) const { return batch[rows[sample]]; }
};

class BranchCache {
 public:
  BranchCache(const DiTConfig& config, bool bf16);

  /// Memory for the streams where ranges begin (PassBytes::before).
  void reserve(size_t bytes) { before_.reserve(bytes); }
  /// Before a pass: nothing is forecast yet.
  void begin() { forecasted_.clear(); }
  /// Puts a forecast in the place of a branch; it is added to the stream by the next add().
  void forecast(int block, Branch which);
  /// Likewise of a skipped range, an index of the plan's; of an absolute one onto a stream that is 0.
  void forecast_range(int range);
  bool has_forecasts() const { return !forecasted_.empty(); }
  /// x (samples T rows, `stride` apart) += all forecasts since the last call, in one pass over x.
  void add(const PassRows& pass, float* x, int64_t stride, Team& team);

  /// Whether a range that is kept begins or ends where this block begins.
  static bool keeps_at(const StepPlan& plan, int block);
  /// Keeps the effect on x of the ranges that end there, and x where others begin.
  void keep_ranges(const PassRows& pass, int block, const float* x, int64_t stride, Team& team);

  /// Where each sample keeps a branch, rows of C elements, null where it does not; null: nowhere. `clear`:
  /// not all rows will be written, the others are 0.
  void* const* features(const PassRows& pass, int block, Branch which, bool clear);

 private:
  struct Forecasted {
    int branch, range;  // of the step; one is -1
    int64_t gate;       // where it lies in the modulation; -1: none
  };
  std::byte* slot(const Row& row, int slot) const;

  const int T_, C_;  // of level 0, for which a history has room
  const bool bf16_;
  const std::vector<float> zeros_ = std::vector<float>(C_);
  std::vector<Forecasted> forecasted_;
  std::vector<ForecastTerms> terms_;  // theirs, sample by sample
  Buffer before_;  // (ranges of the plan, samples T, C) float32: the stream where each begins
  std::vector<void*> features_;
};

}  // namespace dydit::cpu
