// dydit verify, in pieces: the report, the reference file, and a replay for each kind of recorded vectors.
#pragma once

#include <algorithm>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>
#include <nlohmann/json.hpp>

#include "dydit/engine/engine.h"
#include "dydit/model/checkpoint.h"
#include "dydit/train/gates.h"
#include "dydit/vae/autoencoder.h"

namespace dydit {

// Largest difference over largest value, per tensor.
inline constexpr double kForwardTolerance = 1e-5;    // float32 forwards and single steps
inline constexpr double kRunTolerance = 1e-4;        // whole sampling runs
inline constexpr double kTrainingTolerance = 1e-4;   // loss terms and, norm-wise, gradients
inline constexpr double kTableTolerance = 1e-9;      // float64 tables
inline constexpr double kBf16Tolerance = 2e-2;       // bf16 forwards, where tokens agree
inline constexpr double kBf16TokenFlipShare = 5e-3;  // bf16 token decisions that may differ first

/// How close the decisions of a recorded forward or run came to being others. Rounding, which differs between
/// processors, moves a logit by about kForwardTolerance of the largest of its router.
class Margin {
 public:
  /// Of the width routers at the plan's steps, one a row, and of the token routers where `trace` has them.
  void add(const RunPlan& plan, const TokenTrace& trace);

  double smallest() const { return smallest_; }
  bool within_rounding() const { return smallest_share_ <= kForwardTolerance; }

 private:
  float smallest_ = std::numeric_limits<float>::infinity();
  float smallest_share_ = std::numeric_limits<float>::infinity();  // of the largest logit
};

/// One line a check; fails if any check fails.
class VerifyReport {
 public:
  /// max|got - want| / max|want| against `limit`. `weight`, when defined, is a 0/1 mask of the values
  /// compared. With the `margin` of the decisions behind it, a failure that a flipped one explains is called
  /// so.
  void compare(const std::string& name, const at::Tensor& got, const at::Tensor& want, double limit,
               const at::Tensor& weight = {}, const Margin* margin = nullptr);
  /// An error that the caller has measured.
  void error(const std::string& name, double error, double limit, const std::string& scope = "",
             const Margin* margin = nullptr);
  /// Decisions that must agree, but for a share of `allowed`.
  void count(const std::string& name, int64_t disagreements, int64_t total, double allowed = 0);
  /// What could not be checked, and why.
  void skip(const std::string& name, const std::string& why);
  /// A remark below the last check, e.g. which token flipped.
  void note(const std::string& text);

  bool passed() const { return passed_; }
  size_t size() const { return checks_.size(); }
  void print() const;
  nlohmann::json to_json() const { return checks_; }
  const nlohmann::json& skipped() const { return skipped_; }

 private:
  void add(const std::string& name, bool ok, nlohmann::json check, const std::string& text);

  nlohmann::json checks_ = nlohmann::json::array(), skipped_ = nlohmann::json::array();
  std::vector<std::string> lines_;
  bool passed_ = true;
};

/// The recorded tensors, with errors that name what is missing.
class Reference {
 public:
  explicit Reference(const std::string& path);
  bool has(const std::string& name) const { return tensors_.contains(name); }
  const at::Tensor& at(const std::string& name) const;
  std::vector<std::string> names() const;
  const std::string& path() const { return path_; }
  /// The metadata of that key; empty without.
  std::string metadata(const std::string& key) const;

 private:
  std::string path_;
  Weights tensors_;
  std::map<std::string, std::string> metadata_;
};

struct VerifyContext {
  const Checkpoint& checkpoint;
  const Reference& reference;
  at::ScalarType dtype;
  EngineKind engine;
  int threads;
  DeviceOptions where = {};  // of `engine`

  /// That replay what is recorded of any engine: the reference, the CPU's, and the one asked for.
  std::vector<EngineKind> engines() const {
    std::vector<EngineKind> kinds = {EngineKind::Reference, EngineKind::Cpu};
    if (engine == EngineKind::Torch) kinds.push_back(engine);
    return kinds;
  }
  EngineOptions options(EngineKind kind, at::ScalarType type) const {
    return {.dtype = type, .threads = threads, .where = kind == engine ? where : DeviceOptions()};
  }
};

/// Recorded forwards: x, t, y -> out, masks, out_static, cfg_out.
void verify_forward(const VerifyContext& context, VerifyReport& report);

/// Levels of patch sizes of the model: init.levels.1.*, levels.1.* -> out_levelL, guided_eps, grad.*; both
/// engines.
void verify_levels(const VerifyContext& context, VerifyReport& report);

/// Recorded tables, timesteps, single steps and sampling runs.
void verify_diffusion(const VerifyContext& context, VerifyReport& report);

/// Recorded runs of plans: MODE.SPACING.PLAN.out with plans/SPACING_PLAN.json beside the reference; both
/// engines.
void verify_plans(const VerifyContext& context, VerifyReport& report);

/// A recorded training step: x0, t, y, noise, gumbel.* -> loss terms and grad.*.
void verify_training(const VerifyContext& context, VerifyReport& report);

/// Recorded encodes and decodes: x, z -> moments, decoded, stage.* (AutoencoderKL); image -> latents,
/// decoded.
void verify_autoencoder(const AutoencoderFile& file, const Reference& reference, at::ScalarType dtype,
                        int threads, VerifyReport& report);

/// Features of the FID network with weights by recipe, stage by stage, in every resize.
void verify_inception(const Reference& reference, int threads, VerifyReport& report);
/// Features of the other networks, of weights that lie near the vectors; those without are skipped and said.
void verify_extractors(const Reference& reference, int threads, VerifyReport& report);
/// Recorded features (ref, gen, ...) and the metrics that metrics.json beside them says.
void verify_metrics(const Reference& reference, int threads, VerifyReport& report);

/// Recorded tables and draws of timesteps (SpeeD), with the loss and the work that they weigh.
void verify_timesteps(const Reference& reference, int threads, VerifyReport& report);

/// Recorded outputs and gradients of one linear with a low-rank update, TD-LoRA's (our form) and plain.
void verify_adapters(const Reference& reference, int threads, VerifyReport& report);

/// Recorded losses on features, their heads and their gradients.
void verify_alignment(const Reference& reference, int threads, VerifyReport& report);

/// Recorded consistency distillation (LCM): tables, losses with gradients, a run; which steps T-Stitch gives
/// away.
void verify_few_step(const Reference& reference, int threads, VerifyReport& report);

/// Forwards of an engine, and the decisions behind them.
class Replay {
 public:
  Replay(const VerifyContext& context, EngineKind kind, at::ScalarType dtype);
  /// x, its rows' timesteps and labels -> output; `trace` receives the token decisions.
  at::Tensor forward(const at::Tensor& x, std::span<const double> t, std::span<const int64_t> y, Mode mode,
                     TokenTrace& trace);
  /// Of the last forward: one step of the plan a row.
  const RunPlan& plan() const { return plan_; }
  /// Of all decisions so far.
  const Margin& margin() const { return margin_; }

 private:
  const Checkpoint& checkpoint_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<Workspace> workspace_;
  RunPlan plan_;
  Margin margin_;
};

/// Recorded runs of other families, by the metadata `runs`; both engines replay them.
void verify_family_runs(const VerifyContext& context, VerifyReport& report);
/// A recorded training step of theirs.
void verify_family_training(const VerifyContext& context, VerifyReport& report);

/// The recorded noise of a training step's gates; `prefix` of its names.
GateNoise recorded_noise(const Reference& reference, const DiTConfig& config, const std::string& prefix = "");

/// Labels of a recorded batch, checked against the model (the null class is allowed).
std::vector<int64_t> checked_labels(const VerifyContext& context, const std::string& name, int64_t rows);
/// Timesteps of a table, checked to be 0..999.
std::vector<int> checked_timesteps(const Reference& reference, const std::string& name);
/// Times of a recorded batch as the network takes them; of a U-ViT noise shares are recorded.
std::vector<double> checked_timesteps(const VerifyContext& context, const std::string& name);
/// A recorded batch of inputs, checked to fit the model.
at::Tensor checked_input(const VerifyContext& context, const std::string& name);

}  // namespace dydit
