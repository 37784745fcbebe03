// Engines compute the model's forward. All of them decide alike: widths come from the plan, tokens from the
// routers; they differ in what they really multiply.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include "dydit/base/dtype.h"
#include "dydit/base/enum_names.h"
#include "dydit/base/team.h"
#include "dydit/model/checkpoint.h"
#include "dydit/plan/run_plan.h"

namespace dydit {

/// Multiply-adds of one sample's forwards. `required`: what plan and token masks need. `executed`: what the
/// engine really multiplied, padding included.
struct Work {
  int64_t required = 0;
  int64_t executed = 0;
};

/// Token decisions of a forward, for verification. Filled only where a row routes tokens; of a row that
/// routes none, all are on. Into an MLP that is not computed no token enters.
/// A row at a level of larger patches has its fewer tokens in front, and 0 behind them.
struct TokenTrace {
  at::Tensor masks;   // (B, L, N) float32, 1 = on
  at::Tensor logits;  // (B, L, N) float32
};

/// Bytes of a row's history of so many slots, in an engine's kept_type().
int64_t history_bytes(const DiTConfig& config, at::ScalarType kept, int slots);

/// What one row of a sample, the conditional or the null class's, keeps from step to step of its plan.
struct History {
  // (slots, T, C) in the engine's kept_type(), on its device; of larger patches the first rows.
  at::Tensor features;
  std::vector<int> kept_at;  // (slots) index of the step whose feature lies there, -1: none
};

/// A row of a forward: rows may be of different samples, at different steps of different plans.
struct Row {
  const StepPlan* step = nullptr;
  int64_t label = 0;           // null class included; of an unconditional model 0
  History* history = nullptr;  // this row's alone; null: of a plan without slots
};

/// What a forward gives.
struct ForwardOutputs {
  at::Tensor out = {};          // (B, out_channels, side, side) float32; undefined: made by the forward
  std::span<Work> work = {};    // (B): each row's multiply-adds are added
  TokenTrace* trace = nullptr;  // null: not wanted
};

/// Parts of a forward whose time engines can tell apart.
enum class Operator { Embed, AdaLN, Join, Norm, Qkv, Attention, Proj, Router, Fc1, Fc2, Reuse, Final };
inline constexpr int kOperators = 12;
inline constexpr std::array<std::string_view, kOperators> kOperatorNames = {
    "embed", "adaLN", "join", "norm", "qkv", "attention", "proj", "router", "fc1", "fc2", "reuse", "final"};

/// Seconds by block and operator, added up over forwards. Row L holds what belongs to no block.
using Profile = std::vector<std::array<double, kOperators>>;

enum class EngineKind { Cpu, Torch, Reference };
inline constexpr EnumNames<EngineKind, 3> kEngineNames = {
    "engine", {{"cpu", EngineKind::Cpu}, {"torch", EngineKind::Torch}, {"reference", EngineKind::Reference}}};

/// When a GPU replays a step as a CUDA graph: of small batches, which wait for launches; always; never.
enum class GraphMode { Auto, On, Off };
inline constexpr EnumNames<GraphMode, 3> kGraphModeNames = {
    "graphs", {{"auto", GraphMode::Auto}, {"on", GraphMode::On}, {"off", GraphMode::Off}}};

/// Where an engine computes. A GPU is the torch engine's.
struct DeviceOptions {
  at::Device device = at::kCPU;
  // A row's result depends on no other row of its batch; false: what is fastest. Of a GPU; elsewhere true.
  bool batch_invariant = true;
  GraphMode graphs = GraphMode::Auto;  // of a GPU
  int64_t rows = 1;  // of the largest forward that is foreseen, for whose memory a GPU is asked
};

struct EngineOptions {
  at::ScalarType dtype = at::kFloat;  // of the blocks: kFloat, kBFloat16 or, of the cpu engine, kChar
  int threads = 1;                    // that pack the weights
  std::optional<Level> level = {};    // of the CPU engine, whose weights are `dtype`; null: level_of(dtype)
  DeviceOptions where = {};
};

/// What the torch engine has done for a run so far.
struct EngineStatistics {
  int64_t forwards = 0;           // of rows with one plan, those that were done again included
  int64_t redone_forwards = 0;    // threshold rule: more tokens entered than were looked for
  int64_t slot_bytes_copied = 0;  // of weights, since other parts were on
};

/// What "auto" means for this checkpoint: auto_dtype(), of a quantised one kChar where there is arithmetic
/// for it.
at::ScalarType auto_dtype(const Checkpoint& checkpoint, EngineKind kind, at::DeviceType device = at::kCPU);
/// What such an engine keeps features in: the type of its activations.
at::ScalarType kept_type(EngineKind kind, const EngineOptions& options);
/// dtype, and where it is computed in another way than its name says, the level.
std::string arithmetic_text(EngineKind kind, at::ScalarType dtype);

struct WorkspaceOptions {
  int threads = 1;
  // L + 1 rows, filled by all engines but the reference; null: not measured. The torch engine then waits for
  // every operator and replays nothing.
  Profile* profile = nullptr;
  // (L, 2, C) raised to the largest magnitudes that qkv's and fc1's inputs have in each channel, by the CPU
  // engine with float32 activations; empty: not measured.
  std::span<float> largest_inputs = {};
};

/// A timestep at a level of patch sizes.
struct Visit {
  double timestep;
  int level = 0;
  auto operator<=>(const Visit&) const = default;
};

/// The threads and the memory of one run: forwards that go on at the same time have one each. Outlived by its
/// engine.
class Workspace {
 public:
  virtual ~Workspace() = default;
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  /// A hint: rows will make these visits in this order, so that what depends on timestep, level and label
  /// alone can be computed for several steps at a time. Changes speed, never a result.
  virtual void prepare(std::vector<Visit> /*visits*/) {}
  /// The run's threads, for work between two forwards.
  Team& team() { return crew_.together(); }

 protected:
  explicit Workspace(int threads) : crew_(threads) {}
  Crew crew_;
};

/// A model's weights, packed once; any number of runs may share them.
class Engine {
 public:
  virtual ~Engine() = default;
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  /// Throws UsageError for options out of range, Error where the system gives no more threads.
  std::unique_ptr<Workspace> make_workspace(const WorkspaceOptions& options) const;

  /// For a row of a plan with so many slots; nothing is kept yet.
  History make_history(int slots) const;
  /// x (B, in_channels, side, side) float32 on the CPU and B rows -> outputs. Row b's result depends on row b
  /// alone, bit for bit. Rows whose plans do the same work are computed together. A row's history goes
  /// through its plan's steps in order. `workspace` is of this engine, and in one forward at a time. Throws
  /// UsageError for arguments that are not these; after any exception engine and workspace can be used again.
  void forward(const at::Tensor& x, std::span<const Row> rows, Workspace& workspace,
               ForwardOutputs& outputs) const;

  const DiTConfig& config() const { return config_; }
  /// Of a workspace of this engine; null where the engine counts nothing.
  virtual std::optional<EngineStatistics> statistics(const Workspace& /*workspace*/) const { return {}; }

 protected:
  /// Throws UsageError where the options do not fit.
  Engine(EngineKind kind, const DiTConfig& config, const EngineOptions& options);

  const DiTConfig config_;
  const at::ScalarType kept_type_;
  const at::Device device_;  // of histories

 private:
  virtual std::unique_ptr<Workspace> new_workspace(const WorkspaceOptions& options) const = 0;
  virtual bool owns(const Workspace& workspace) const = 0;
  // forward() with arguments that were checked: x and out are contiguous and have a row or more, a trace that
  // is not null has tensors.
  virtual void compute(const at::Tensor& x, std::span<const Row> rows, Workspace& workspace,
                       const ForwardOutputs& outputs) const = 0;
};

/// The masked modules: executes the complete model and multiplies by masks. The truth that others are held
/// to.
std::unique_ptr<Engine> make_reference_engine(const Checkpoint& checkpoint, const EngineOptions& options);

/// Executes what the plan and the token routers leave on: weights packed once in pieces that no head or
/// channel group shares, gathered tokens, fused kernels for this processor (engine/cpu/kernels.h).
std::unique_ptr<Engine> make_cpu_engine(const Checkpoint& checkpoint, const EngineOptions& options);

/// The same on LibTorch, for a GPU: engine/torch/torch_engine.h. On the CPU, where it is tested, a row's
/// result may depend on the others of its batch. Throws Error where the device cannot be used.
std::unique_ptr<Engine> make_torch_engine(const Checkpoint& checkpoint, const EngineOptions& options);

std::unique_ptr<Engine> make_engine(EngineKind kind, const Checkpoint& checkpoint,
                                    const EngineOptions& options);

/// Bytes that such an engine and its forwards of `rows` rows on options.threads threads take at least, beside
/// the checkpoint and the rows' histories. `ranges`: of the rows' plans (RunPlan::ranges).
double least_engine_bytes(EngineKind kind, const Checkpoint& checkpoint, const EngineOptions& options,
                          int64_t rows, int ranges = 0);

/// Multiply-adds per second that this processor does at best at `level` on `threads` threads with the CPU
/// engine's instructions: measured for about `seconds`.
double measure_peak_macs(const Level& level, int threads, double seconds = 0.3);

/// The same of a GPU: products of 8192 x 8192 matrices of random numbers in `dtype`.
double measure_device_peak_macs(at::Device device, at::ScalarType dtype, double seconds);

}  // namespace dydit
