// Low-rank updates beside the linears of the blocks: LoRA (Hu et al. 2021) and TD-LoRA (our form), whose
// matrices follow the timestep:
//   shares(t) = softmax(W_alpha t_emb + b_alpha)   A(t) = sum of shares_e(t) A_e   y = W x + b + s B (A(t) x)
// DyDiT++ (section 11) says no more than that several LoRA matrices are mixed by weights of the timestep's
// embedding: which of A and B is mixed, ranks and places are ours. In files (docs/formats.md):
// blocks.I.LAYER.lora.A and .lora.B, blocks.I.lora_alpha.weight and .bias, metadata 'adapter'.
#pragma once

#include <array>
#include <filesystem>
#include <string>

#include <ATen/core/Tensor.h>

#include "dydit/model/checkpoint.h"
#include "dydit/model/gate_rule.h"

namespace dydit {

/// True for a matrix of an adapter and for the weights that mix them, by its name in a checkpoint.
bool is_adapter_parameter(const std::string& name);

/// "LoRA, rank 8, scale 1", "TD-LoRA (our form), rank 8, 4 experts on A, scale 1"; "none".
std::string adapter_text(const AdapterConfig& adapter);

/// Several matrices (E, m, n) mixed by `shares` (B, E) -> (B, m, n); one, (1, m, n) or (m, n) -> (m, n).
at::Tensor mixed(const at::Tensor& matrices, const at::Tensor& shares);

/// scale B A, what the weight of the linear changes by: A (E, r, in) or (r, in), B (out, r) or (E, out, r);
/// of shares (B, E) one for each sample, (B, out, in), of undefined ones (out, in).
at::Tensor low_rank_update(const at::Tensor& A, const at::Tensor& B, const at::Tensor& shares, double scale);

/// scale B (A x), x (B, T, in) of the type that it is computed in -> (B, T, out). Matrices are mixed in
/// float32.
at::Tensor low_rank_output(const at::Tensor& x, const at::Tensor& A, const at::Tensor& B,
                           const at::Tensor& shares, double scale);

/// What TD-LoRA makes of its freedom: how much the shares of experts follow the timestep.
struct Mixing {
  // Of the shares, by quarter of t, mean over blocks: 1 where all experts count alike, 0 where one does.
  std::array<double, kQuarters> entropy{};
  double range = 0;  // of one share over t, mean over blocks and experts: 0 where nothing follows t
};
/// Of a checkpoint with TD-LoRA's adapters, over 64 even timesteps.
Mixing mixing_of(const Checkpoint& checkpoint);

/// How the base of adapters is called in their metadata: the SHA-256 of its file, and ", KEY" behind it where
/// the file holds several sets of weights.
std::string base_identity(const Checkpoint& base);

/// The note of a checkpoint that says how heads and channels were ordered before adapters were made.
inline constexpr const char* kOrderNote = "importance";

/// Writes what was trained beside the frozen base: adapters and routers, as safetensors. Throws UsageError
/// where there are no adapters.
void save_adapters(const std::filesystem::path& path, const Checkpoint& checkpoint, at::ScalarType dtype);

/// The base with the adapters and routers of such a file, as they were trained. Throws Error where the file
/// is none or was trained on another base.
Checkpoint put_adapters(const Checkpoint& base, const std::filesystem::path& path);

}  // namespace dydit
