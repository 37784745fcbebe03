// The CPU engine: what it holds of a model, of a run and of a pass. cpu_engine.cpp divides a batch into
// passes, forward_pass.cpp takes one through the blocks.
#pragma once

#include <algorithm>
#include <chrono>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "dydit/base/team.h"
#include "dydit/engine/cpu/branch_cache.h"
#include "dydit/engine/cpu/int8.h"
#include "dydit/engine/cpu/kernels.h"
#include "dydit/engine/cpu/modulation.h"
#include "dydit/engine/cpu/packed_model.h"
#include "dydit/engine/cpu/product.h"
#include "dydit/engine/cpu/workspace.h"
#include "dydit/engine/engine.h"

namespace dydit::cpu {

inline constexpr int kRouterRows = 24;
inline constexpr int kGroupRows = 96;  // of a channel group, which is rounded to 8 bits when it is complete

// What a pass works in. Tokens are rows: x is the residual stream, rows its normalised rows, hidden the
// MLP's.
struct PassMemory {
  PassMemory(Team& team, const ThreadFloats& expanded, const DiTConfig& config, bool bf16)
      : team(team), expanded(expanded), cache(config, bf16) {}

  Team& team;
  const ThreadFloats expanded;  // of run_product()
  BranchCache cache;
  Buffer x, rows, qkv, heads, hidden, patches, logits;
  Buffer joined, outputs;  // rows of 2C; (joins, rows, C) what blocks gave that others are joined with
  Buffer row_scales, part_scales;  // of 8-bit rows, and of their heads or groups
  std::vector<const float*> gates;
  Panels panels;
  std::vector<int> segments;
  std::vector<int> gathered;    // rows that enter the MLP, or the block
  std::vector<int> starts;      // (samples + 1) where each sample's begin among them, or among all
  std::vector<int> patch_rows;  // of all samples; empty where all rows are patches
  std::vector<int> kept;        // (samples, L) tokens that entered each MLP
  Profile profile;              // of the passes since it was last read
  std::vector<float> largest;   // WorkspaceOptions::largest_inputs of this memory's passes
};

class CpuEngine;

// Of a run.
struct CpuWorkspace final : Workspace {
  CpuWorkspace(const CpuEngine& engine, const PackedModel& model, const WorkspaceOptions& options);

  void prepare(std::vector<Visit> visits) override { modulation.expect(std::move(visits)); }
  Crew& crew() { return crew_; }

  const CpuEngine& engine;
  Profile* const profile;
  const std::span<float> largest_inputs;
  Buffer expanded;  // of run_product(), a part for each thread
  const ThreadFloats expanded_parts;
  Modulation modulation;
  std::vector<Modulation::Key> keys;  // of the rows
  RowGroups groups;
  Buffer scratch, router, unrounded;  // of attention, of the token router, and of what is to be quantised: a
                                      // part for each thread
  PassMemory shared;                  // of passes that all threads share
  std::vector<PassMemory> own;        // each thread's, of passes that it does alone
};

struct Pass : PassRows {
  bool routes_tokens;
  TokenTrace* trace;
  CpuWorkspace& run;
  PassMemory& w;
};

class CpuEngine final : public Engine {
 public:
  CpuEngine(const Checkpoint& checkpoint, const EngineOptions& options);

  bool bf16() const { return bf16_; }
  bool int8() const { return int8_ != nullptr; }
  // Of one thread.
  size_t unrounded_floats() const {
    return static_cast<size_t>(std::max({T_ * even(D_), kGroupRows * even(config_.group_size()), row_}));
  }
  size_t scratch_bytes() const { return attention_scratch(T_, D_, bf16_ ? 2 : 4) / 64 * 64 + 64; }
  size_t router_floats() const { return size_t{kRouterRows} * config_.token_router_hidden(); }

 private:
  std::unique_ptr<Workspace> new_workspace(const WorkspaceOptions& options) const override;
  bool owns(const Workspace& workspace) const override {
    const auto* run = dynamic_cast<const CpuWorkspace*>(&workspace);
    return run != nullptr && &run->engine == this;
  }
  void compute(const at::Tensor& x, std::span<const Row> rows, Workspace& workspace,
               const ForwardOutputs& outputs) const override;

  void reserve(PassMemory& w, int samples, int ranges, int level) const;
  void forward_pass(const Pass& pass, const float* x, float* out) const;
  void embed(const Pass& pass, const float* x) const;
  void join(const Pass& pass, int index) const;
  void keep_output(const Pass& pass, int index) const;
  void attention_half(const Pass& pass, int index, int tokens) const;
  int route(const Pass& pass, int index) const;
  void mlp_half(const Pass& pass, int index, int tokens) const;
  void add_forecasts(const Pass& pass, int index) const;
  void keep_ranges(const Pass& pass, int index) const;
  void final_layer(const Pass& pass, float* out) const;
  void convolve(const Pass& pass, const float* images, float* out) const;

  // Elements from row to row of a layer's inputs that are whole tokens.
  int64_t input_row(const PackedLinear& layer) const { return layer.int8() ? layer.padded_in_size() : row_; }
  void token_logits(const Pass& pass, const PackedBlock& block) const;
  void norm(const Pass& pass, int rows, const int* gathered, int64_t shift, double eps,
            const PackedLinear& next) const;
  void norm_of_branch(const Pass& pass, int rows, const int* gathered, int index, Branch which) const;
  void int8_hidden(const Pass& pass, const PackedLinear& weights, int groups, int rows) const;
  void quantize(const Quantize& rows) const { (bf16_ ? int8_->quantize_bf16 : int8_->quantize_float)(rows); }
  const float* const* gates_at(const Pass& pass, int64_t offset) const;
  // Over the memory's panels.
  void multiply(PassMemory& w, const PackedLinear& weights, const Gemm& gemm, int rows) const {
    run_product(w.team, weights, w.panels, gemm, rows, w.expanded);
  }

  const bool bf16_;  // the activations
  const Kernels& kernels_;
  const Int8Kernels* const int8_;        // null: products of the activations' type
  const int N_, X_, T_, C_, L_, H_, D_;  // N patches, X tokens in front of them, T of both: of level 0
  const int row_;                        // elements of a token's row: C padded to a pair
  const Epilogue gelu_;
  const PackedModel model_;
};

// Adds the time of fn to (row, op) of the memory's profile.
template <typename Fn>
void timed(PassMemory& w, int row, Operator op, const Fn& fn) {
  if (w.profile.empty()) return fn();
  const auto start = std::chrono::steady_clock::now();
  fn();
  w.profile[row][static_cast<int>(op)] +=
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace dydit::cpu
