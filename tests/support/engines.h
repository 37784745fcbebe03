// Engines of random checkpoints, and a forward with all that it reports.
#pragma once

#include <memory>
#include <vector>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "dydit/engine/engine.h"
#include "tests/support/random_model.h"

namespace dydit::test {

inline const std::vector<double> kTimesteps = {20, 480, 940};

/// A table's timesteps as its functions take them.
inline std::vector<int> steps_of_table(const std::vector<double>& timesteps) {
  return {timesteps.begin(), timesteps.end()};
}

struct Forward {
  at::Tensor out;
  std::vector<Work> work;
  TokenTrace trace;
};

/// An engine, a plan for it and a run's workspace.
struct EngineOf {
  EngineOf(EngineKind kind, const Checkpoint& checkpoint, const EngineOptions& options = {},
           Mode mode = Mode::Dynamic, const std::vector<double>& timesteps = kTimesteps,
           Profile* profile = nullptr)
      : plan(make_width_plan(checkpoint, timesteps, mode)),
        engine(make_engine(kind, checkpoint, options)),
        workspace(engine->make_workspace({.threads = options.threads, .profile = profile})) {
    workspace->prepare({timesteps.rbegin(), timesteps.rend()});
  }

  std::vector<Row> rows(int step, const std::vector<int64_t>& y) const {
    std::vector<Row> rows;
    for (const int64_t label : y) rows.push_back({&plan.steps[step], label});
    return rows;
  }
  void forward(const at::Tensor& x, int step, const std::vector<int64_t>& y, ForwardOutputs& outputs) const {
    engine->forward(x, rows(step, y), *workspace, outputs);
  }
  Forward forward(const at::Tensor& x, int step, const std::vector<int64_t>& y) const {
    Forward result;
    result.work.resize(y.size());
    ForwardOutputs outputs{{}, result.work, &result.trace};
    forward(x, step, y, outputs);
    result.out = outputs.out;
    return result;
  }
  Forward forward(const Inputs& inputs, int step) const { return forward(inputs.x, step, inputs.y); }

  RunPlan plan;
  std::unique_ptr<Engine> engine;
  std::unique_ptr<Workspace> workspace;
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
