// The shape of a (Dy)DiT. Letters: N tokens, C hidden size, L blocks, H heads, D = C/H, F MLP width.
#pragma once

#include <string>

#include <nlohmann/json_fwd.hpp>

#include "dydit/base/enum_names.h"

namespace dydit {

inline constexpr int kFrequencyEmbeddingSize = 256;  // of the timestep, before its MLP
inline constexpr double kLayerNormEps = 1e-6;

/// What a block may do in another way than its neighbours. Those of the families read today are all alike.
struct BlockConfig {
  double attn_norm_eps = kLayerNormEps;  // of the LayerNorm before attention
  double mlp_norm_eps = kLayerNormEps;   // of the one before the MLP

  bool operator==(const BlockConfig&) const = default;
};

struct DiTConfig {
  int input_size = 32;     // side of the latent or image
  int patch_size = 2;      // p
  int in_channels = 4;     // of the latent or image
  int hidden_size = 1152;  // C
  int depth = 28;          // L
  int num_heads = 16;      // H; also the number of MLP channel groups
  int mlp_hidden = 4608;   // F
  int num_classes = 1000;  // without the null class
  bool learn_sigma = true;
  bool width_routers = false;  // TDW: attn_rate and mlp_rate
  bool token_routers = false;  // SDT: token_selection
  BlockConfig all_blocks = {};
  // How the same weights are computed with (docs/formats.md).
  int frequency_divisor = 128;  // the timestep's i-th frequency is 10000^(-i / divisor)
  int guided_channels = 3;      // first channels of eps that guidance changes, where a request says nothing
  bool drops_variance = false;  // the learned variance is not sampled with

  const BlockConfig& block(int /*index*/) const { return all_blocks; }
  int grid() const { return input_size / patch_size; }
  int num_tokens() const { return grid() * grid(); }
  int head_size() const { return hidden_size / num_heads; }
  int group_size() const { return mlp_hidden / num_heads; }
  int patch_values() const { return patch_size * patch_size * in_channels; }
  int out_channels() const { return learn_sigma ? 2 * in_channels : in_channels; }
  /// Hidden width of the token router's MLP, C/16.
  int token_router_hidden() const { return hidden_size < 16 ? 1 : hidden_size / 16; }
  int null_class() const { return num_classes; }
  bool is_dynamic() const { return width_routers || token_routers; }

  bool operator==(const DiTConfig&) const = default;
};

/// The two ways to compute with the same weights that files name: the published code's, and diffusers', whose
/// timestep frequencies, epsilon before the MLP and guided channels differ and which drops the learned
/// variance.
enum class Semantics { Original, Diffusers };
inline constexpr EnumNames<Semantics, 2> kSemanticsNames = {
    "semantics", {{"original", Semantics::Original}, {"diffusers", Semantics::Diffusers}}};
/// The configuration with the numbers of these semantics.
DiTConfig with_semantics(DiTConfig config, Semantics semantics);
Semantics semantics_of(const DiTConfig& config);

/// The configuration as DiT's own code names it (input_size, patch_size, ..., learn_sigma, mlp_ratio), and
/// "semantics" where they are not the original's.
nlohmann::json config_to_json(const DiTConfig& config);

/// "DiT-XL/2", "DyDiT-S/4" for the published sizes, else "DiT (8 blocks, hidden 256, 8 heads, patch 4)".
std::string model_name(const DiTConfig& config);

/// The shape of a published size, "DiT-XL/2" (or "XL/2"); throws UsageError for another name. Input and
/// classes are the defaults.
DiTConfig named_config(const std::string& name);

/// Heads of the published hidden sizes (384: 6, 768: 12, 1024 and 1152: 16); 0 when unknown.
int known_num_heads(int hidden_size);

}  // namespace dydit
