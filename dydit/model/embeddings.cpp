// In the order of operations of the original: the last bits matter to routers.
#include "dydit/model/embeddings.h"

#include <cmath>

#include <ATen/ATen.h>
#include <fmt/format.h>

namespace dydit {

inline constexpr double kFrequencyMaxPeriod = 10000.0;

at::Tensor linear(const Checkpoint& checkpoint, const std::string& name, const at::Tensor& x) {
  return at::linear(x, checkpoint.weights.at(name + ".weight").to(at::kFloat).flatten(1),
                    checkpoint.weights.at(name + ".bias").to(at::kFloat));
}

at::Tensor embed_timesteps(const Checkpoint& checkpoint, const at::Tensor& t, int level) {
  const DiTConfig& config = checkpoint.config;
  const at::Tensor frequencies = timestep_frequencies(t, config.time_frequencies, config.frequency_divisor);
  if (!config.time_mlp) return frequencies;
  const at::Tensor hidden = at::silu(linear(checkpoint, "t_embedder.mlp.0", frequencies));
  const at::Tensor t_emb = linear(checkpoint, "t_embedder.mlp.2", hidden);
  if (level == 0) return t_emb;
  return t_emb + checkpoint.weights.at(fmt::format("levels.{}.embedding", level)).to(at::kFloat);
}

at::Tensor sincos_pos_embed(int hidden_size, int grid, double spacing) {
  const int quarter = hidden_size / 4;
  const auto omega =
      at::pow(10000.0, -at::arange(quarter, at::kDouble) / static_cast<double>(quarter)).unsqueeze(0);
  const auto places = at::arange(grid, at::kDouble) * spacing + (spacing - 1) / 2;
  const auto angles = places.unsqueeze(1) * omega;                   // (grid, C/4)
  const auto axis = at::cat({at::sin(angles), at::cos(angles)}, 1);  // (grid, C/2)
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
