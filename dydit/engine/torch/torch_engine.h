// The engine on LibTorch: one code for CPU and CUDA tensors, in which what the plan and the token routers
// switch off is really left out. The CPU runs it to be held to the reference; a GPU runs it to be fast.
// Weights of the active parts lie side by side (slots.h), chosen tokens are gathered, so every product is
// dense and of a shape that the host knows: nothing waits for the device inside a step.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "dydit/engine/engine.h"
#include "dydit/engine/torch/conditioning.h"
#include "dydit/engine/torch/ops.h"
#include "dydit/engine/torch/slots.h"
#include "dydit/engine/torch/step_graph.h"
#include "dydit/model/dit.h"

namespace dydit::aten {

/// How much of a block a step computes: all that a piece of a step may know of its plan.
struct BlockShape {
  int heads = 0, groups = 0;
  int keep = -1;        // capacity rule; -1: by threshold
  int cap = 0;          // patches of a sample that are looked for among those above the threshold
  bool routes = false;  // else all tokens take part
};

/// What a run's forwards read and write, at places that stay where they are until more rows need more.
struct StepBuffers {
  int64_t rows = 0;
  at::Tensor in, out;  // (rows, channels, side, side) float32
  Conditioned conditioned;
  at::Tensor x;                     // (rows, T, C) float32, the residual stream
  std::vector<at::Tensor> outputs;  // (rows, T, C) of blocks that others are joined with
  at::Tensor counts;                // (rows, L) int32: patches above the threshold
  at::Tensor starts;                // (rows) int64: b T
};

class TorchEngine;

struct TorchWorkspace final : Workspace {
  TorchWorkspace(const TorchEngine& engine, const WorkspaceOptions& options);

  void prepare(std::vector<Visit> visits) override { conditioning.expect(std::move(visits)); }

  const TorchEngine& engine;
  Conditioning conditioning;
  std::vector<BlockSlots> slots;
  std::vector<StepBuffers> buffers;  // of each level
  // Threshold rule: the most patches that entered each block (of each level) at the last forward.
  std::vector<std::vector<int>> largest_counts;
  std::unique_ptr<StepGraphs> graphs;
  EngineStatistics statistics;
  Profile* const profile;  // null: not measured; else nothing is replayed, and every operator waited for

  /// Does work that belongs to an operator of a block, or of no block, row L.
  template <typename Fn>
  auto timed(int row, Operator op, const Fn& work);
};

class TorchEngine final : public Engine {
 public:
  TorchEngine(const Checkpoint& checkpoint, const EngineOptions& options);

  std::optional<EngineStatistics> statistics(const Workspace& workspace) const override;

 private:
  friend struct TorchWorkspace;
  struct Pass;  // rows whose plans do the same work

  std::unique_ptr<Workspace> new_workspace(const WorkspaceOptions& options) const override;
  bool owns(const Workspace& workspace) const override;
  void compute(const at::Tensor& x, std::span<const Row> rows, Workspace& workspace,
               const ForwardOutputs& outputs) const override;

  void reserve(StepBuffers& buffers, int level, int64_t rows, TorchWorkspace& w) const;
  void forward_rows(const at::Tensor& x, Pass& pass, const ForwardOutputs& outputs) const;
  std::vector<BlockShape> shapes_of(const StepPlan& step, const TorchWorkspace& w, int first_open) const;
  void run(Pass& pass) const;
  void embed(const Pass& pass) const;
  void block(const Pass& pass, int index) const;
  void finish(const Pass& pass) const;
  Chosen choose_tokens(const Pass& pass, int index, const at::Tensor& x) const;
  template <typename Fn>
  void branch(const Pass& pass, int index, Branch which, const at::Tensor& gate, const Chosen& chosen,
              const Fn& compute) const;
  void check_invariance() const;
  int64_t executed_macs(const StepPlan& step, const std::vector<BlockShape>& shapes) const;

  const at::ScalarType dtype_;
  const GraphMode graphs_;
  mutable DiT model_;  // a handle; the layers of `weights_` are taken out of it
  std::vector<BlockWeights> weights_;
  std::vector<PartOrder> orders_;
};

}  // namespace dydit::aten
