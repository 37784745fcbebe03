// All that is known of a run before sampling, one entry a step: which heads and channel groups are on (TDW
// sees the timestep alone), which branches are computed, kept or forecast, whether guidance is paid for.
// Every engine obeys it, so all decide alike, and cost, memory and "same image" follow from it; only the
// identity of tokens is decided inside the loop.
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "dydit/base/enum_names.h"
#include "dydit/model/checkpoint.h"
#include "dydit/model/gates.h"
#include "dydit/plan/plan_spec.h"

namespace dydit {

enum class Mode { Dynamic, Static };  // Static: the complete model, routers ignored
inline constexpr EnumNames<Mode, 2> kModeNames = {"mode",
                                                  {{"dynamic", Mode::Dynamic}, {"static", Mode::Static}}};

/// A part or a token is on iff its router's logit is above this: sigmoid(0) = 0.5.
inline constexpr float kGateThreshold = 0.0f;

struct BlockWidth {
  std::vector<uint8_t> heads;   // (H) 1 = on; the first is always on
  std::vector<uint8_t> groups;  // (H) likewise
  int keep_tokens = -1;         // capacity rule: this many tokens enter the MLP; -1: by threshold

  int active_heads() const;
  int active_groups() const;
  bool operator==(const BlockWidth&) const = default;
};

/// A term of a forecast: a feature that was kept, times a weight.
struct Term {
  int slot = 0;  // of the row's history
  int step = 0;  // index of the step that kept it there
  float weight = 1;
};

/// What a step does with a branch, un-gated and its bias included; tokens that are off are 0 in it.
struct BranchPlan {
  Action action = kCompute;
  int store = -1;           // slot that keeps what is computed; -1: nobody asks for it
  std::vector<Term> terms;  // of a forecast, the newest first: their sum, in this order, is its value
};

/// Blocks [from, to) whose effect on the stream is kept in `store`, or replaced by `terms` (skipped).
struct RangePlan {
  int from = 0, to = 0;
  int store = -1;
  std::vector<Term> terms;
  bool absolute = false;  // the stream behind them itself is kept and forecast

  bool skipped() const { return !terms.empty(); }
};

/// What a step does about guidance. Slots are of the sample's history of differences between its two rows.
struct GuidePlan {
  GuideKind kind = GuideKind::Full;
  std::optional<float> scale;  // unset: the run's
  int store = -1;
  std::vector<Term> terms;
};

/// All that an engine is told of a step.
struct StepPlan {
  double timestep = 0;  // of the objective's clock: 0..999 of a DiT
  Mode mode = Mode::Static;
  int level = 0;  // of patch sizes
  std::vector<BlockWidth> blocks;
  float margin = std::numeric_limits<float>::infinity();  // the smallest decision_margin of its routers
  // Filled by apply_spec.
  int index = 0;  // of the run's steps
  int slots = 0;  // of a row's history in this run
  // (2L): attention and MLP of each block; empty: all computed, none kept.
  std::vector<BranchPlan> branches = {};
  std::vector<RangePlan> ranges = {};  // by `from`, the longer first
  GuidePlan guide = {};

  /// Whether the token routers decide who enters the MLP, or the block.
  bool routes_tokens(const DiTConfig& config) const { return mode == Mode::Dynamic && config.token_routers; }
  /// Whether they are asked in this block: where something is computed that they decide about.
  bool routes_at(const DiTConfig& config, int block) const {
    return routes_tokens(config) &&
           (computes(block, Branch::Mlp) ||
            (config.token_scope == TokenScope::Block && computes(block, Branch::Attention)));
  }
  const BranchPlan& branch(int block, Branch which) const {
    static const BranchPlan computed;
    return branches.empty() ? computed : branches[2 * block + static_cast<int>(which)];
  }
  bool computes(int block, Branch which) const { return branch(block, which).action == kCompute; }
  /// The skipped range that begins at this block; null: none.
  const RangePlan* skipped_from(int block) const;
  /// Whether a forward does the same at both steps, but for timestep, slots and the terms of forecasts.
  bool same_work(const StepPlan& other) const;
};

struct RunPlan {
  DiTConfig config;
  std::vector<StepPlan> steps;  // in the order of the timesteps given
  // The same steps at the levels of larger patches, which apply_spec chooses from.
  std::vector<std::vector<StepPlan>> larger = {};
  // Of the steps whose guide is weak: what the second row does there; empty where no step's is.
  std::vector<StepPlan> weak = {};
  std::string name = {};  // of the spec; empty: everything is computed
  int slots = 0;          // features (N, C) that each row keeps at a time
  int ranges = 0;         // the most that a step keeps or skips
  int guide_slots = 0;    // differences (guided channels, side, side) that each sample keeps

  /// Rows of a sample at a step: 2 where guidance is paid for.
  int rows(size_t step, bool guided) const {
    return guided && pays_both_rows(steps[step].guide.kind) ? 2 : 1;
  }
  /// What row 0, the conditional one, or row 1 does at a step.
  const StepPlan& of_row(size_t step, int row) const {
    return row > 0 && steps[step].guide.kind == GuideKind::Weak ? weak[step] : steps[step];
  }
};

/// Runs the width routers in float32 for every timestep. Mode::Static, or a model without width routers,
/// gives a plan with every part on. Throws Error for a time that the objective's clock does not have. The
/// result depends neither on thread count nor on the other timesteps.
RunPlan make_width_plan(const Checkpoint& checkpoint, std::span<const double> timesteps, Mode mode);
/// The same of a table's timesteps.
RunPlan make_width_plan(const Checkpoint& checkpoint, std::span<const int> timesteps, Mode mode);

/// Which of so many equal regions of the noise share it is, 0 nearest to the image: by its counts the
/// capacity rule decides.
int region_of(const Objective& objective, double timestep, int regions = kQuarters);

/// Makes `spec`, which fits it (check_spec), part of a plan of its timesteps, which ascend: levels, widths by
/// hand (the second row of weak guidance keeps its routers'), actions, and the weights and slots that follow
/// from them. `guided`: as check_spec.
void apply_spec(const PlanSpec& spec, bool guided, RunPlan& plan);

/// Multiply-adds of one image by the plan: all steps, both rows where guidance is paid for. Tokens of the
/// threshold rule are known only inside the loop: all are counted, so this is a bound from above there.
int64_t plan_macs(const RunPlan& plan, bool guided);

/// Multiply-adds that a step needs for one row, `tokens` (L) of them entering each block's MLP (empty: all N,
/// or as many as a capacity keeps). What is computed is counted, routers included when the step is dynamic; a
/// forecast branch costs its gate alone, a skipped one nothing. The sums of forecasts are not counted:
/// element-wise, like norms.
int64_t required_macs(const DiTConfig& config, const StepPlan& step, std::span<const int> tokens = {});

/// Which tokens enter the MLP: those above the threshold, or the `keep_tokens` largest (first of equals) when
/// that is not negative. logits (N) -> (N) of 0 and 1. Every engine decides by this.
std::vector<uint8_t> select_tokens(std::span<const float> logits, int keep_tokens);

/// How far these decisions are from being others: the smallest distance of a logit from the threshold
/// (`keep` negative) or between the `keep`-th largest and the next; infinity where nothing can change.
float decision_margin(std::span<const float> logits, int keep);

/// Share of (block, timestep) pairs whose active set is a prefix once the parts are ordered by how often they
/// are on: 1 means that every pattern is a slice.
double nesting_share(const RunPlan& plan);

}  // namespace dydit
