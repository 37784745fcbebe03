// Plans of steps drawn at random, every one of which can be taken; and rows that go through a plan's steps,
// with what they keep on the way.
#pragma once

#include <algorithm>
#include <array>
#include <iterator>
#include <limits>
#include <map>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "dydit/plan/plan_spec.h"
#include "tests/support/engines.h"

namespace dydit::test {

struct RandomPlan {
  bool guided = false;
  int max_order = 2;
  bool widths = false;  // some steps say by hand which heads, groups and tokens are on
  Forecast forecast = {};
};

/// Steps of all levels, actions, ranges, kinds of guidance and restarts; `timesteps` ascend.
inline PlanSpec random_spec(const DiTConfig& config, const std::vector<double>& timesteps, uint32_t seed,
                            const RandomPlan& kind = {}) {
  const int L = config.depth, H = config.num_heads;
  std::mt19937 draw(seed);
  const auto below = [&](int limit) { return static_cast<int>(draw() % static_cast<uint32_t>(limit)); };
  const auto parts = [&] {
    std::vector<std::vector<uint8_t>> all(L, std::vector<uint8_t>(H, 1));
    for (auto& of_block : all) {
      for (int h = 1; h < H; ++h) of_block[h] = below(2) > 0;
    }
    return all;
  };
  PlanSpec spec = full_spec(config, timesteps);
  spec.name = "random";
  spec.forecast = kind.forecast;
  std::map<std::pair<int, int>, int> ranges;  // rows of which each was kept last; 0: none
  for (int i = below(4); i > 0; --i) {
    const int from = below(L);
    ranges[{from, from + 1 + below(L - from)}] = 0;
  }
  std::array<std::vector<int>, 2> branches = {std::vector<int>(L, 0), std::vector<int>(L, 0)};  // likewise
  bool difference = false;
  RowPatches patches;
  for (auto step = spec.steps.rbegin(); step != spec.steps.rend(); ++step) {
    const bool first = step == spec.steps.rbegin();
    if (config.levels() > 1)
      step->level = first || below(3) == 0 ? below(config.levels()) : std::prev(step)->level;
    step->restart = !first && below(6) == 0;
    step->guide = std::array{GuideKind::Full, GuideKind::Full, GuideKind::Off, GuideKind::Forecast}[below(4)];
    if (step->guide == GuideKind::Full && step->level + 1 < config.levels() && below(2) == 0)
      step->guide = GuideKind::Weak;
    if (step->guide == GuideKind::Forecast &&
        (!difference || step->restart || (!first && step->level != std::prev(step)->level)))
      step->guide = GuideKind::Full;
    const bool changed = patches.change(*step, kind.guided);
    if (!first && (step->restart || changed)) {
      for (auto& [range, rows] : ranges) rows = 0;
      for (auto& of_blocks : branches) std::fill(of_blocks.begin(), of_blocks.end(), 0);
      difference = false;
    }
    if (step->guide == GuideKind::Forecast) step->guide_order = below(kind.max_order + 1);
    if (below(4) == 0) step->scale = 0.25f * static_cast<float>(below(16));
    const bool full = pays_both_rows(step->guide);
    const int rows = kind.guided && full ? 2 : 1;
    const auto free = [&](const std::pair<int, int>& blocks) {  // of all ranges that the step skips
      return std::none_of(step->ranges.begin(), step->ranges.end(), [&](const RangeSkip& skip) {
        return blocks.first < skip.to && skip.from < blocks.second;
      });
    };
    for (const auto& [blocks, kept] : ranges) {
      if (first || kept < rows || below(2) == 0 || !free(blocks)) continue;
      step->ranges.push_back({blocks.first, blocks.second, below(kind.max_order + 1)});
    }
    for (int l = 0; l < L; ++l) {
      for (int which = 0; which < 2; ++which) {
        Action& action = (which == 0 ? step->attn : step->mlp)[l];
        int& kept = branches[which][l];
        if (!free({l, l + 1})) {
          action = kSkipped;
        } else if (!first && kept >= rows && below(2) == 0) {
          action = static_cast<Action>(below(kind.max_order + 1));
        } else {
          kept = rows;
        }
      }
    }
    for (auto& [blocks, kept] : ranges) {
      if (free(blocks)) kept = rows;
    }
    difference = difference || full;
    if (!kind.widths || below(3) > 0) continue;
    if (config.width_routers) {
      step->heads = parts();
      step->groups = parts();
    }
    if (config.token_routers) {
      for (int l = 0; l < L; ++l) step->tokens.push_back(1 + below(config.num_tokens(step->level)));
    }
  }
  check_spec(spec, config, kind.guided, "random");
  return spec;
}

/// `count` timesteps, ascending, the last not far from the noise.
inline std::vector<double> spread_timesteps(int count) {
  std::vector<double> timesteps;
  for (int i = 0; i < count; ++i) timesteps.push_back(10 + i * 980 / count);
  return timesteps;
}

/// One row's way through a plan: its input changes a little from step to step, as an image does.
struct Walker {
  Walker(const Engine& engine, const RunPlan& plan, int64_t label, uint64_t seed)
      : plan(&plan), label(label), step(static_cast<int>(plan.steps.size()) - 1) {
    const DiTConfig& config = engine.config();
    const std::vector<int64_t> sizes = {config.in_channels, config.input_size, config.input_size};
    start = random_tensor(sizes, seed, 0);
    change = random_tensor(sizes, seed, 1, 0.1);
    history = engine.make_history(plan.slots);
    // What nobody has kept is nothing to go by.
    history.features.fill_(std::numeric_limits<float>::quiet_NaN());
  }

  at::Tensor x() const { return start + change * step; }
  Row row() { return {&plan->steps[step], label, &history}; }

  const RunPlan* plan;
  int64_t label;
  int step;  // the next one
  at::Tensor start, change;
  History history;
};

/// A forward of walkers that all have a step left; each goes on to its next.
inline Forward step_together(const Engine& engine, Workspace& workspace, std::vector<Walker*> walkers) {
  std::vector<at::Tensor> inputs;
  std::vector<Row> rows;
  for (Walker* walker : walkers) {
    inputs.push_back(walker->x());
    rows.push_back(walker->row());
  }
  Forward result;
  result.work.resize(rows.size());
  ForwardOutputs outputs{{}, result.work, &result.trace};
  engine.forward(at::stack(inputs), rows, workspace, outputs);
  result.out = outputs.out;
  for (Walker* walker : walkers) --walker->step;
  return result;
}

/// The plan of a spec for the checkpoint's routers.
inline RunPlan plan_of_spec(const Checkpoint& checkpoint, const PlanSpec& spec, Mode mode, bool guided) {
  RunPlan plan = make_width_plan(checkpoint, spec.timesteps(), mode);
  apply_spec(spec, guided, plan);
  return plan;
}

/// An engine, a plan for it, and three rows that go through it together.
struct Walk {
  Walk(EngineKind kind, const Checkpoint& checkpoint, const RunPlan& plan, const EngineOptions& options = {})
      : plan(plan),
        engine(make_engine(kind, checkpoint, options)),
        workspace(engine->make_workspace({.threads = options.threads})) {
    for (int row = 0; row < 3; ++row)
      walkers.emplace_back(*engine, this->plan, (2 * row + 1) % checkpoint.config.num_classes, 7 + row);
  }
  Walk(const Walk&) = delete;
  Walk& operator=(const Walk&) = delete;

  int step() const { return walkers[0].step; }
  Forward forward() { return step_together(*engine, *workspace, {&walkers[0], &walkers[1], &walkers[2]}); }

  const RunPlan plan;
  std::unique_ptr<Engine> engine;
  std::unique_ptr<Workspace> workspace;
  std::vector<Walker> walkers;
};

inline void expect_same_bits(const Forward& got, const Forward& want) {
  EXPECT_TRUE(at::equal(got.out, want.out));
  ASSERT_EQ(got.trace.masks.defined(), want.trace.masks.defined());
  if (want.trace.masks.defined()) {
    EXPECT_TRUE(at::equal(got.trace.masks, want.trace.masks));
    EXPECT_TRUE(at::equal(got.trace.logits, want.trace.logits));
  }
  for (size_t b = 0; b < want.work.size(); ++b) {
    EXPECT_EQ(got.work[b].required, want.work[b].required);
    EXPECT_EQ(got.work[b].executed, want.work[b].executed);
  }
}

}  // namespace dydit::test
