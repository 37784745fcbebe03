// A run's plan as a file, a policy or a search says it: what every step does with each branch. What it leaves
// open (widths, tokens) the checkpoint's routers decide; run_plan.h makes of both what engines obey.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dydit/model/config.h"
#include "dydit/plan/forecast.h"

namespace dydit {

/// What a step does with a branch (the attention or the MLP of a block): an order 0..kMaxOrder is a forecast
/// of that order from its last features, 0 the newest as it is.
using Action = int8_t;
inline constexpr Action kCompute = -1;
inline constexpr Action kSkipped = kMaxOrder + 1;  // inside a RangeSkip

/// Blocks [from, to) are not run: the stream after them is the one before plus a forecast of the difference.
/// absolute: the stream after them is a forecast of what it was there itself (Skip-DiT).
struct RangeSkip {
  int from = 0, to = 0;
  int order = 0;
  bool absolute = false;
  bool operator==(const RangeSkip&) const = default;
};

enum class GuideKind {
  Full,      // both rows
  Off,       // the conditional row alone, scale 1
  Forecast,  // the conditional row, and a forecast of the difference that guidance makes
  Weak,      // both rows; the second has the same label, at the level of the largest patches
};

/// A step, as it is written.
struct StepSpec {
  double timestep = 0;            // of the objective's clock: 0..999 of a DiT
  int level = 0;                  // of patch sizes
  std::vector<Action> attn, mlp;  // (L)
  std::vector<RangeSkip> ranges = {};
  GuideKind guide = GuideKind::Full;
  int guide_order = 0;              // of GuideKind::Forecast
  std::optional<float> scale = {};  // guidance scale; unset: the run's
  bool restart = false;             // what was kept is forgotten before this step
  // By hand; empty: the routers' in a dynamic run, all in a static one.
  std::vector<std::vector<uint8_t>> heads = {}, groups = {};  // (L) of (H), 1 = on, the first always
  // Tokens that enter each block's MLP, 1..N, or -1: those above the threshold; empty: as the checkpoint
  // says.
  std::vector<int> tokens = {};

  bool computes_all() const;
  bool operator==(const StepSpec&) const = default;
};

/// Whether a step with such guidance runs two rows of a sample.
bool pays_both_rows(GuideKind kind);
/// Which patches those rows have whose features are kept, step by step.
class RowPatches {
 public:
  /// Whether a row of the next step has others, so that all that was kept is forgotten.
  bool change(const StepSpec& step, bool guided);

 private:
  int level_ = -1;                   // of the conditional row; -1: no step was taken
  std::optional<GuideKind> second_;  // of what kind the second row is; unset: nothing of it is kept
};

struct PlanSpec {
  std::string name;
  Forecast forecast = {};
  std::vector<StepSpec> steps = {};  // by noise: the last, the noisiest, is taken first
  std::string note = {};
  // What a run of it must be; unset: anything.
  std::optional<std::string> sampler = {}, mode = {}, model_sha256 = {};
  std::optional<float> eta = {}, cfg_scale = {};

  std::vector<double> timesteps() const;
  /// Whether it says what only routers decide: a static run can not take it.
  bool for_dynamic() const;
  bool operator==(const PlanSpec&) const = default;
};

/// A plan that computes everything.
PlanSpec full_spec(const DiTConfig& config, std::span<const double> timesteps);

/// Throws Error in one line where these steps can not be taken by this model; `name` is the file's or the
/// policy's. `guided`: the run has guidance; without it what a step says of guidance is passed over.
void check_spec(const PlanSpec& spec, const DiTConfig& config, bool guided, const std::string& name);

/// A plan file (JSON, docs/formats.md). Throws Error in one line for text that is none, or of a model of
/// other sizes; whether its steps can be taken check_spec says, which knows of guidance.
PlanSpec parse_plan(std::string_view text, const DiTConfig& config, const std::string& name);
PlanSpec read_plan(const std::filesystem::path& path, const DiTConfig& config);
/// Steps in the order in which they are taken, one a line.
std::string plan_text(const PlanSpec& spec, const DiTConfig& config);

}  // namespace dydit
