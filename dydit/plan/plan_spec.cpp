// What a plan may say: its steps one by one, then, walked as they are taken, whether there is something to
// forecast from.
#include "dydit/plan/plan_spec.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <string_view>
#include <tuple>
#include <utility>

#include "dydit/base/error.h"
#include "dydit/base/timesteps.h"

namespace dydit {
namespace {

constexpr int kMaxSteps = kNumTrainTimesteps;

// `at`, here and below: "FILE: step t = 908".
std::string place(const std::string& name, const StepSpec& step) {
  return fmt::format("{}: step t = {}", name, step.timestep);
}

void check_actions(std::span<const Action> actions, std::string_view what, const StepSpec& step,
                   const DiTConfig& config, const std::string& at) {
  const int L = config.depth;
  DYDIT_CHECK(static_cast<int>(actions.size()) == L, "{}: {} says {} blocks, the model has {}", at, what,
              actions.size(), L);
  for (int l = 0; l < L; ++l) {
    DYDIT_CHECK(actions[l] >= kCompute && actions[l] <= kSkipped,
                "{}: {} of block {} is action {}; {} to {} exist", at, what, l, actions[l], kCompute,
                kSkipped);
    const bool in_range = std::any_of(step.ranges.begin(), step.ranges.end(), [&](const RangeSkip& range) {
      return range.from <= l && l < range.to;
    });
    DYDIT_CHECK(in_range || actions[l] != kSkipped,
                "{}: {} of block {} is -, but no range holds it; write c, a digit, or a range", at, what, l);
    DYDIT_CHECK(!in_range || actions[l] == kSkipped,
                "{}: {} of block {} is not -, but a range skips it; write - or make the range shorter", at,
                what, l);
  }
}

void check_order(int order, std::string_view what, const std::string& at) {
  DYDIT_CHECK(order >= 0 && order <= kMaxOrder, "{}: {} has order {}; orders are 0 to {}", at, what, order,
              kMaxOrder);
}

void check_ranges(const StepSpec& step, const DiTConfig& config, const std::string& at) {
  int end = 0;
  for (const RangeSkip& range : step.ranges) {
    const std::string what = fmt::format("range from {} to {}", range.from, range.to);
    DYDIT_CHECK(range.from < range.to, "{}: {} is empty; `to` is the first block behind it", at, what);
    DYDIT_CHECK(range.from >= 0 && range.to <= config.depth, "{}: {} leaves the model's blocks, 0 to {}", at,
                what, config.depth);
    DYDIT_CHECK(range.from >= end, "{}: {} begins before the one before ends, at {}; ranges may not overlap",
                at, what, end);
    check_order(range.order, what, at);
    end = range.to;
  }
  const auto is_skipped = [&](int block) {
    return std::any_of(step.ranges.begin(), step.ranges.end(),
                       [&](const RangeSkip& range) { return range.from <= block && block < range.to; });
  };
  for (int l = 0; l < config.depth && !step.ranges.empty(); ++l) {
    const int source = config.join_source(l);
    DYDIT_CHECK(
        source < 0 || is_skipped(l) || !is_skipped(source),
        "{}: block {} is joined with the output of block {}, which a range skips; skip both or neither", at,
        l, source);
  }
}

// Parts (L) of (H).
void check_parts(const std::vector<std::vector<uint8_t>>& parts, std::string_view what,
                 const DiTConfig& config, const std::string& at) {
  if (parts.empty()) return;
  DYDIT_CHECK(config.width_routers, "{}: says {}, but the model has no width routers; leave {} out", at, what,
              what);
  DYDIT_CHECK(static_cast<int>(parts.size()) == config.depth, "{}: {} says {} blocks, the model has {}", at,
              what, parts.size(), config.depth);
  for (size_t l = 0; l < parts.size(); ++l) {
    DYDIT_CHECK(static_cast<int>(parts[l].size()) == config.num_heads,
                "{}: {} of block {} are {}, the model has {}", at, what, l, parts[l].size(),
                config.num_heads);
    DYDIT_CHECK(parts[l].front() == 1, "{}: {} of block {} begin with 0; the first is always on", at, what,
                l);
  }
}

void check_tokens(const std::vector<int>& tokens, const DiTConfig& config, int level, const std::string& at) {
  if (tokens.empty()) return;
  const int N = config.num_tokens(level);
  DYDIT_CHECK(static_cast<int>(tokens.size()) == config.depth, "{}: tokens says {} blocks, the model has {}",
              at, tokens.size(), config.depth);
  const bool by_router = std::all_of(tokens.begin(), tokens.end(), [](int count) { return count == -1; });
  for (size_t l = 0; l < tokens.size() && !by_router; ++l) {
    DYDIT_CHECK(tokens[l] >= 1 && tokens[l] <= N, "{}: tokens of block {} is {}; 1 to {} may be kept", at, l,
                tokens[l], N);
  }
  const bool all = std::all_of(tokens.begin(), tokens.end(), [&](int count) { return count == N; });
  DYDIT_CHECK(all || config.token_routers,
              "{}: chooses tokens, but the model has no token routers; leave tokens out", at);
}

void check_step(const StepSpec& step, const DiTConfig& config, const std::string& at) {
  DYDIT_CHECK(is_time(config.objective, step.timestep), "{}: t is outside 0 to {}", at,
              last_time(config.objective));
  DYDIT_CHECK(step.level >= 0 && step.level<config.levels(), "{}: level is {}; the model has {}", at,
                                            step.level, config.levels()> 1
                  ? fmt::format("levels 0 to {}", config.levels() - 1)
                  : "one patch size, level 0");
  DYDIT_CHECK(step.guide != GuideKind::Weak || config.levels() > 1,
              "{}: guide is weak, but the model has one patch size; take full", at);
  DYDIT_CHECK(step.guide != GuideKind::Weak || step.level < config.levels() - 1,
              "{}: guide is weak, but the step itself is at the level of the largest patches, {}; take full",
              at, step.level);
  check_ranges(step, config, at);
  check_actions(step.attn, "attn", step, config, at);
  check_actions(step.mlp, "mlp", step, config, at);
  if (step.guide == GuideKind::Forecast) check_order(step.guide_order, "guide", at);
  DYDIT_CHECK(!step.scale || (std::isfinite(*step.scale) && *step.scale >= 0),
              "{}: scale is {}; a number from 0 is wanted", at, *step.scale);
  check_parts(step.heads, "heads", config, at);
  check_parts(step.groups, "groups", config, at);
  check_tokens(step.tokens, config, step.level, at);
}

// Rows of a sample for which the newest feature of each kind was computed; 0: none since the last restart.
struct Kept {
  std::vector<int> attn, mlp;                        // (L)
  std::map<std::tuple<int, int, bool>, int> ranges;  // all that the plan skips anywhere, and if absolute
  int guidance = 0;

  Kept(const PlanSpec& spec, const DiTConfig& config) : attn(config.depth, 0), mlp(config.depth, 0) {
    for (const StepSpec& step : spec.steps) {
      for (const RangeSkip& range : step.ranges) ranges[{range.from, range.to, range.absolute}] = 0;
    }
  }

  void forget() {
    std::fill(attn.begin(), attn.end(), 0);
    std::fill(mlp.begin(), mlp.end(), 0);
    for (auto& [range, rows] : ranges) rows = 0;
    guidance = 0;
  }
};

void check_kept(int kept, int rows, const std::string& what, const std::string& at) {
  DYDIT_CHECK(
      kept > 0,
      "{}: {} has nothing to forecast from since the first step or the last restart (another level is one); "
      "compute it before",
      at, what);
  DYDIT_CHECK(
      kept >= rows,
      "{}: {} needs both rows of guidance, but the step that computed it last had the conditional one "
      "alone; compute it here, or leave guidance off here, too",
      at, what);
}

void take_branches(std::span<const Action> actions, std::string_view what, int rows, const std::string& at,
                   std::vector<int>& kept) {
  for (size_t l = 0; l < actions.size(); ++l) {
    if (actions[l] == kCompute) {
      kept[l] = rows;
    } else if (actions[l] != kSkipped) {
      check_kept(kept[l], rows, fmt::format("{} of block {}", what, l), at);
    }
  }
}

// What the step finds, and what it leaves behind.
void take_step(const StepSpec& step, RowPatches& patches, bool guided, const std::string& at, Kept& kept) {
  const int rows = guided && pays_both_rows(step.guide) ? 2 : 1;
  if (patches.change(step, guided) || step.restart) kept.forget();
  take_branches(step.attn, "attn", rows, at, kept.attn);
  take_branches(step.mlp, "mlp", rows, at, kept.mlp);
  for (const RangeSkip& range : step.ranges)
    check_kept(kept.ranges.at({range.from, range.to, range.absolute}), rows,
               fmt::format("range from {} to {}", range.from, range.to), at);
  for (auto& [blocks, rows_kept] : kept.ranges) {
    const bool whole = std::none_of(step.ranges.begin(), step.ranges.end(), [&](const RangeSkip& range) {
      return range.from < std::get<1>(blocks) && std::get<0>(blocks) < range.to;
    });
    if (whole) rows_kept = rows;
  }
  if (!guided) return;
  if (step.guide == GuideKind::Forecast) check_kept(kept.guidance, 1, "guide", at);
  if (rows == 2) kept.guidance = 1;
}

}  // namespace

bool pays_both_rows(GuideKind kind) { return kind == GuideKind::Full || kind == GuideKind::Weak; }

bool RowPatches::change(const StepSpec& step, bool guided) {
  const bool both = guided && pays_both_rows(step.guide);
  const bool changed = level_ >= 0 && (step.level != level_ || (both && second_ && *second_ != step.guide));
  if (changed || step.restart) second_.reset();
  level_ = step.level;
  if (both) second_ = step.guide;
  return changed;
}

bool StepSpec::computes_all() const {
  const auto all = [](const std::vector<Action>& actions) {
    return std::all_of(actions.begin(), actions.end(), [](Action action) { return action == kCompute; });
  };
  return all(attn) && all(mlp);
}

bool PlanSpec::for_dynamic() const {
  return mode == "dynamic" || std::any_of(steps.begin(), steps.end(), [](const StepSpec& step) {
           return !step.heads.empty() || !step.groups.empty() || !step.tokens.empty();
         });
}

std::vector<double> PlanSpec::timesteps() const {
  std::vector<double> all;
  for (const StepSpec& step : steps) all.push_back(step.timestep);
  return all;
}

PlanSpec full_spec(const DiTConfig& config, std::span<const double> timesteps) {
  PlanSpec spec{.name = "none"};
  const std::vector<Action> all(config.depth, kCompute);
  for (const double t : timesteps) spec.steps.push_back({.timestep = t, .attn = all, .mlp = all});
  return spec;
}

void check_spec(const PlanSpec& spec, const DiTConfig& config, bool guided, const std::string& name) {
  DYDIT_CHECK(!spec.steps.empty() && spec.steps.size() <= kMaxSteps, "{}: has {} steps; 1 to {} are wanted",
              name, spec.steps.size(), kMaxSteps);
  const StepSpec* before = nullptr;
  for (auto step = spec.steps.rbegin(); step != spec.steps.rend(); before = &*step++) {
    const std::string at = place(name, *step);
    check_step(*step, config, at);
    DYDIT_CHECK(before || (step->computes_all() && !(guided && step->guide == GuideKind::Forecast)),
                "{}: the first step must compute all: attn and mlp of c alone, no range, guide full or off",
                at);
    const auto share = [&](const StepSpec& of) { return noise_share(config.objective, of.timestep); };
    // A step of some solvers in continuous time ends where the next one begins.
    DYDIT_CHECK(!before || share(*step) < share(*before) ||
                    (config.objective.continuous() && step->timestep == before->timestep),
                "{}: comes after t = {}; {} must fall from step to step", at, before->timestep,
                config.objective.continuous() ? "the noise share of t" : "t");
  }
  Kept kept(spec, config);
  RowPatches patches;
  for (auto step = spec.steps.rbegin(); step != spec.steps.rend(); ++step)
    take_step(*step, patches, guided, place(name, *step), kept);
}

}  // namespace dydit
