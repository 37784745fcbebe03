// DiT and DyDiT as torch::nn modules, with the parameter names of the published checkpoints.
// One forward for all: gates multiply (method: TDW and SDT, DyDiT sections 3.2 and 3.3); without gates it is
// the static DiT. SiT, U-ViT and Skip-DiT are the same modules by other values of the configuration. Letters
// as in config.h, T the sequence(); B is the batch after guidance has doubled it.
#pragma once

#include <map>
#include <set>
#include <vector>

#include <torch/torch.h>

#include "dydit/model/config.h"
#include "dydit/model/gates.h"

namespace dydit {

/// Linear layer whose weights start uninitialised: they come from a checkpoint or from init.
struct LinearImpl : torch::nn::Module {
  LinearImpl(int in_features, int out_features, bool has_bias = true);
  /// x (..., in) -> (..., out), computed in `dtype`.
  at::Tensor forward(const at::Tensor& x, at::ScalarType dtype = at::kFloat);

  at::Tensor weight;  // (out, in)
  at::Tensor bias;    // (out); undefined without
};
TORCH_MODULE(Linear);

/// Weight and bias (size) of a plain LayerNorm.
struct AffineImpl : torch::nn::Module {
  explicit AffineImpl(int size);

  at::Tensor weight, bias;
};
TORCH_MODULE(Affine);

/// Router logits of the timestep's width decisions; output j decides head (group) j + 1.
struct WidthLogits {
  at::Tensor heads;   // (B, H-1)
  at::Tensor groups;  // (B, H-1)
};

/// What a forward shows of itself beside its output; tokens in front of the patches are included.
struct Taps {
  std::set<int> blocks = {};     // whose outputs are asked for
  bool asks_mlp_inputs = false;  // of every block
  bool ends_there = false;       // the forward ends with the last of `blocks` and returns an undefined tensor
  std::map<int, at::Tensor> outputs = {};   // of `blocks`, (B, T, C) float32
  std::vector<at::Tensor> mlp_inputs = {};  // L of (B, T, C): normed and modulated, in the compute dtype
};

struct DiTBlockImpl : torch::nn::Module {
  DiTBlockImpl(const DiTConfig& config, int index);
  /// x (B, T, C) float32, c (B, C), unused where the modulation is affine -> (B, T, C) float32. `mlp_input`,
  /// where given, receives what goes into the MLP.
  at::Tensor forward(const at::Tensor& x, const at::Tensor& c, const Gates& gates, at::ScalarType dtype,
                     at::Tensor* mlp_input = nullptr);
  at::Tensor attention(const at::Tensor& x, const at::Tensor& head_gate, at::ScalarType dtype);
  at::Tensor mlp(const at::Tensor& x, const at::Tensor& group_gate, at::ScalarType dtype);
  /// x, skip (B, T, C) -> what goes into the block where it is joined.
  at::Tensor join(const at::Tensor& x, const at::Tensor& skip);
  /// x (B, T, C) after the attention residual -> (B, N), of the patches.
  at::Tensor token_logits(const at::Tensor& x);
  WidthLogits width_logits(const at::Tensor& t_emb);

  DiTConfig config;
  int index;
  Linear qkv{nullptr}, proj{nullptr}, fc1{nullptr}, fc2{nullptr};
  Linear adaLN{nullptr};                                       // of Modulation::AdaLN
  Affine norm1{nullptr}, norm2{nullptr};                       // of Modulation::Affine
  Affine skip_norm{nullptr};                                   // of Join::Normed, 2C
  Linear skip_linear{nullptr};                                 // of a block that is joined
  Linear attn_router{nullptr}, mlp_router{nullptr};            // TDW; null without width routers
  Linear token_router_in{nullptr}, token_router_out{nullptr};  // SDT; null without token routers
};
TORCH_MODULE(DiTBlock);

struct DiTImpl : torch::nn::Module {
  explicit DiTImpl(const DiTConfig& config);

  /// t (B) times of the objective's clock, 0..999 of a DiT -> t_emb (B, C), float32 throughout.
  at::Tensor embed_timestep(const at::Tensor& t);
  /// x (B, in_channels, side, side) float32, t_emb (B, C), y (B) labels, null class included (unread without
  /// classes) -> (B, out_channels, side, side) float32: noise or velocity, then the variance values when
  /// sigma is learned. `taps`, where given, is filled.
  at::Tensor forward(const at::Tensor& x, const at::Tensor& t_emb, const at::Tensor& y,
                     const Gates& gates = {}, Taps* taps = nullptr);
  /// Converts the weights of qkv, proj, fc1 and fc2 and computes them and attention's products in `dtype`.
  /// All else stays float32: embeddings, adaLN (in bfloat16 it moves router logits enough to flip tokens),
  /// routers, LayerNorms, the final layer and the residual stream.
  void set_compute_dtype(at::ScalarType dtype);

  DiTConfig config;
  at::ScalarType compute_dtype = at::kFloat;
  at::Tensor pos_embed;     // (1, T, C), fixed or learned
  at::Tensor patch_weight;  // (C, in_channels, p, p)
  at::Tensor patch_bias;    // (C)
  at::Tensor label_table;   // (label_rows, C), last row the null class; undefined without classes
  Linear t_mlp_in{nullptr}, t_mlp_out{nullptr};  // null without time_mlp
  Linear final_linear{nullptr}, final_adaLN{nullptr};
  Affine final_norm{nullptr};         // of Modulation::Affine, which has no final_adaLN
  at::Tensor conv_weight, conv_bias;  // (in, in, 3, 3), (in); undefined without output_conv
  std::vector<DiTBlock> blocks;

 private:
  at::Tensor patchify(const at::Tensor& x) const;
  at::Tensor unpatchify(const at::Tensor& x) const;
};
TORCH_MODULE(DiT);

}  // namespace dydit
