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

/// The low-rank update of a linear layer (adapters.h).
struct LoraImpl : torch::nn::Module {
  LoraImpl(const AdapterConfig& adapter, int64_t in_features, int64_t out_features);

  at::Tensor A;  // (E, r, in); of AdapterMix::B (r, in)
  at::Tensor B;  // (out, r); of AdapterMix::B (E, out, r)
  double scale;
};
TORCH_MODULE(Lora);

/// Linear layer whose weights start uninitialised: they come from a checkpoint or from init.
struct LinearImpl : torch::nn::Module {
  LinearImpl(int in_features, int out_features, bool has_bias = true);
  /// Once, where the configuration has adapters.
  void add_adapter(const AdapterConfig& adapter);
  /// x (..., in) -> (..., out), computed in `dtype`. With experts, x (B, T, in) and their `shares` (B, E).
  at::Tensor forward(const at::Tensor& x, at::ScalarType dtype = at::kFloat, const at::Tensor& shares = {});

  at::Tensor weight;  // (out, in)
  at::Tensor bias;    // (out); undefined without
  Lora lora{nullptr};
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
  /// x (B, T, C) float32, c (B, C), unused where the modulation is affine -> (B, T, C) float32. `shares` are
  /// expert_shares' of the same samples; `mlp_input`, where given, receives what goes into the MLP.
  at::Tensor forward(const at::Tensor& x, const at::Tensor& c, const Gates& gates, at::ScalarType dtype,
                     const at::Tensor& shares = {}, at::Tensor* mlp_input = nullptr);
  /// Among the tokens of which `tokens` (B, T) is not 0; undefined: all. Rows of others hold anything finite.
  at::Tensor attention(const at::Tensor& x, const at::Tensor& head_gate, at::ScalarType dtype,
                       const at::Tensor& shares = {}, const at::Tensor& tokens = {});
  at::Tensor mlp(const at::Tensor& x, const at::Tensor& group_gate, at::ScalarType dtype,
                 const at::Tensor& shares = {});
  /// x, skip (B, T, C) -> what goes into the block where it is joined.
  at::Tensor join(const at::Tensor& x, const at::Tensor& skip);
  /// x (B, T, C) after the attention residual, or with TokenScope::Block before the block -> (B, N), of the
  /// patches.
  at::Tensor token_logits(const at::Tensor& x);
  WidthLogits width_logits(const at::Tensor& t_emb);
  /// Shares of TD-LoRA's experts: t_emb (B, C) -> (B, E); undefined where there are none.
  at::Tensor expert_shares(const at::Tensor& t_emb);

  DiTConfig config;
  int index;
  Linear qkv{nullptr}, proj{nullptr}, fc1{nullptr}, fc2{nullptr};
  Linear adaLN{nullptr};                                       // of Modulation::AdaLN
  Affine norm1{nullptr}, norm2{nullptr};                       // of Modulation::Affine
  Affine skip_norm{nullptr};                                   // of joins that norm, 2C
  Linear skip_linear{nullptr};                                 // of a block that is joined
  Linear attn_router{nullptr}, mlp_router{nullptr};            // TDW; null without width routers
  Linear token_router_in{nullptr}, token_router_out{nullptr};  // SDT; null without token routers
  Linear lora_alpha{nullptr};                                  // TD-LoRA's mixing
};
TORCH_MODULE(DiTBlock);

/// What a level of larger patches has of its own; letters N and p are those of the level.
struct PatchLevelImpl : torch::nn::Module {
  PatchLevelImpl(const DiTConfig& config, int level);

  at::Tensor patch_weight, patch_bias;  // (C, in_channels, p, p), (C)
  at::Tensor pos_embed;                 // (1, N, C), fixed
  at::Tensor embedding;                 // (C), added to the timestep's
  Linear final_linear{nullptr};
};
TORCH_MODULE(PatchLevel);

struct DiTImpl : torch::nn::Module {
  explicit DiTImpl(const DiTConfig& config);

  /// t (B) times of the objective's clock, 0..999 of a DiT -> t_emb (B, C), float32 throughout; the level's
  /// embedding included.
  at::Tensor embed_timestep(const at::Tensor& t, int level = 0);
  /// x (B, in_channels, side, side) float32, t_emb (B, C), y (B) labels, null class included (unread without
  /// classes) -> (B, out_channels, side, side) float32: noise or velocity, then the variance values when
  /// sigma is learned. t_emb is the level's, and gates are of its tokens; `taps`, where given, is filled.
  at::Tensor forward(const at::Tensor& x, const at::Tensor& t_emb, const at::Tensor& y,
                     const Gates& gates = {}, int level = 0, Taps* taps = nullptr);
  /// The parts of forward() around the blocks. What a sample's time and label come to: the embedding that its
  /// blocks are modulated by, or the tokens in front of its patches; the other is undefined.
  struct Conditioning {
    at::Tensor c;      // (B, C)
    at::Tensor front;  // (B, extras, C)
  };
  Conditioning condition(const at::Tensor& t_emb, const at::Tensor& y) const;
  /// x (B, in_channels, side, side) -> (B, T, C).
  at::Tensor embed(const at::Tensor& x, const at::Tensor& front, int level) const;
  /// x (B, T, C), ada (B, 2C) final_adaLN's output, unread without -> (B, out_channels, side, side).
  at::Tensor final_layer(const at::Tensor& x, const at::Tensor& ada, int level);
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
  std::vector<PatchLevel> larger;  // levels 1, 2, ...

 private:
  at::Tensor patchify(const at::Tensor& x, int level) const;
  at::Tensor unpatchify(const at::Tensor& x, int level) const;
};
TORCH_MODULE(DiT);

}  // namespace dydit
