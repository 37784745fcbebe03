// The shape of a (Dy)DiT. Letters: N tokens, C hidden size, L blocks, H heads, D = C/H, F MLP width.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "dydit/base/enum_names.h"
#include "dydit/base/objective.h"

namespace dydit {

inline constexpr int kFrequencyEmbeddingSize = 256;  // of the timestep, before its MLP
inline constexpr double kLayerNormEps = 1e-6;

/// What a block may do in another way than its neighbours. Those of the families read today are all alike.
struct BlockConfig {
  double attn_norm_eps = kLayerNormEps;  // of the LayerNorm before attention
  double mlp_norm_eps = kLayerNormEps;   // of the one before the MLP

  bool operator==(const BlockConfig&) const = default;
};

/// Where the shift, scale and gate of a block's branches come from: of the timestep's and the label's
/// embedding c (DiT), or weights and biases of plain LayerNorms, gates 1 (U-ViT).
enum class Modulation { AdaLN, Affine };
/// The tanh approximation, or the exact form.
enum class GeluForm { Tanh, Erf };
/// How the second half of the blocks takes the outputs of the first: [x, skip] through a linear layer, which
/// replaces x (U-ViT); after a LayerNorm over both (Skip-DiT); that added to x, which a DiT can begin with
/// (ours).
enum class Join { None, Plain, Normed, Residual };

/// What a token that its router leaves out skips: the MLP (SDT, DyDiT section 3.3), or the block, whose
/// attention then goes among the others (DiffCR).
enum class TokenScope { Mlp, Block };
inline constexpr EnumNames<TokenScope, 2> kTokenScopeNames = {
    "token scope", {{"mlp", TokenScope::Mlp}, {"block", TokenScope::Block}}};

/// Low-rank updates beside the blocks' linears: LoRA's W + s B A, or several A (or B) mixed by weights of the
/// timestep (TD-LoRA of DyDiT++, whose form is inferred).
enum class AdapterKind { None, Lora, TdLora };
inline constexpr EnumNames<AdapterKind, 3> kAdapterNames = {
    "adapter", {{"none", AdapterKind::None}, {"lora", AdapterKind::Lora}, {"td-lora", AdapterKind::TdLora}}};
/// Of which of the two matrices there are several.
enum class AdapterMix { A, B };
inline constexpr EnumNames<AdapterMix, 2> kAdapterMixNames = {"adapter mix",
                                                              {{"A", AdapterMix::A}, {"B", AdapterMix::B}}};

struct AdapterConfig {
  AdapterKind kind = AdapterKind::None;
  int rank = 8;      // r
  int experts = 1;   // E; 1 of a plain LoRA
  double scale = 1;  // s
  AdapterMix mix = AdapterMix::A;

  bool operator==(const AdapterConfig&) const = default;
};

struct DiTConfig {
  int input_size = 32;     // side of the latent or image
  int patch_size = 2;      // p, of level 0
  int in_channels = 4;     // of the latent or image
  int hidden_size = 1152;  // C
  int depth = 28;          // L
  int num_heads = 16;      // H; also the number of MLP channel groups
  int mlp_hidden = 4608;   // F
  int num_classes = 1000;  // without the null class; 0: unconditional
  bool learn_sigma = true;
  bool width_routers = false;  // TDW: attn_rate and mlp_rate
  bool token_routers = false;  // SDT: token_selection
  TokenScope token_scope = TokenScope::Mlp;
  BlockConfig all_blocks = {};
  double final_norm_eps = kLayerNormEps;
  Modulation modulation = Modulation::AdaLN;
  GeluForm gelu = GeluForm::Tanh;
  Join join = Join::None;
  // Label, where there are classes, and time are tokens in front of the patches, instead of being added up.
  bool time_token = false;
  bool has_null_class = true;  // a row of the label table behind those of the classes
  int time_frequencies = kFrequencyEmbeddingSize;
  bool time_mlp = true;  // between the frequencies and the embedding
  bool qkv_bias = true;
  bool learned_positions = false;  // those of the tokens in front included
  bool output_conv = false;        // 3 x 3, over the image that the patches make
  Objective objective = {};
  // Patch sizes of one model (FlexiDiT, PPFlow): level l cuts the image into patches of p 2^l. For each level
  // above 0 the least t that it was trained at, falling from none; 0: at all.
  std::vector<int> level_from = {};
  AdapterConfig adapter = {};
  // How the same weights are computed with (docs/formats.md).
  int frequency_divisor = 128;  // the timestep's i-th frequency is 10000^(-i / divisor)
  int guided_channels = 3;      // first channels of eps that guidance changes, where a request says nothing
  bool drops_variance = false;  // the learned variance is not sampled with

  const BlockConfig& block(int /*index*/) const { return all_blocks; }
  int levels() const { return static_cast<int>(level_from.size()) + 1; }
  int patch(int level) const { return patch_size << level; }
  int grid(int level = 0) const { return input_size / patch(level); }
  /// N, of patches: what routers, counts and maps are about.
  int num_tokens(int level = 0) const { return grid(level) * grid(level); }
  /// Tokens in front of the patches, and all of them.
  int extras() const { return time_token ? (num_classes > 0 ? 2 : 1) : 0; }
  int sequence(int level = 0) const { return extras() + num_tokens(level); }
  /// The share of all tokens that enter an MLP which this share of the patches does: those in front always
  /// do.
  double entering_share(double patches, int level = 0) const {
    return extras() == 0 ? patches : (extras() + patches * num_tokens(level)) / sequence(level);
  }
  /// The block whose output block `index` is joined with; -1: none.
  int join_source(int index) const {
    return join != Join::None && 2 * index > depth - 1 ? depth - 1 - index : -1;
  }
  bool norms_joins() const { return join == Join::Normed || join == Join::Residual; }
  int num_joins() const { return join != Join::None ? depth / 2 : 0; }
  int head_size() const { return hidden_size / num_heads; }
  int group_size() const { return mlp_hidden / num_heads; }
  int patch_values(int level = 0) const { return patch(level) * patch(level) * in_channels; }
  int out_channels() const { return learn_sigma ? 2 * in_channels : in_channels; }
  /// Hidden width of the token router's MLP, C/16.
  int token_router_hidden() const { return hidden_size < 16 ? 1 : hidden_size / 16; }
  int null_class() const { return num_classes; }
  /// Rows of the label table, and the largest label that a forward takes.
  int label_rows() const { return num_classes > 0 ? num_classes + has_null_class : 0; }
  int last_label() const { return std::max(label_rows() - 1, 0); }
  bool can_guide() const { return num_classes > 0 && has_null_class; }
  /// Width of the hidden layer of the timestep's MLP.
  int time_hidden() const { return time_token ? 4 * hidden_size : hidden_size; }
  bool is_dynamic() const { return width_routers || token_routers; }

  bool operator==(const DiTConfig&) const = default;
};

/// The configuration with the patches of a level as its only ones: what it computes there.
DiTConfig at_level(DiTConfig config, int level);
/// The level whose patches a model of levels was trained with at this time: the largest that begins at or
/// below it. In continuous time `level_from` counts thousandths of the noise share.
int level_at(const DiTConfig& config, double timestep);
/// The same at a thousandth of the noise, 0..999.
int level_at_thousandth(const DiTConfig& config, double t);
/// Whether each level was, or is, trained at times of its own alone; else each at all times.
bool levels_share_time(const DiTConfig& config);
inline constexpr int kMostLevels = 4;
/// Throws UsageError where such levels cannot be: of this family, of patches that do not fill the image, or
/// of times that are none or fall.
void check_levels(const DiTConfig& config, const std::vector<int>& level_from);

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

/// "linear", "vp-999": kPathNames'.
std::string_view path_name(const Objective& objective);
/// "velocity of the path linear"
std::string objective_text(const Objective& objective);
/// What the times of a plan are, for a picture's axis.
std::string time_axis(const Objective& objective);
/// The configuration with this objective: rows of a learned variance that nothing was trained for are
/// dropped.
DiTConfig with_objective(DiTConfig config, const Objective& objective);
/// The configuration as a published U-ViT has it; of a size that is known.
DiTConfig with_uvit(DiTConfig config);

/// "level 0: 4x4, 64 tokens; level 1: 8x8, 16 tokens, trained from t = 500": of a model of levels.
std::string levels_text(const DiTConfig& config);
/// "DiT-XL/2", "DySiT-S/4", "U-ViT-S/2" for the published sizes, else "DiT (8 blocks, hidden 256, 8 heads,
/// patch 4)".
std::string model_name(const DiTConfig& config);

/// The shape of a published size, "DiT-XL/2" (or "XL/2"), "SiT-B/4", "U-ViT-S/2", "Skip-DiT-L/2"; throws
/// UsageError for another name. Input and classes are the defaults.
DiTConfig named_config(const std::string& name);

/// Heads that the family's published models of this hidden size have (384: 6, 512: 8 of a U-ViT, 768: 12,
/// 1024 and 1152: 16); 0 when unknown.
int known_num_heads(const DiTConfig& config);

}  // namespace dydit
