// Counted by the shapes of dit.cpp.
#include "dydit/model/macs.h"

namespace dydit {
namespace {

int64_t linear_parameters(int64_t in, int64_t out) { return in * out + out; }

// Of two linears whose inputs, and whose outputs, are so many together: mixing their A, or their B.
int64_t mixing_macs(const DiTConfig& config, int64_t inputs, int64_t outputs) {
  const AdapterConfig& adapter = config.adapter;
  if (adapter.kind != AdapterKind::TdLora) return 0;
  return int64_t{adapter.experts} * adapter.rank * (adapter.mix == AdapterMix::A ? inputs : outputs);
}

}  // namespace

int64_t attention_macs(const DiTConfig& config, int heads, int level) {
  return attention_macs_among(config, heads, config.num_tokens(level));
}

int64_t attention_macs_among(const DiTConfig& config, int heads, int64_t tokens) {
  const int64_t T = config.extras() + tokens, C = config.hidden_size,
                width = int64_t{heads} * config.head_size();
  return 4 * T * C * width + 2 * T * T * width;
}

AttentionWork attention_work(const DiTConfig& config) {
  const double T = config.sequence(), C = config.hidden_size;
  return {4 * T * C * C, 2 * T * T * C};
}

int64_t mlp_macs(const DiTConfig& config, int groups, int64_t tokens) {
  return 2 * (config.extras() + tokens) * config.hidden_size * groups * config.group_size();
}

int64_t adaLN_macs(const DiTConfig& config) {
  const int64_t C = config.hidden_size;
  return config.modulation == Modulation::AdaLN ? 3 * C * C : 0;
}

int64_t join_macs(const DiTConfig& config, int block) {
  const int64_t C = config.hidden_size;
  return config.join_source(block) >= 0 ? config.sequence() * 2 * C * C : 0;
}

int64_t fixed_macs(const DiTConfig& config, int level) {
  const int64_t N = config.num_tokens(level), C = config.hidden_size, side = config.input_size,
                p = config.patch(level);
  const int64_t patch_embed = N * C * config.patch_values(level);
  const int64_t t_embed = config.time_mlp ? int64_t{config.time_hidden()} * (config.time_frequencies + C) : 0;
  const int64_t final_layer =
      (config.modulation == Modulation::AdaLN ? 2 * C * C : 0) + N * C * p * p * config.out_channels();
  const int64_t conv =
      config.output_conv ? 9 * config.out_channels() * config.out_channels() * side * side : 0;
  return patch_embed + t_embed + config.depth * 2 * adaLN_macs(config) + final_layer + conv;
}

int64_t width_router_macs(const DiTConfig& config) {
  return config.width_routers ? int64_t{config.hidden_size} * (config.num_heads - 1) : 0;
}

int64_t token_router_macs(const DiTConfig& config, int level) {
  const int64_t R = config.token_router_hidden();
  return config.token_routers ? config.num_tokens(level) * (config.hidden_size * R + R) : 0;
}

int64_t adapter_attention_macs(const DiTConfig& config, int heads, int64_t tokens) {
  if (config.adapter.kind == AdapterKind::None) return 0;
  const int64_t C = config.hidden_size, width = int64_t{heads} * config.head_size();
  return (config.extras() + tokens) * config.adapter.rank * (2 * C + 4 * width) +
         mixing_macs(config, 2 * C, 4 * C);
}

int64_t adapter_mlp_macs(const DiTConfig& config, int groups, int64_t tokens) {
  if (config.adapter.kind == AdapterKind::None) return 0;
  const int64_t C = config.hidden_size, F = config.mlp_hidden, width = int64_t{groups} * config.group_size();
  return (config.extras() + tokens) * config.adapter.rank * (2 * C + 2 * width) +
         mixing_macs(config, C + F, F + C);
}

int64_t adapter_router_macs(const DiTConfig& config) {
  return config.adapter.kind == AdapterKind::TdLora ? int64_t{config.hidden_size} * config.adapter.experts
                                                    : 0;
}

int64_t router_macs(const DiTConfig& config) {
  return config.depth * (2 * width_router_macs(config) + token_router_macs(config));
}

int64_t router_parameters(const DiTConfig& config) {
  const int64_t C = config.hidden_size, R = config.token_router_hidden();
  int64_t block = 0;
  if (config.width_routers) block += 2 * linear_parameters(C, config.num_heads - 1);
  if (config.token_routers) block += linear_parameters(C, R) + linear_parameters(R, 1);
  return config.depth * block;
}

int64_t adapter_parameters(const DiTConfig& config) {
  const AdapterConfig& adapter = config.adapter;
  if (adapter.kind == AdapterKind::None) return 0;
  const int64_t C = config.hidden_size, F = config.mlp_hidden, E = adapter.experts, inputs = 3 * C + F,
                outputs = 5 * C + F;  // of the four linears
  const bool on_A = adapter.mix == AdapterMix::A;
  const int64_t matrices = adapter.rank * ((on_A ? E : 1) * inputs + (on_A ? 1 : E) * outputs);
  return config.depth * (matrices + (adapter.kind == AdapterKind::TdLora ? linear_parameters(C, E) : 0));
}

int64_t num_parameters(const DiTConfig& config) {
  const auto linear = linear_parameters;
  const int64_t C = config.hidden_size, F = config.mlp_hidden, p = config.patch_size,
                T = config.time_hidden(), channels = config.out_channels();
  const bool ada = config.modulation == Modulation::AdaLN;
  const int64_t block = 3 * C * C + (config.qkv_bias ? 3 * C : 0) + linear(C, C) + linear(C, F) +
                        linear(F, C) + (ada ? linear(C, 6 * C) : 4 * C);
  int64_t of_levels = 0;
  for (int level = 1; level < config.levels(); ++level)
    of_levels += linear(config.patch_values(level), C) + C +
                 linear(C, config.patch(level) * config.patch(level) * channels);
  const int64_t join = linear(2 * C, C) + (config.norms_joins() ? 4 * C : 0);
  return linear(config.patch_values(), C) + config.label_rows() * C +
         (config.time_mlp ? linear(config.time_frequencies, T) + linear(T, C) : 0) + config.depth * block +
         config.num_joins() * join + linear(C, p * p * channels) + (ada ? linear(C, 2 * C) : 2 * C) +
         (config.output_conv ? linear(9 * channels, channels) : 0) +
         (config.learned_positions ? config.sequence() * C : 0) + of_levels + router_parameters(config) +
         adapter_parameters(config);
}

int64_t static_macs(const DiTConfig& config, int level) {
  int64_t macs = fixed_macs(config, level);
  for (int block = 0; block < config.depth; ++block)
    macs += join_macs(config, block) + attention_macs(config, config.num_heads, level) +
            mlp_macs(config, config.num_heads, config.num_tokens(level));
  return macs;
}

}  // namespace dydit
