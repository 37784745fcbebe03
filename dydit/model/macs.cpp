// Counted by the shapes of dit.cpp.
#include "dydit/model/macs.h"

namespace dydit {

int64_t attention_macs(const DiTConfig& config, int heads) {
  const int64_t N = config.num_tokens(), C = config.hidden_size, width = int64_t{heads} * config.head_size();
  return 4 * N * C * width + 2 * N * N * width;
}

int64_t mlp_macs(const DiTConfig& config, int groups, int64_t tokens) {
  return 2 * tokens * config.hidden_size * groups * config.group_size();
}

int64_t fixed_macs(const DiTConfig& config) {
  const int64_t N = config.num_tokens(), C = config.hidden_size;
  const int64_t patch_embed = N * C * config.patch_values();
  const int64_t t_embed = kFrequencyEmbeddingSize * C + C * C;
  const int64_t adaLN = config.depth * 6 * C * C;
  const int64_t final_layer =
      2 * C * C + N * C * config.patch_size * config.patch_size * config.out_channels();
  return patch_embed + t_embed + adaLN + final_layer;
}

int64_t width_router_macs(const DiTConfig& config) {
  return config.width_routers ? int64_t{config.hidden_size} * (config.num_heads - 1) : 0;
}

int64_t token_router_macs(const DiTConfig& config) {
  const int64_t R = config.token_router_hidden();
  return config.token_routers ? config.num_tokens() * (config.hidden_size * R + R) : 0;
}

int64_t router_macs(const DiTConfig& config) {
  return config.depth * (2 * width_router_macs(config) + token_router_macs(config));
}

int64_t num_parameters(const DiTConfig& config) {
  const auto linear = [](int64_t in, int64_t out) { return in * out + out; };
  const int64_t C = config.hidden_size, F = config.mlp_hidden, R = config.token_router_hidden(),
                p = config.patch_size;
  int64_t block = linear(C, 3 * C) + linear(C, C) + linear(C, F) + linear(F, C) + linear(C, 6 * C);
  if (config.width_routers) block += 2 * linear(C, config.num_heads - 1);
  if (config.token_routers) block += linear(C, R) + linear(R, 1);
  return linear(config.patch_values(), C) + (config.num_classes + 1) * C +
         linear(kFrequencyEmbeddingSize, C) + linear(C, C) + config.depth * block +
         linear(C, p * p * config.out_channels()) + linear(C, 2 * C);
}

int64_t static_macs(const DiTConfig& config) {
  return fixed_macs(config) + config.depth * (attention_macs(config, config.num_heads) +
                                              mlp_macs(config, config.num_heads, config.num_tokens()));
}

}  // namespace dydit
