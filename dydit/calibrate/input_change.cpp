#include "dydit/calibrate/input_change.h"

#include <memory>

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <fmt/format.h>

#include "dydit/model/embeddings.h"
#include "dydit/pipeline/scheduler.h"

namespace dydit {
namespace {

// x (in_channels, side, side) -> (N, C): modulate(norm(tokens)) of block 0.
at::Tensor modulated_input(const Checkpoint& checkpoint, const at::Tensor& x, double timestep, int label) {
  const DiTConfig& config = checkpoint.config;
  const int64_t g = config.grid(), p = config.patch_size;
  const at::Tensor patches = x.reshape({config.in_channels, g, p, g, p})
                                 .permute({1, 3, 0, 2, 4})
                                 .reshape({g * g, config.patch_values()});
  const auto weight = [&](const char* name) { return checkpoint.weights.at(name).to(at::kFloat); };
  const at::Tensor tokens =
      linear(checkpoint, "x_embedder.proj", patches) + weight("pos_embed")[0].slice(0, config.extras());
  const at::Tensor normal =
      at::layer_norm(tokens, {config.hidden_size}, {}, {}, config.block(0).attn_norm_eps);
  if (config.modulation == Modulation::Affine)
    return normal * weight("blocks.0.norm1.weight") + weight("blocks.0.norm1.bias");
  const at::Tensor c = embed_timesteps(checkpoint, at::tensor({timestep}, at::kDouble)) +
                       weight("y_embedder.embedding_table.weight")[label];
  const auto ada = linear(checkpoint, "blocks.0.adaLN_modulation.1", at::silu(c)).chunk(6, 1);
  return normal * (1 + ada[1]) + ada[0];
}

}  // namespace

std::vector<double> input_changes(const Checkpoint& checkpoint, const Pipeline& pipeline,
                                  const Request& request, const SamplingOptions& options,
                                  const CancelFlag* cancel) {
  c10::InferenceMode guard;
  const auto course = std::make_shared<Course>(request, pipeline.plan(request));
  Scheduler scheduler(pipeline.engine(), options);
  scheduler.add(course, 0, request.num_images);
  std::vector<at::Tensor> before(request.num_images);
  std::vector<double> changes(course->plan.steps.size());
  while (!scheduler.in_flight().empty()) {
    if (cancel && *cancel) throw Cancelled();
    for (size_t i = 0; i < before.size(); ++i) {
      const Sample& sample = scheduler.in_flight()[i];
      const at::Tensor now =
          modulated_input(checkpoint, sample.x, course->plan.steps[sample.step].timestep, sample.label);
      if (before[i].defined()) {
        changes[sample.step] += ((now - before[i]).abs().mean() / before[i].abs().mean()).item<double>() /
                                static_cast<double>(before.size());
      }
      before[i] = now;
    }
    scheduler.step();
  }
  return changes;
}

PlanSpec threshold_plan(std::span<const double> changes, double threshold, const DiTConfig& config,
                        std::span<const double> timesteps) {
  PlanSpec plan = full_spec(config, timesteps);
  plan.name = fmt::format("threshold:{}", threshold);
  double sum = 0;
  for (size_t s = plan.steps.size() - 1; s-- > 1;) {
    sum += changes[s];
    if (sum >= threshold) {
      sum = 0;
      continue;
    }
    StepSpec& step = plan.steps[s];
    step.attn = step.mlp = std::vector<Action>(config.depth, kSkipped);
    step.ranges = {{0, config.depth, 0}};
  }
  return plan;
}

}  // namespace dydit
