// The weights of the parts that are on, side by side: an active set of heads or channel groups is then one
// dense matrix, and every product of a block a dense one. A set that changes copies what differs.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "dydit/model/checkpoint.h"
#include "dydit/plan/run_plan.h"

namespace dydit::aten {

/// Layers of a block by their parts, H heads or H channel groups in front: a part is one piece of memory.
struct BlockWeights {
  at::Tensor qkv, qkv_bias;    // (H, 3 D, C): a head's q, k and v; (H, 3 D), undefined without
  at::Tensor proj, proj_bias;  // (H, D, C), inputs first; (C)
  at::Tensor fc1, fc1_bias;    // (H, F/H, C); (H, F/H)
  at::Tensor fc2, fc2_bias;    // (H, F/H, C), inputs first; (C)
};

/// Order of a block's heads and of its groups, the part that is on most often first.
struct PartOrder {
  std::vector<int> heads, groups;
};
/// Of a model: by how often each part is on over its whole clock, ties by number. So the order is the
/// model's, whatever is sampled: the same set gives the same sums, and sets that are nested are each a
/// prefix.
std::vector<PartOrder> part_orders(const Checkpoint& checkpoint);

/// One branch's layers, `all` (H, ...) each, and as many places.
class PartSlots {
 public:
  PartSlots(std::vector<at::Tensor> all, std::vector<int> order);

  /// Puts the parts of which `on` (H) is 1 in front, in their order, by copies from the first place that
  /// differs. Returns the bytes copied; 0, and no memory is taken, where all are on.
  int64_t hold(std::span<const uint8_t> on);
  /// Layer `which` with its first `parts` parts; all of them in the order of their numbers.
  at::Tensor layer(size_t which, int parts) const;

 private:
  std::vector<at::Tensor> all_, slots_;  // `slots_` is made when it is needed first
  std::vector<int> order_, held_;
};

/// A block's weights as a run holds them.
class BlockSlots {
 public:
  BlockSlots(const BlockWeights& all, const PartOrder& order);

  int64_t hold_heads(std::span<const uint8_t> on) { return heads_.hold(on); }
  int64_t hold_groups(std::span<const uint8_t> on) { return groups_.hold(on); }
  /// Of the first `heads` heads or `groups` groups; weights (in, out).
  at::Tensor qkv(int heads) const { return heads_.layer(0, heads).flatten(0, 1).t(); }
  at::Tensor qkv_bias(int heads) const;
  at::Tensor proj(int heads) const { return heads_.layer(1, heads).flatten(0, 1); }
  at::Tensor fc1(int groups) const { return groups_.layer(0, groups).flatten(0, 1).t(); }
  at::Tensor fc2(int groups) const { return groups_.layer(1, groups).flatten(0, 1); }
  at::Tensor fc1_bias(int groups) const { return groups_.layer(2, groups).flatten(); }
  const at::Tensor& proj_bias() const { return proj_bias_; }
  const at::Tensor& fc2_bias() const { return fc2_bias_; }

 private:
  PartSlots heads_, groups_;
  bool has_qkv_bias_;
  at::Tensor proj_bias_, fc2_bias_;
};

}  // namespace dydit::aten
