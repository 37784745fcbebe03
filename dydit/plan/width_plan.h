// The width plan: which heads and channel groups are on, for every timestep of a run and every block.
// Head and group decisions see the timestep alone (TDW), so they are known before sampling and are the same
// for all samples. Every engine takes them from here; only the identity of tokens is decided inside the loop.
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "dydit/base/enum_names.h"
#include "dydit/model/checkpoint.h"

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

/// All that an engine is told of a step.
struct StepPlan {
  int timestep = 0;  // original timestep, 0..999
  Mode mode = Mode::Static;
  std::vector<BlockWidth> blocks;
  float margin = std::numeric_limits<float>::infinity();  // the smallest decision_margin of its routers

  /// Whether the token routers decide who enters the MLP.
  bool routes_tokens(const DiTConfig& config) const { return mode == Mode::Dynamic && config.token_routers; }
  /// Whether a forward does the same at both steps, but for the timestep.
  bool same_work(const StepPlan& other) const { return mode == other.mode && blocks == other.blocks; }
};

struct WidthPlan {
  DiTConfig config;
  std::vector<StepPlan> steps;  // in the order of the timesteps given
};

/// Runs the width routers in float32 for every timestep. Mode::Static, or a model without width routers,
/// gives a plan with every part on. Throws Error for a timestep outside 0..999. The result depends neither on
/// thread count nor on the other timesteps.
WidthPlan make_width_plan(const Checkpoint& checkpoint, std::span<const int> timesteps, Mode mode);

/// Multiply-adds that a step needs for one sample, `tokens` (L) of them entering each block's MLP (empty: all
/// N). Routers are counted when the step is dynamic.
int64_t required_macs(const DiTConfig& config, const StepPlan& step, std::span<const int> tokens = {});

/// Which tokens enter the MLP: those above the threshold, or the `keep_tokens` largest (first of equals) when
/// that is not negative. logits (N) -> (N) of 0 and 1. Every engine decides by this.
std::vector<uint8_t> select_tokens(std::span<const float> logits, int keep_tokens);

/// How far these decisions are from being others: the smallest distance of a logit from the threshold
/// (`keep` negative) or between the `keep`-th largest and the next; infinity where nothing can change.
float decision_margin(std::span<const float> logits, int keep);

/// Share of (block, timestep) pairs whose active set is a prefix once the parts are ordered by how often they
/// are on: 1 means that every pattern is a slice.
double nesting_share(const WidthPlan& plan);

}  // namespace dydit
