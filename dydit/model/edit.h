// Checkpoint -> checkpoint: what is done to weights between files, and weights that come from none. Nothing
// here writes into a tensor that it was given.
#pragma once

#include <cstdint>
#include <string>

#include "dydit/model/checkpoint.h"

namespace dydit {

// Everything is on when fine-tuning starts (DyDiT, section 3.4).
inline constexpr double kWidthRouterBias = 15.0;
inline constexpr double kTokenRouterBias = 35.0;

/// True for a router's weight or bias, by its name in a checkpoint.
bool is_router_parameter(const std::string& name);

/// A DiT as its authors initialise it: linears xavier-uniform with bias 0, label table and timestep MLP N(0,
/// 0.02), every adaLN and the final linear zero. A U-ViT as its authors do: N(0, 0.02), biases 0; norms 1.
/// A function of (config, seed).
Checkpoint init_checkpoint(const DiTConfig& config, uint64_t seed);

struct RouterInit {
  bool width = true;   // TDW
  bool tokens = true;  // SDT
  double width_bias = kWidthRouterBias;
  double token_bias = kTokenRouterBias;  // of the last layer
  TokenScope scope = TokenScope::Mlp;    // of tokens
};

/// The checkpoint with routers added: weights xavier-uniform, biases as stated. Throws Error when it has
/// routers.
Checkpoint add_routers(const Checkpoint& checkpoint, const RouterInit& init, uint64_t seed);

/// The static DiT under a DyDiT: what is left when everything is on. Throws Error when it has no routers.
Checkpoint drop_routers(Checkpoint checkpoint);

/// Shares of the heads and channel groups that are on and of the tokens that enter the MLP.
struct KeepShares {
  double heads = 1, groups = 1, tokens = 1;
};

/// The DyDiT with the capacity rule, which keeps these shares (of each kind 1 at least) in every block at
/// every timestep; kinds without routers are left out. A static DiT gets routers first.
Checkpoint keep_shares(Checkpoint checkpoint, const KeepShares& shares);

/// The DiT with long skips whose linear layers are zero, added to the stream (Join::Residual): nothing
/// changes until it is trained. Throws Error where it has skips or an odd number of blocks.
Checkpoint add_long_skips(Checkpoint checkpoint);

/// The checkpoint with levels of patches of 2p, 4p, ... pixels beside its own (FlexiDiT, Anagnostidis et al.
/// 2025), one for each of level_from (DiTConfig). A new level starts as the model's view of the image at a
/// half (a quarter, ...) of its resolution: embedding weights spread over the larger patch, output rows
/// repeated, positions at the patches' centres, embedding zero. Level 0 keeps its bits. The counts of the
/// capacity rule are those of level 0, of tokens in proportion. Throws Error where the model has levels, or
/// is of a family or size that can have none.
Checkpoint add_levels(Checkpoint checkpoint, const std::vector<int>& level_from);

/// The checkpoint with adapters of this configuration, whose output is the same: A Kaiming-uniform (a = sqrt
/// 5), each expert a draw of its own, B zero, weights of the mixing router xavier-uniform, its biases 0.
/// Throws Error when it has adapters, UsageError where the rank is larger than the hidden size.
Checkpoint add_adapters(const Checkpoint& checkpoint, const AdapterConfig& adapter, uint64_t seed);

/// The same model without adapters: those of a LoRA added to the weights in float32. Throws Error where there
/// are none, or where they are TD-LoRA's, which are another weight at every timestep.
Checkpoint merge_adapters(Checkpoint checkpoint);

/// Every tensor in `dtype`, pos_embed as it is.
Checkpoint in_dtype(Checkpoint checkpoint, at::ScalarType dtype);

/// A published size ("DiT-XL/2", "DyDiT-XL/2") with random weights, of a DyDiT with random routers, too:
/// about half of everything is on, other parts at every timestep. Throws UsageError for another name.
Checkpoint random_model(const std::string& size, int input_size);

/// Reorders heads and MLP channels by importance, the most important first, since the first head and the
/// first channel group are always on. Importance of a head is the sum of |weights| of its q, k, v rows and
/// proj columns, of a channel that of its fc1 row and fc2 column. The static model's output does not change.
/// Throws Error where there are adapters.
Checkpoint reorder_by_importance(const Checkpoint& checkpoint);

}  // namespace dydit
