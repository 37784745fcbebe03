// The capacity rule: a learned share of parts stays on, so the ratio at inference is the one trained for. One
// share r for every kind of part, block and region of t, and from all of them and the step's target the
// counts k, near r count, the always-on part counted. Training ranks logit + noise and keeps the k largest;
// inference ranks the logits and keeps as many.
#pragma once

#include <ATen/core/Tensor.h>

#include "dydit/model/checkpoint.h"
#include "dydit/train/options.h"

namespace dydit {

class DiT;

/// Name of the shares among a training model's parameters: (3, L, R), kinds heads, groups, tokens, R regions
/// of t; they start at 1. Of a model of levels (3, levels L, R): each level has its own, and meets the target
/// by itself, over the regions that it is trained in.
inline constexpr const char* kKeepShareName = "keep_share";
struct PartKind {
  enum : int { Heads, Groups, Tokens };
};

/// choose_counts is content when the work ratio is this near the target, as a share of it.
inline constexpr double kCountTolerance = 0.001;

/// Largest root mean square of a router's centred logits in training; the noise's is 1.8.
inline constexpr double kLogitSpread = 5.0;

/// The shares among a training model's parameters; undefined under the threshold rule.
at::Tensor keep_share(DiT& model);

/// The k of every kind, block and region, int64 and shaped as the shares, within 1..count: share * count
/// rounded, then moved by ones, first where rounding was closest to going the other way, until their work
/// ratio is within kCountTolerance of `target` or no part and no two parts bring it nearer.
at::Tensor choose_counts(const DiTConfig& config, const at::Tensor& share, double target);

/// choose_counts as a checkpoint holds it.
KeepCounts keep_counts(const DiTConfig& config, const at::Tensor& counts);

/// Takes from the gradient of the shares what would change the total work: the shares compete for a fixed
/// budget.
void project_share_gradient(const DiTConfig& config, const at::Tensor& share, at::Tensor& gradient);

/// Multiplies all shares by one factor, each kept within 1/count..1, so that their work ratio is `target` (or
/// the nearest there is). A target of 1 sets all shares to 1.
void scale_shares(const DiTConfig& config, at::Tensor& share, double target);

/// Gates of M = logits.size(1) parts (and, with `first_on`, an always-on one in front that is not among
/// them): 1 for the `counts` largest of logits + noise, the always-on one counted; before the noise the
/// logits are centred and a spread above kLogitSpread is scaled down to it. Straight-through: the logits'
/// gradient is that of a sigmoid around the boundary; the share's goes through the first gate that is closed,
/// or through those of an interval, which tell what one more part is worth. logits, noise (B, M), share (B),
/// counts (B) int64 -> (B, M)
at::Tensor capacity_gate(const at::Tensor& logits, const at::Tensor& noise, const at::Tensor& share,
                         const at::Tensor& counts, bool first_on,
                         ShareGradient gradient = ShareGradient::Boundary);

}  // namespace dydit
