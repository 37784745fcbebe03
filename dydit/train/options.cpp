// See the header.
#include "dydit/train/options.h"

#include <algorithm>

#include "dydit/base/dtype.h"
#include "dydit/diffusion/lcm.h"
#include "dydit/model/adapters.h"
#include "dydit/model/checkpoint.h"
#include "dydit/model/edit.h"
#include "dydit/train/capacity.h"
#include "dydit/train/parameters.h"

namespace dydit {

double target_ratio(const DynamicOptions& options, int64_t step) {
  if (step < options.anneal_start) return 1.0;
  const auto W = static_cast<double>(options.anneal_steps);
  return 1.0 - (1.0 - options.lambda) * std::min(static_cast<double>(step), W) / W;
}

double learning_rate(const TrainOptions& options, int64_t step) {
  if (step >= options.warmup_steps) return options.lr;
  return options.lr * static_cast<double>(step + 1) / options.warmup_steps;
}

namespace {

bool is_router(const std::string& name) { return is_router_parameter(name) || name == kKeepShareName; }

}  // namespace

bool is_trained(const std::string& name, const TrainOptions& options) {
  if (is_router(name) || is_training_only(name)) return true;
  if (options.adapter.kind != AdapterKind::None) return is_adapter_parameter(name);
  return options.trained == TrainedPart::All;
}

double lr_scale(const std::string& name, const TrainOptions& options) {
  if (is_router(name)) return options.router_lr_scale;
  return is_adapter_parameter(name) ? options.adapter_lr_scale : 1;
}

std::optional<FewStep> few_step_of(const DistillOptions& options) {
  if (options.kind == DistillKind::None) return std::nullopt;
  const std::vector<int> grid = lcm_timesteps(kLcmGrid);
  return FewStep{"lcm", {grid.rbegin(), grid.rend()}, options.guidance};
}

nlohmann::json options_to_json(const TrainOptions& options) {
  nlohmann::json json = {{"dynamic", options.dynamic},
                         {"global-batch-size", options.global_batch},
                         {"accumulate", options.accumulate},
                         {"lr", options.lr},
                         {"warmup-step", options.warmup_steps},
                         {"weight-decay", options.weight_decay},
                         {"clip-grad", options.clip_grad},
                         {"skip-norm", options.skip_norm},
                         {"ema-decay", options.ema_decay},
                         {"label-dropout", options.label_dropout},
                         {"flip", options.flip},
                         {"dtype", kDtypeNames[options.dtype]},
                         {"global-seed", options.seed}};
  if (options.dynamic) {
    json["lambda"] = options.router.lambda;
    json["anneal-start"] = options.router.anneal_start;
    json["anneal-steps"] = options.router.anneal_steps;
    json["complete-steps"] = options.router.complete_steps;
    json["gates"] = kGateNames[options.router.gates];
    json["gate-rule"] = kGateRuleNames[options.router.gate_rule];
    json["router-lr-scale"] = options.router_lr_scale;
    if (options.router.share_gradient != ShareGradient::Boundary)
      json["share-gradient"] = kShareGradientNames[options.router.share_gradient];
    if (options.router.regions != kQuarters) json["regions"] = options.router.regions;
  }
  // Written where it is not what it always was, so that runs from before go on.
  const TimestepOptions& timesteps = options.timesteps;
  if (timesteps.draw != TimestepDraw::Stratified) json["timesteps"] = kTimestepDrawNames[timesteps.draw];
  if (timesteps.draw == TimestepDraw::Speed) {
    json["speed-k"] = timesteps.k;
    json["speed-lambda"] = timesteps.lambda;
    json["speed-tau"] = timesteps.tau;
    json["loss-weights"] = timesteps.weights;
  }
  if (timesteps.draw == TimestepDraw::LogitNormal) {
    json["logit-mean"] = timesteps.logit_mean;
    json["logit-std"] = timesteps.logit_std;
  }
  if (const AdapterConfig& adapter = options.adapter; adapter.kind != AdapterKind::None) {
    json["adapter"] = kAdapterNames[adapter.kind];
    json["lora-rank"] = adapter.rank;
    json["lora-scale"] = adapter.scale;
    json["adapter-lr-scale"] = options.adapter_lr_scale;
    if (adapter.kind == AdapterKind::TdLora) {
      json["lora-experts"] = adapter.experts;
      json["lora-mix"] = kAdapterMixNames[adapter.mix];
    }
  }
  if (options.trained != TrainedPart::All) json["train"] = kTrainedPartNames[options.trained];
  json.update(hooks_to_json(options.hooks));
  if (const DistillOptions& distill = options.distill; distill.kind != DistillKind::None) {
    json["distill"] = kDistillNames[distill.kind];
    json["distill-guidance"] = distill.guidance;
    json["loss"] = kConsistencyLossNames[distill.loss];
    json["teacher"] = distill.teacher->sha256;
  }
  json.update(options.preparation);
  return json;
}

}  // namespace dydit
