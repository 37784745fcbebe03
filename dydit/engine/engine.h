// Engines compute the model's forward for one step of a width plan. All of them decide alike: widths come
// from the plan, tokens from the routers; they differ in what they really multiply.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include <ATen/core/Tensor.h>

#include "dydit/base/dtype.h"
#include "dydit/base/enum_names.h"
#include "dydit/model/checkpoint.h"
#include "dydit/plan/width_plan.h"

namespace dydit {

/// Multiply-adds of one sample's forwards. `required`: what plan and token masks need. `executed`: what the
/// engine really multiplied, padding included.
struct Work {
  int64_t required = 0;
  int64_t executed = 0;
};

/// Token decisions of a forward, for verification. Filled only when the plan routes tokens.
struct TokenTrace {
  at::Tensor masks;   // (B, L, N) float32, 1 = on
  at::Tensor logits;  // (B, L, N) float32
};

/// Parts of a forward whose time the CPU engine can tell apart.
enum class Operator { Embed, AdaLN, Norm, Qkv, Attention, Proj, Router, Fc1, Fc2, Final };
inline constexpr int kOperators = 10;
inline constexpr std::array<std::string_view, kOperators> kOperatorNames = {
    "embed", "adaLN", "norm", "qkv", "attention", "proj", "router", "fc1", "fc2", "final"};

/// Seconds by block and operator, added up over forwards. Row L holds what belongs to no block.
using Profile = std::vector<std::array<double, kOperators>>;

enum class EngineKind { Cpu, Reference };
inline constexpr EnumNames<EngineKind, 2> kEngineNames = {
    "engine", {{"cpu", EngineKind::Cpu}, {"reference", EngineKind::Reference}}};

struct EngineOptions {
  at::ScalarType dtype = at::kFloat;  // of qkv, proj, fc1, fc2 and attention: kFloat or kBFloat16
  int threads = 1;
  Profile* profile = nullptr;  // L + 1 rows, filled by the CPU engine; null: not measured
};

class Engine {
 public:
  virtual ~Engine() = default;
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  /// x (B, in_channels, side, side) float32 on the CPU, y (B) labels (null class included), `step` an index
  /// into the plan
  /// -> (B, out_channels, side, side) float32. Row b's result depends on row b alone, bit for bit.
  /// Adds row b's multiply-adds to work[b]; `trace` may be null. Steps in descending order, as sampling takes
  /// them, with the same labels are cheapest: adaLN is computed for several at a time. One forward at a time.
  /// Throws UsageError for arguments that are not these; after any exception the engine can be used again.
  at::Tensor forward(const at::Tensor& x, int step, std::span<const int64_t> y, std::span<Work> work,
                     TokenTrace* trace = nullptr);
  virtual std::string_view name() const = 0;

 protected:
  /// Throws UsageError where plan and options do not fit the checkpoint.
  Engine(const Checkpoint& checkpoint, const WidthPlan& plan, const EngineOptions& options);

  const WidthPlan plan_;

 private:
  // forward() with arguments that were checked: x is contiguous and has a row or more.
  virtual at::Tensor compute(const at::Tensor& x, int step, std::span<const int64_t> y, std::span<Work> work,
                             TokenTrace* trace) = 0;
};

/// The masked modules: executes the complete model and multiplies by masks. The truth that others are held
/// to.
std::unique_ptr<Engine> make_reference_engine(const Checkpoint& checkpoint, const WidthPlan& plan,
                                              const EngineOptions& options);

/// Executes what the plan and the token routers leave on: weights packed once in pieces that no head or
/// channel group shares, gathered tokens, fused kernels for this processor (engine/cpu/kernels.h).
std::unique_ptr<Engine> make_cpu_engine(const Checkpoint& checkpoint, const WidthPlan& plan,
                                        const EngineOptions& options);

std::unique_ptr<Engine> make_engine(EngineKind kind, const Checkpoint& checkpoint, const WidthPlan& plan,
                                    const EngineOptions& options);

/// Bytes that such an engine and its forwards of `rows` rows take at least, beside the checkpoint.
double least_engine_bytes(EngineKind kind, const Checkpoint& checkpoint, const EngineOptions& options,
                          int64_t rows);

/// Multiply-adds per second that this processor does at best in `dtype` on `threads` threads with the CPU
/// engine's instructions: measured for about `seconds`.
double measure_peak_macs(at::ScalarType dtype, int threads, double seconds = 0.3);

}  // namespace dydit
