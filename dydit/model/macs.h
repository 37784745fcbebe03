// Multiply-adds (MACs; FLOPs are twice as many) of one forward of one sample, from the configuration and from
// what is active. Linears, convolution and attention products are counted; biases, norms and activations not,
// as in the literature (DiT, DyDiT). Routers are counted.
#pragma once

#include <cstdint>

#include "dydit/model/config.h"

namespace dydit {

/// qkv, scores, weighted sum and proj over `heads` active heads. All H heads: 4TC^2 + 2T^2C, T = sequence().
int64_t attention_macs(const DiTConfig& config, int heads, int level = 0);
/// The same among `tokens` patches and the tokens in front of them.
int64_t attention_macs_among(const DiTConfig& config, int heads, int64_t tokens);
/// Attention of all heads among a share e of the sequence: linear e + quadratic e^2.
struct AttentionWork {
  double linear, quadratic;
  double of(double share) const { return linear * share + quadratic * share * share; }
};
AttentionWork attention_work(const DiTConfig& config);
/// fc1 and fc2 over `groups` active channel groups for `tokens` patches and the tokens in front of them. All:
/// 2TCF = 8TC^2.
int64_t mlp_macs(const DiTConfig& config, int groups, int64_t tokens);
/// The shift, scale and gate of one branch of a block; 0 where they are constants.
int64_t adaLN_macs(const DiTConfig& config);
/// The layer that joins a block with an earlier one, 2TC^2; 0 where it has none.
int64_t join_macs(const DiTConfig& config, int block);
/// Patch and timestep embedding, adaLN of all blocks, final layer and convolution: the same for every plan.
int64_t fixed_macs(const DiTConfig& config, int level = 0);
/// The width router of a block's attention, or of its MLP; 0 without width routers.
int64_t width_router_macs(const DiTConfig& config);
/// The token router of a block; 0 without token routers.
int64_t token_router_macs(const DiTConfig& config, int level = 0);
/// What unmerged adapters add to attention over `heads` active heads, and to an MLP: the side paths s B (A x)
/// and, of TD-LoRA, the mixing of their matrices; 0 without adapters.
int64_t adapter_attention_macs(const DiTConfig& config, int heads, int64_t tokens);
int64_t adapter_mlp_macs(const DiTConfig& config, int groups, int64_t tokens);
/// The router of a block that mixes TD-LoRA's matrices; 0 without.
int64_t adapter_router_macs(const DiTConfig& config);
/// Width and token routers of all blocks; 0 for a static DiT.
int64_t router_macs(const DiTConfig& config);
/// Parameters of the routers, and of the adapters with what mixes them; 0 without.
int64_t router_parameters(const DiTConfig& config);
int64_t adapter_parameters(const DiTConfig& config);
/// All parameters, those included; a pos_embed that is not learned left out as Checkpoint does.
int64_t num_parameters(const DiTConfig& config);
/// The complete model without routers and adapters: the "static" that shares of work refer to.
int64_t static_macs(const DiTConfig& config, int level = 0);

}  // namespace dydit
