// Multiply-adds (MACs; FLOPs are twice as many) of one forward of one sample, from the configuration and from
// what is active. Linears, convolution and attention products are counted; biases, norms and activations not,
// as in the literature (DiT, DyDiT). Routers are counted.
#pragma once

#include <cstdint>

#include "dydit/model/config.h"

namespace dydit {

/// qkv, scores, weighted sum and proj over `heads` active heads. All H heads: 4NC^2 + 2N^2C.
int64_t attention_macs(const DiTConfig& config, int heads);
/// fc1 and fc2 over `groups` active channel groups for `tokens` tokens. All: 2NCF = 8NC^2.
int64_t mlp_macs(const DiTConfig& config, int groups, int64_t tokens);
/// Patch and timestep embedding, adaLN of all blocks, final layer: the same for every plan.
int64_t fixed_macs(const DiTConfig& config);
/// The width router of a block's attention, or of its MLP; 0 without width routers.
int64_t width_router_macs(const DiTConfig& config);
/// The token router of a block; 0 without token routers.
int64_t token_router_macs(const DiTConfig& config);
/// Width and token routers of all blocks; 0 for a static DiT.
int64_t router_macs(const DiTConfig& config);
/// Parameters, those of routers included; pos_embed, which is not learned, left out as Checkpoint does.
int64_t num_parameters(const DiTConfig& config);
/// The complete model without routers: the "static" that shares of work refer to.
int64_t static_macs(const DiTConfig& config);

}  // namespace dydit
