// Checkpoints with random weights for any configuration: the same ones in every run, of ordinary size, and
// with routers loud enough that masks vary with the timestep, the block and the token.
#pragma once

#include <cmath>
#include <filesystem>
#include <string>

#include <ATen/ATen.h>

#include "dydit/base/noise.h"
#include "dydit/model/checkpoint.h"
#include "dydit/model/config.h"
#include "dydit/model/dit.h"

namespace dydit::test {

/// 16 tokens of 64 channels, 2 blocks, 4 heads; all routers.
inline DiTConfig tiny_config() {
  return {.input_size = 8,
          .patch_size = 2,
          .in_channels = 4,
          .hidden_size = 64,
          .depth = 2,
          .num_heads = 4,
          .mlp_hidden = 256,
          .num_classes = 5,
          .learn_sigma = true,
          .width_routers = true,
          .token_routers = true};
}

/// The same with patches of 2, 4 and 8: 16, 4 and 1 tokens.
inline DiTConfig levels_config() {
  DiTConfig config = tiny_config();
  config.level_from = {0, 0};
  return config;
}

/// Tokens that are off skip the whole block.
inline DiTConfig block_scope_config() {
  DiTConfig config = tiny_config();
  config.token_scope = TokenScope::Block;
  return config;
}

/// No size is a multiple of 8: 9 tokens, 36 channels, 3 heads of 12, an MLP of 3 x 27, no learned sigma.
inline DiTConfig odd_config() {
  return {.input_size = 9,
          .patch_size = 3,
          .in_channels = 3,
          .hidden_size = 36,
          .depth = 3,
          .num_heads = 3,
          .mlp_hidden = 81,
          .num_classes = 7,
          .learn_sigma = false,
          .width_routers = true,
          .token_routers = true};
}

/// As odd, with odd hidden, head and group sizes: every row has padding.
inline DiTConfig odd_hidden_config() {
  DiTConfig config = odd_config();
  config.hidden_size = 35;
  config.num_heads = 5;
  config.mlp_hidden = 65;
  return config;
}

/// Heads of 72 as in DiT-XL, (input_size / 2)^2 tokens: whole and narrow panels.
inline DiTConfig xl_heads_config(int input_size) {
  DiTConfig config = tiny_config();
  config.input_size = input_size;
  config.hidden_size = 144;
  config.num_heads = 2;
  config.mlp_hidden = 576;
  return config;
}

/// One head: the width routers have no output, head and group 0 are always on.
inline DiTConfig one_head_config() {
  DiTConfig config = tiny_config();
  config.hidden_size = 20;
  config.num_heads = 1;
  config.mlp_hidden = 80;
  return config;
}

inline DiTConfig static_config() {
  DiTConfig config = tiny_config();
  config.width_routers = config.token_routers = false;
  return config;
}

/// Standard normals times `scale`.
inline at::Tensor random_tensor(at::IntArrayRef sizes, uint64_t seed, uint64_t index, double scale = 1) {
  at::Tensor tensor = at::empty(sizes, at::kFloat);
  fill_normal({tensor.data_ptr<float>(), static_cast<size_t>(tensor.numel())}, seed, index, 0);
  return tensor.mul_(scale);
}

/// Standard deviation of a tensor's entries: 1/sqrt(inputs) for weights, a little for biases.
inline double random_scale(const std::string& name, const at::Tensor& tensor) {
  const double fan_in = static_cast<double>(tensor.numel()) / std::max<int64_t>(1, tensor.size(0));
  const bool router = name.find("router") != std::string::npos || name.find("token_sel") != std::string::npos;
  if (name.ends_with("pos_embed") || name.ends_with(".embedding") || name.starts_with("y_embedder")) return 1;
  if (name.ends_with("bias")) return router ? 0.5 : 0.1;
  if (name.ends_with("final_layer.linear.weight"))
    return 0.1 / std::sqrt(fan_in);  // tame: variances are exponents
  return (router || name.starts_with("t_embedder") ? 4 : 1) / std::sqrt(fan_in);
}

inline Checkpoint random_checkpoint(const DiTConfig& config, uint64_t seed = 11) {
  Checkpoint checkpoint;
  checkpoint.path = "random.safetensors";
  checkpoint.format = "safetensors";
  checkpoint.config = config;
  uint64_t index = 0;
  for (const auto& parameter : DiT(config)->named_parameters()) {
    const at::Tensor& like = parameter.value();
    checkpoint.weights[parameter.key()] =
        random_tensor(like.sizes(), seed, index++, random_scale(parameter.key(), like));
  }
  return checkpoint;
}

inline void save_random_checkpoint(const std::filesystem::path& path, const DiTConfig& config,
                                   at::ScalarType dtype = at::kFloat) {
  save_checkpoint(path, random_checkpoint(config), dtype);
}

inline DiT random_model(const DiTConfig& config, at::ScalarType compute_dtype = at::kFloat) {
  return make_model(random_checkpoint(config), compute_dtype);
}

/// Inputs of a forward: x (B, in_channels, side, side), y (B) labels, null class included.
struct Inputs {
  at::Tensor x;
  std::vector<int64_t> y;
  at::Tensor labels() const { return at::tensor(y); }
};

inline Inputs random_inputs(const DiTConfig& config, int B) {
  Inputs inputs{at::empty({B, config.in_channels, config.input_size, config.input_size}, at::kFloat), {}};
  for (int b = 0; b < B; ++b) {
    inputs.x[b].copy_(random_tensor(inputs.x[b].sizes(), /*seed=*/5, b));
    inputs.y.push_back((3 * b + 2) % (config.num_classes + 1));
  }
  return inputs;
}

/// Largest difference over largest value of `wanted`; infinite for NaN or other sizes.
inline double relative_difference(const at::Tensor& got, const at::Tensor& wanted) {
  if (!got.sizes().equals(wanted.sizes()) || !at::isfinite(got).all().item<bool>()) return INFINITY;
  return ((got - wanted).abs().max() / wanted.abs().max()).item<double>();
}

}  // namespace dydit::test
