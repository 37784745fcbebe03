// In the order of operations of the original: the last bits matter to routers.
#include "dydit/model/embeddings.h"

#include <cmath>

#include <ATen/ATen.h>

namespace dydit {

inline constexpr double kFrequencyMaxPeriod = 10000.0;

at::Tensor linear(const Checkpoint& checkpoint, const std::string& name, const at::Tensor& x) {
  return at::linear(x, checkpoint.weights.at(name + ".weight").to(at::kFloat).flatten(1),
                    checkpoint.weights.at(name + ".bias").to(at::kFloat));
}

at::Tensor embed_timesteps(const Checkpoint& checkpoint, const at::Tensor& t) {
  const DiTConfig& config = checkpoint.config;
  const at::Tensor frequencies = timestep_frequencies(t, config.time_frequencies, config.frequency_divisor);
  if (!config.time_mlp) return frequencies;
  const at::Tensor hidden = at::silu(linear(checkpoint, "t_embedder.mlp.0", frequencies));
  return linear(checkpoint, "t_embedder.mlp.2", hidden);
}

at::Tensor sincos_pos_embed(int hidden_size, int grid) {
  const int quarter = hidden_size / 4;
  const auto omega =
      at::pow(10000.0, -at::arange(quarter, at::kDouble) / static_cast<double>(quarter)).unsqueeze(0);
  const auto angles = at::arange(grid, at::kDouble).unsqueeze(1) * omega;  // (grid, C/4)
  const auto axis = at::cat({at::sin(angles), at::cos(angles)}, 1);        // (grid, C/2)
  const auto w = axis.unsqueeze(0).expand({grid, grid, 2 * quarter});
  const auto h = axis.unsqueeze(1).expand({grid, grid, 2 * quarter});
  return at::cat({w, h}, 2).reshape({1, grid * grid, 4 * quarter}).to(at::kFloat);
}

at::Tensor timestep_frequencies(const at::Tensor& t, int size, int divisor) {
  const int half = size / 2;
  const auto frequencies =
      at::exp(-std::log(kFrequencyMaxPeriod) * at::arange(half, t.options().dtype(at::kFloat)) / divisor);
  const auto angles = t.to(at::kFloat).unsqueeze(1) * frequencies.unsqueeze(0);
  return at::cat({at::cos(angles), at::sin(angles)}, 1);
}

}  // namespace dydit
