// Gates of training (DyDiT, section 3.4): Gumbel noise on the router logits, hard 0/1 with a straight-through
// gradient, and the work ratio that the FLOPs loss sees.
#pragma once

#include <cstdint>
#include <vector>

#include "dydit/model/config.h"
#include "dydit/model/gates.h"
#include "dydit/train/options.h"

namespace dydit {

class DiT;  // dydit/model/dit.h, which brings torch/torch.h

inline constexpr double kGumbelTau = 5.0;

/// G1 - G2, the difference of two Gumbel draws: one for every sample, block and gate.
struct GateNoise {
  std::vector<at::Tensor> heads;   // L of (B, H-1); empty without width routers
  std::vector<at::Tensor> groups;  // L of (B, H-1)
  std::vector<at::Tensor>
      tokens;  // L of (B, N) of level 0, others take the first; empty without token routers
};

/// Noise of samples [first, first + count) of step `step`'s global batch: a function of (seed, step, sample).
GateNoise draw_gate_noise(const DiTConfig& config, uint64_t seed, uint64_t step, int first, int count);

/// gate = sigmoid((logit + noise) / tau), 1 where above 0.5; the gradient is the sigmoid's.
at::Tensor gumbel_gate(const at::Tensor& logits, const at::Tensor& noise, GateKind kind);

/// The capacity rule for one batch (capacity.h); without `share` the threshold rule decides.
struct CapacityInputs {
  at::Tensor share;    // (3, levels L, R)
  at::Tensor counts;   // likewise, int64, of choose_counts
  at::Tensor regions;  // (B) int64, that of each sample's noise share
  ShareGradient gradient = ShareGradient::Boundary;
};

/// Builds the gates of one forward, of rows at one level of patch sizes, and keeps what they opened.
class TrainingGates {
 public:
  TrainingGates(DiT& model, const at::Tensor& t_emb, GateNoise noise, GateKind kind,
                const CapacityInputs& capacity = {}, int level = 0);
  TrainingGates(const TrainingGates&) = delete;
  TrainingGates& operator=(const TrainingGates&) = delete;

  const Gates& gates() const { return gates_; }

  /// (B): sum over blocks of (attn_macs mean(heads) + mlp_macs mean(groups) mean(tokens)) / (L (attn_macs +
  /// mlp_macs)), after the forward, tokens those in front of the patches included; differentiable.
  at::Tensor ratio() const;
  /// The same for the gates of inference on this forward's logits: logit > 0, or the k largest by the
  /// capacity rule; no gradient.
  at::Tensor inference_ratio() const;

  /// Mean over blocks of the share that is on, (B): of heads, groups, tokens; no gradient.
  struct Kept {
    at::Tensor heads, groups, tokens;
  };
  Kept kept() const;

 private:
  at::Tensor work_ratio(const std::vector<at::Tensor>& heads, const std::vector<at::Tensor>& groups,
                        const std::vector<at::Tensor>& tokens) const;

  const DiTConfig config_;  // at the level
  const GateNoise noise_;
  Gates gates_;
  const at::Tensor all_;            // (B) ones: the share of parts without routers
  std::vector<at::Tensor> tokens_;  // L of (B, N), filled by the forward
  std::vector<at::Tensor> open_heads_, open_groups_, open_tokens_;  // of inference
};

/// The FLOPs loss 2 (mean ratio - target)^2. (DyDiT, eq. 6)
at::Tensor flops_loss(const at::Tensor& mean_ratio, double target);

}  // namespace dydit
