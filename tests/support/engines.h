// Engines of random checkpoints, and a forward with all that it reports.
#pragma once

#include <memory>
#include <vector>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "dydit/engine/engine.h"
#include "tests/support/random_model.h"

namespace dydit::test {

inline const std::vector<int> kTimesteps = {20, 480, 940};

struct Forward {
  at::Tensor out;
  std::vector<Work> work;
  TokenTrace trace;
};

struct EngineOf {
  EngineOf(EngineKind kind, const Checkpoint& checkpoint, const EngineOptions& options = {},
           Mode mode = Mode::Dynamic, const std::vector<int>& timesteps = kTimesteps)
      : plan(make_width_plan(checkpoint, timesteps, mode)),
        engine(make_engine(kind, checkpoint, plan, options)) {}

  Forward forward(const at::Tensor& x, int step, const std::vector<int64_t>& y) const {
    Forward result;
    result.work.resize(y.size());
    result.out = engine->forward(x, step, y, result.work, &result.trace);
    return result;
  }
  Forward forward(const Inputs& inputs, int step) const { return forward(inputs.x, step, inputs.y); }

  WidthPlan plan;
  std::unique_ptr<Engine> engine;
};

/// The token routers' last bias: every token of every block is decided alike.
inline Checkpoint with_token_bias(const DiTConfig& config, float bias) {
  Checkpoint checkpoint = random_checkpoint(config);
  for (int b = 0; b < config.depth; ++b) {
    checkpoint.weights.at(fmt::format("blocks.{}.token_selection.mlp_head.2.bias", b)).fill_(bias);
  }
  return checkpoint;
}

/// Rows [first, first + count) of `inputs`.
inline Inputs rows_of(const Inputs& inputs, int first, int count) {
  return {inputs.x.slice(0, first, first + count),
          {inputs.y.begin() + first, inputs.y.begin() + first + count}};
}

}  // namespace dydit::test
