// All weights of a model as the CPU engine multiplies them, and what multiplying them costs.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "dydit/base/level.h"
#include "dydit/engine/cpu/packed_linear.h"
#include "dydit/model/checkpoint.h"
#include "dydit/plan/run_plan.h"

namespace dydit::cpu {

struct PackedBlock {
  PackedLinear qkv, proj, fc1, fc2;
  PackedLinear join;                          // of a block that is joined with an earlier one
  std::vector<float> join_shift, join_scale;  // (2C) of the LayerNorm before it; empty without
  PackedLinear token_in;                      // the token router's first layer
  std::vector<float> token_out;  // its second: weights, then the bias; empty without token routers
};

/// What belongs to a size of patches.
struct PackedLevel {
  PackedLinear patch, final;
  at::Tensor pos_embed;          // (T, C) float32
  std::vector<float> embedding;  // (C), added to the timestep's; empty of level 0
};

class PackedModel {
 public:
  /// Blocks in the level's weights, those of float32, and all that is float32 by rule, in bfloat16 where the
  /// file has it so. Drops the pages of the file that it has read.
  PackedModel(const Checkpoint& checkpoint, const Level& level, int threads);
  PackedModel(const PackedModel&) = delete;
  PackedModel& operator=(const PackedModel&) = delete;

  /// Multiply-adds of a sample at this step, `tokens` (L) of it in each block's MLP, padding included; a
  /// label's adaLN is counted for every sample that has it.
  int64_t executed_macs(const StepPlan& step, std::span<const int> tokens) const;

  const DiTConfig& config() const { return config_; }
  /// Floats that a thread expands bfloat16 weights into, at most.
  size_t expanded_floats() const { return expanded_floats_; }

  std::vector<PackedBlock> blocks;
  std::vector<PackedLevel> levels;
  PackedLinear t_in, t_out;
  std::vector<PackedLinear> ada;  // of the blocks, then the final layer's; empty where constant is not
  Panels ada_panels;              // of all of them: one product
  // A modulation (modulation.h) that does not depend on timestep and label: of plain LayerNorms.
  std::vector<float> constant;
  at::Tensor labels;                          // (label rows, C) float32, or undefined
  std::vector<float> conv_weight, conv_bias;  // (out, in, 3, 3), (out); empty without

 private:
  PackedLinear pack(const Checkpoint& checkpoint, const std::string& name, int out_segments, int in_segments,
                    const Level& level, Team& team, std::span<const int> rows = {});
  PackedLinear pack_exact(const Checkpoint& checkpoint, const std::string& name, Team& team);
  PackedBlock pack_block(const Checkpoint& checkpoint, int index, const Level& level, Team& team);
  void pack_modulation(const Checkpoint& checkpoint, Team& team);
  void take_constant(const Checkpoint& checkpoint);
  int64_t attention_macs(int index, const StepPlan& step, int tokens) const;
  int64_t router_macs(int index, const StepPlan& step) const;
  int64_t mlp_macs(int index, const StepPlan& step, int tokens) const;

  const DiTConfig config_;
  const bool narrow_values_;  // attention's last panel of values, where it can be
  Arena arena_;               // of all packed weights
  size_t expanded_floats_ = 0;
};

}  // namespace dydit::cpu
