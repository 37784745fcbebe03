// The one door of all engines: what comes in is looked at here.
#include "dydit/engine/engine.h"

#include <algorithm>

#include <ATen/ops/empty.h>
#include <fmt/ranges.h>

#include "dydit/base/error.h"
#include "dydit/engine/cpu/workspace.h"

namespace dydit {
namespace {

// Of the layers that EngineOptions::dtype speaks of.
bool is_block_layer(const std::string& name) {
  return name.starts_with("blocks.") &&
         (name.find(".attn.qkv.") != std::string::npos || name.find(".attn.proj.") != std::string::npos ||
          name.find(".mlp.fc1.") != std::string::npos || name.find(".mlp.fc2.") != std::string::npos);
}

std::string description(const at::Tensor& x) {
  if (!x.defined()) return "no tensor";
  return fmt::format("({}) in {} on {}", fmt::join(x.sizes(), ", "), c10::toString(x.scalar_type()),
                     x.device().str());
}

}  // namespace

Engine::Engine(const Checkpoint& checkpoint, const WidthPlan& plan, const EngineOptions& options)
    : plan_(plan) {
  DYDIT_USAGE_CHECK(plan.config == checkpoint.config, "the plan is for {}, the weights are of {}",
                    model_name(plan.config), model_name(checkpoint.config));
  DYDIT_USAGE_CHECK(options.dtype == at::kFloat || options.dtype == at::kBFloat16,
                    "dtype {}: expected float32 or bfloat16", c10::toString(options.dtype));
  DYDIT_USAGE_CHECK(options.threads >= 1, "{} threads: expected 1 or more", options.threads);
  DYDIT_USAGE_CHECK(
      options.profile == nullptr || static_cast<int>(options.profile->size()) == plan.config.depth + 1,
      "a profile of {} rows: expected {}, one a block and one more", options.profile->size(),
      plan.config.depth + 1);
}

at::Tensor Engine::forward(const at::Tensor& x, int step, std::span<const int64_t> y, std::span<Work> work,
                           TokenTrace* trace) {
  const DiTConfig& config = plan_.config;
  const int side = config.input_size, S = static_cast<int>(plan_.steps.size());
  DYDIT_USAGE_CHECK(x.defined() && x.device().is_cpu() && x.scalar_type() == at::kFloat && x.dim() == 4 &&
                        x.size(1) == config.in_channels && x.size(2) == side && x.size(3) == side,
                    "x: expected (rows, {}, {}, {}) in float32 on the CPU, got {}", config.in_channels, side,
                    side, description(x));
  const auto B = static_cast<size_t>(x.size(0));
  DYDIT_USAGE_CHECK(step >= 0 && step < S, "step {}: the plan has steps 0 to {}", step, S - 1);
  DYDIT_USAGE_CHECK(y.size() == B, "{} labels for {} rows of x", y.size(), B);
  DYDIT_USAGE_CHECK(work.size() == B, "work for {} rows, x has {}", work.size(), B);
  for (const int64_t label : y) {
    DYDIT_USAGE_CHECK(label >= 0 && label <= config.null_class(), "label {}: expected 0 to {}", label,
                      config.null_class());
  }
  if (B == 0) return at::empty({0, config.out_channels(), side, side}, at::kFloat);
  return compute(x.contiguous(), step, y, work, trace);
}

std::unique_ptr<Engine> make_engine(EngineKind kind, const Checkpoint& checkpoint, const WidthPlan& plan,
                                    const EngineOptions& options) {
  return kind == EngineKind::Cpu ? make_cpu_engine(checkpoint, plan, options)
                                 : make_reference_engine(checkpoint, plan, options);
}

double least_engine_bytes(EngineKind kind, const Checkpoint& checkpoint, const EngineOptions& options,
                          int64_t rows) {
  const DiTConfig& config = checkpoint.config;
  const bool bf16 = options.dtype == at::kBFloat16;
  double bytes = 0;
  for (const auto& [name, weight] : checkpoint.weights) {
    const bool narrow =
        (bf16 && is_block_layer(name)) || (kind == EngineKind::Cpu && weight.scalar_type() == at::kBFloat16);
    bytes += static_cast<double>(weight.numel()) * (narrow ? 2 : 4);
  }
  const double side = config.input_size,
               outputs = static_cast<double>(rows) * config.out_channels() * side * side;
  bytes += outputs * sizeof(float);
  if (kind == EngineKind::Cpu) return bytes + cpu::workspace_bytes(config, bf16, rows, options.threads);
  // The stream and the MLP's hidden rows, of as many rows as are in work at a time.
  const double tokens = static_cast<double>(std::min<int64_t>(rows, options.threads)) * config.num_tokens();
  return bytes + tokens * (config.hidden_size * 4.0 + config.mlp_hidden * (bf16 ? 2.0 : 4.0));
}

}  // namespace dydit
