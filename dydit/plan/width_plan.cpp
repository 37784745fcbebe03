// The widths of a plan. Routers run in blocks of a fixed number of rows, on one thread, so that a timestep's
// decisions never depend on its neighbours.
#include <algorithm>
#include <cmath>
#include <compare>
#include <functional>
#include <numeric>

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <fmt/format.h>

#include "dydit/base/error.h"
#include "dydit/base/row_pool.h"
#include "dydit/model/embeddings.h"
#include "dydit/plan/run_plan.h"

namespace dydit {
namespace {

constexpr int kRowsPerBlock = 32;

// The `count` largest of `values` (first of equals) as a mask.
std::vector<uint8_t> largest(std::span<const float> values, int count) {
  std::vector<int> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  // A total order, NaN included, in which -0, to which 0 is added, equals 0.
  const auto before = [&](int a, int b) {
    const std::strong_ordering sizes = std::strong_order(values[a] + 0.0f, values[b] + 0.0f);
    return sizes > 0 || (sizes == 0 && a < b);
  };
  std::nth_element(order.begin(), order.begin() + count, order.end(), before);
  std::vector<uint8_t> mask(values.size(), 0);
  for (int i = 0; i < count; ++i) mask[order[i]] = 1;
  return mask;
}

std::vector<uint8_t> above_threshold(std::span<const float> values) {
  std::vector<uint8_t> mask(values.size());
  for (size_t i = 0; i < values.size(); ++i) mask[i] = values[i] > kGateThreshold;
  return mask;
}

// `keep` counts the first part, which has no router output and is always on; negative: by threshold.
std::vector<uint8_t> open_parts(std::span<const float> logits, int keep) {
  std::vector<uint8_t> parts = keep < 0 ? above_threshold(logits) : largest(logits, keep - 1);
  parts.insert(parts.begin(), 1);
  return parts;
}

// Decides timesteps[first, first + kRowsPerBlock) of a level, the last block padded with its own last
// timestep.
void decide_rows(const Checkpoint& checkpoint, std::span<const double> timesteps, int first, int level,
                 std::vector<StepPlan>& steps) {
  c10::InferenceMode guard;
  const DiTConfig& config = checkpoint.config;
  const int H = config.num_heads, last = static_cast<int>(timesteps.size()) - 1;
  const at::Tensor t = at::empty({kRowsPerBlock}, at::kDouble);
  for (int row = 0; row < kRowsPerBlock; ++row)
    t.data_ptr<double>()[row] = timesteps[std::min(first + row, last)];
  const at::Tensor t_emb = embed_timesteps(checkpoint, t, level);
  for (int b = 0; b < config.depth; ++b) {
    const at::Tensor heads = linear(checkpoint, fmt::format("blocks.{}.attn_rate.router", b), t_emb);
    const at::Tensor groups = linear(checkpoint, fmt::format("blocks.{}.mlp_rate.router", b), t_emb);
    for (int row = 0; row < kRowsPerBlock && first + row <= last; ++row) {
      BlockWidth& width = steps[first + row].blocks[b];
      const auto logits_of = [&](const at::Tensor& all) {
        return std::span<const float>(all.data_ptr<float>() + row * (H - 1), H - 1);
      };
      const auto& counts = checkpoint.keep_counts;
      const int region = counts ? region_of(config.objective, timesteps[first + row], counts->regions()) : 0,
                of_level = level * config.depth + b;
      const auto decide = [&](const at::Tensor& all, int keep) {
        float& margin = steps[first + row].margin;
        margin = std::min(margin, decision_margin(logits_of(all), keep < 0 ? keep : keep - 1));
        return open_parts(logits_of(all), keep);
      };
      width.heads = decide(heads, counts ? counts->heads[of_level][region] : -1);
      width.groups = decide(groups, counts ? counts->groups[of_level][region] : -1);
    }
  }
}

std::vector<StepPlan> steps_of_level(const Checkpoint& checkpoint, std::span<const double> timesteps,
                                     Mode mode, int level) {
  const DiTConfig& config = checkpoint.config;
  const std::vector<uint8_t> all(config.num_heads, 1);
  std::vector<StepPlan> steps;
  for (const double t : timesteps) {
    StepPlan step{.timestep = t,
                  .mode = mode,
                  .level = level,
                  .blocks = std::vector<BlockWidth>(config.depth, BlockWidth{all, all})};
    const auto& counts = checkpoint.keep_counts;
    for (int b = 0; step.routes_tokens(config) && counts && b < config.depth; ++b) {
      const int region = region_of(config.objective, t, counts->regions());
      step.blocks[b].keep_tokens = counts->tokens[level * config.depth + b][region];
    }
    steps.push_back(std::move(step));
  }
  if (mode == Mode::Dynamic && config.width_routers) {
    RowPool one_thread(1);
    const int blocks = (static_cast<int>(timesteps.size()) + kRowsPerBlock - 1) / kRowsPerBlock;
    one_thread.run(blocks,
                   [&](int i) { decide_rows(checkpoint, timesteps, i * kRowsPerBlock, level, steps); });
  }
  return steps;
}

// Adds to (prefixes, total) over the timesteps of one block and one kind of part.
void count_prefixes(const RunPlan& plan, int block, std::vector<uint8_t> BlockWidth::*parts,
                    int64_t& prefixes, int64_t& total) {
  const int H = plan.config.num_heads;
  std::vector<int> times_on(H, 0), order(H);
  for (const StepPlan& step : plan.steps) {
    for (int h = 0; h < H; ++h) times_on[h] += (step.blocks[block].*parts)[h];
  }
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return times_on[a] > times_on[b]; });
  for (const StepPlan& step : plan.steps) {
    const auto& on = step.blocks[block].*parts;
    prefixes += std::is_sorted(order.begin(), order.end(), [&](int a, int b) { return on[a] > on[b]; });
    ++total;
  }
}

}  // namespace

int region_of(const Objective& objective, double timestep, int regions) {
  if (!objective.continuous()) return static_cast<int>(timestep) * regions / kNumTrainTimesteps;
  return std::min(static_cast<int>(noise_share(objective, timestep) * regions), regions - 1);
}

RunPlan make_width_plan(const Checkpoint& checkpoint, std::span<const int> timesteps, Mode mode) {
  return make_width_plan(checkpoint, std::vector<double>(timesteps.begin(), timesteps.end()), mode);
}

RunPlan make_width_plan(const Checkpoint& checkpoint, std::span<const double> timesteps, Mode mode) {
  const DiTConfig& config = checkpoint.config;
  for (const double t : timesteps)
    DYDIT_CHECK(is_time(config.objective, t), "timestep {}: expected 0 to {}", t,
                last_time(config.objective));
  if (!config.is_dynamic()) mode = Mode::Static;
  RunPlan plan{.config = config, .steps = steps_of_level(checkpoint, timesteps, mode, 0)};
  for (int level = 1; level < config.levels(); ++level)
    plan.larger.push_back(steps_of_level(checkpoint, timesteps, mode, level));
  return plan;
}

std::vector<uint8_t> select_tokens(std::span<const float> logits, int keep_tokens) {
  return keep_tokens < 0 ? above_threshold(logits) : largest(logits, keep_tokens);
}

float decision_margin(std::span<const float> logits, int keep) {
  float margin = std::numeric_limits<float>::infinity();
  if (keep < 0) {
    for (const float logit : logits) margin = std::min(margin, std::abs(logit - kGateThreshold));
  } else if (keep > 0 && keep < static_cast<int>(logits.size())) {
    std::vector<float> values(logits.begin(), logits.end());
    std::nth_element(values.begin(), values.begin() + keep, values.end(), std::greater<>());
    margin = *std::min_element(values.begin(), values.begin() + keep) - values[keep];
  }
  return margin;
}

double nesting_share(const RunPlan& plan) {
  int64_t prefixes = 0, total = 0;
  for (int b = 0; b < plan.config.depth; ++b) {
    count_prefixes(plan, b, &BlockWidth::heads, prefixes, total);
    count_prefixes(plan, b, &BlockWidth::groups, prefixes, total);
  }
  return total ? static_cast<double>(prefixes) / static_cast<double>(total) : 1.0;
}

}  // namespace dydit
