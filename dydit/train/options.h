// Everything a training run is told. Stage is data: a static DiT is trained with `dynamic` off.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include <ATen/core/ScalarType.h>
#include <c10/core/Device.h>
#include <nlohmann/json.hpp>

#include "dydit/base/enum_names.h"
#include "dydit/diffusion/consistency.h"
#include "dydit/diffusion/timestep_draw.h"
#include "dydit/model/config.h"
#include "dydit/model/gate_rule.h"
#include "dydit/train/hook_options.h"

namespace dydit {

struct Checkpoint;  // dydit/model/checkpoint.h
struct FewStep;

enum class GateKind {
  Hard,  // 0 or 1, straight-through
  Soft,  // the sigmoid itself as factor: a control, nothing could be skipped
};
inline constexpr EnumNames<GateKind, 2> kGateNames = {"gates",
                                                      {{"hard", GateKind::Hard}, {"soft", GateKind::Soft}}};

/// What tells the capacity rule's shares whether they should grow.
enum class ShareGradient {
  Boundary,  // the first part that is closed
  Interval,  // the parts between the counts of half a tenth less and more (DiffCR)
};
inline constexpr EnumNames<ShareGradient, 2> kShareGradientNames = {
    "share gradient", {{"boundary", ShareGradient::Boundary}, {"interval", ShareGradient::Interval}}};

struct DynamicOptions {
  double lambda = 0.5;      // work ratio to reach
  int anneal_start = 100;   // steps before the target leaves 1
  int anneal_steps = 1000;  // W: the target falls linearly and reaches lambda at step W
  int complete_steps = 0;   // steps with the complete-model term
  GateKind gates = GateKind::Hard;
  GateRule gate_rule = GateRule::Threshold;
  // Of the capacity rule.
  ShareGradient share_gradient = ShareGradient::Boundary;
  int regions = kQuarters;  // of t, each with shares of its own
};

/// What is trained of a model without adapters; of one that has some, they and the routers are.
enum class TrainedPart { All, Routers };
inline constexpr EnumNames<TrainedPart, 2> kTrainedPartNames = {
    "trained part", {{"all", TrainedPart::All}, {"routers", TrainedPart::Routers}}};

enum class DistillKind { None, Lcm };
inline constexpr EnumNames<DistillKind, 2> kDistillNames = {
    "distillation", {{"none", DistillKind::None}, {"lcm", DistillKind::Lcm}}};

/// Consistency distillation: what is learned is not noise but where the teacher's path ends (distill.h).
struct DistillOptions {
  DistillKind kind = DistillKind::None;
  std::shared_ptr<const Checkpoint> teacher;
  double guidance = 1.5;  // of the teacher, on all channels; the student's one row learns it
  ConsistencyLoss loss = ConsistencyLoss::L2;
};

struct TrainOptions {
  bool dynamic = false;
  DynamicOptions router;  // read when dynamic

  int64_t total_steps = 0;
  int global_batch = 256;  // over all processes
  int accumulate = 1;      // micro-batches a process cuts its share into
  double lr = 1e-4;
  int warmup_steps = 0;  // linear from 0
  double weight_decay = 0;
  double router_lr_scale = 1;
  double clip_grad = 0;  // gradient L2 norm to clip to; 0: none
  double skip_norm = 0;  // updates with a gradient norm of this or more are skipped; 0: none
  double ema_decay = 0.9999;
  double label_dropout = 0.1;
  bool flip = true;
  TimestepOptions timesteps;
  AdapterConfig adapter;  // as the model's
  double adapter_lr_scale = 10;
  TrainedPart trained = TrainedPart::All;
  HookOptions hooks;
  DistillOptions distill;
  at::ScalarType dtype = at::kFloat;
  at::Device device = at::kCPU;  // where the model and its buffers lie; batches and noise are made on the CPU
  uint64_t seed = 0;
  /// How the start was prepared (importance, router biases), by name: it is in the weights already, and a
  /// resumed run that asks for another is not the same run.
  nlohmann::json preparation = nlohmann::json::object();
};

/// Work ratio to aim at in step `step`: 1 before anneal_start, else 1 - (1 - lambda) min(step, W) / W.
double target_ratio(const DynamicOptions& options, int64_t step);

/// Learning rate of step `step`: linear warm-up, then constant.
double learning_rate(const TrainOptions& options, int64_t step);

/// Whether a parameter is trained, by its name; all others rest. (A pos_embed that is no parameter rests
/// anyway.)
bool is_trained(const std::string& name, const TrainOptions& options);

/// Factor on the learning rate of a parameter, by its name.
double lr_scale(const std::string& name, const TrainOptions& options);

/// What the file says of a model that is distilled so; none where nothing is distilled.
std::optional<FewStep> few_step_of(const DistillOptions& options);

/// What must agree between a run and its resumption. total_steps and device are not part of it: a run
/// may be prolonged, and go on elsewhere.
nlohmann::json options_to_json(const TrainOptions& options);

}  // namespace dydit
