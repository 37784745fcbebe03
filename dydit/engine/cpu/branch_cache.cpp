#include "dydit/engine/cpu/branch_cache.h"

#include <algorithm>

#include "dydit/engine/cpu/packed_linear.h"

namespace dydit::cpu {
namespace {

constexpr int kTaskRows = 32;
static_assert(kMaxTerms == kMaxOrder + 1);

}  // namespace

BranchCache::BranchCache(const DiTConfig& config, bool bf16)
    : T_(config.sequence()), C_(config.hidden_size), bf16_(bf16) {}

void BranchCache::forecast(int block, Branch which) {
  const int branch = 2 * block + static_cast<int>(which);
  forecasted_.push_back({branch, -1, (int64_t{3} * branch + 2) * C_});  // shift, scale, gate
}

void BranchCache::forecast_range(int range) { forecasted_.push_back({-1, range, -1}); }

void BranchCache::add(const PassRows& pass, float* x, int64_t stride, Team& team) {
  const int count = static_cast<int>(forecasted_.size());
  terms_.resize(static_cast<size_t>(pass.samples()) * count);
  for (int b = 0; b < pass.samples(); ++b) {
    const Row& row = pass.row(b);
    for (int i = 0; i < count; ++i) {
      const auto& [branch, range, gate] = forecasted_[i];
      const std::vector<Term>& terms =
          branch >= 0 ? row.step->branches[branch].terms : row.step->ranges[range].terms;
      ForecastTerms& to = terms_[int64_t{b} * count + i];
      to.gate = gate >= 0 ? pass.modulation[pass.rows[b]] + gate : nullptr;
      to.count = static_cast<int>(terms.size());
      for (size_t j = 0; j < terms.size(); ++j) {
        to.features[j] = slot(row, terms[j].slot);
        to.weights[j] = terms[j].weight;
      }
    }
  }
  const auto& kernel = bf16_ ? kernels().forecast_bf16 : kernels().forecast_float;
  const int parts = ceil_div(pass.T, kTaskRows);
  team.run(pass.samples() * parts, [&](int task, int) {
    const int b = task / parts, first = task % parts * kTaskRows;
    kernel(x + (int64_t{b} * pass.T + first) * stride, stride, first, std::min(kTaskRows, pass.T - first), C_,
           terms_.data() + int64_t{b} * count, count);
  });
  forecasted_.clear();
}

bool BranchCache::keeps_at(const StepPlan& plan, int block) {
  return std::any_of(plan.ranges.begin(), plan.ranges.end(), [&](const RangePlan& range) {
    return !range.skipped() && (range.from == block || range.to == block);
  });
}

void BranchCache::keep_ranges(const PassRows& pass, int block, const float* x, int64_t stride, Team& team) {
  const std::vector<RangePlan>& ranges = pass.plan.ranges;
  const int rows = pass.samples() * pass.T;
  for (size_t r = 0; r < ranges.size(); ++r) {
    const bool begins = ranges[r].from == block;
    if (ranges[r].skipped() || (!begins && ranges[r].to != block)) continue;
    if (ranges[r].absolute && begins) continue;
    float* const before = before_.as<float>() + static_cast<int64_t>(r) * rows * C_;
    team.run(ceil_div(rows, kTaskRows), [&](int task, int) {
      for (int row = task * kTaskRows; row < std::min(rows, (task + 1) * kTaskRows); ++row) {
        const float* now = x + row * stride;
        float* of_row = before + int64_t{row} * C_;
        if (begins) {
          std::copy_n(now, C_, of_row);
          continue;
        }
        const float* then = ranges[r].absolute ? zeros_.data() : of_row;
        const Row& of_batch = pass.row(row / pass.T);
        std::byte* const to = slot(of_batch, of_batch.step->ranges[r].store);
        std::byte* const kept = to + int64_t{row % pass.T} * C_ * (bf16_ ? 2 : 4);
        if (bf16_) {
          kernels().subtract_bf16(reinterpret_cast<Bf16*>(kept), now, then, C_);
        } else {
          kernels().subtract_float(reinterpret_cast<float*>(kept), now, then, C_);
        }
      }
    });
  }
}

void* const* BranchCache::features(const PassRows& pass, int block, Branch which, bool clear) {
  features_.assign(pass.samples(), nullptr);
  bool any = false;
  for (int b = 0; b < pass.samples(); ++b) {
    const Row& row = pass.row(b);
    std::byte* const to = slot(row, row.step->branch(block, which).store);
    features_[b] = to;
    any = any || to != nullptr;
    if (to != nullptr && clear) std::fill_n(to, int64_t{pass.T} * C_ * (bf16_ ? 2 : 4), std::byte{});
  }
  return any ? features_.data() : nullptr;
}

// Of a row's history: (N, C); null for -1.
std::byte* BranchCache::slot(const Row& row, int slot) const {
  if (slot < 0) return nullptr;
  return static_cast<std::byte*>(row.history->features.data_ptr()) +
         int64_t{slot} * T_ * C_ * (bf16_ ? 2 : 4);
}

}  // namespace dydit::cpu
