// The forward of method.md sections 1 and 2, in the paper's order.
#include "dydit/model/dit.h"

#include "dydit/model/adapters.h"
#include "dydit/model/embeddings.h"
#include "dydit/model/ops.h"

namespace dydit {
namespace {

using torch::nn::Module;

// A layer registered under a dotted path ("attn.qkv"), making the modules on the way, so that parameter names
// are those of the published checkpoints while the code keeps flat members.
template <typename Layer>
Layer add_layer(Module& root, const std::string& path, Layer layer) {
  Module* parent = &root;
  size_t start = 0;
  for (size_t dot; (dot = path.find('.', start)) != std::string::npos; start = dot + 1) {
    const std::string name = path.substr(start, dot - start);
    const auto children = parent->named_children();
    const auto* found = children.find(name);
    parent = found ? found->get() : parent->register_module(name, std::make_shared<Module>()).get();
  }
  return parent->register_module(path.substr(start), std::move(layer));
}
Linear add_linear(Module& root, const std::string& path, int in_features, int out_features,
                  bool has_bias = true) {
  return add_layer(root, path, Linear(in_features, out_features, has_bias));
}

// What stands around a branch: (B, C) each; a gate that is undefined is 1.
struct Modulated {
  at::Tensor shift, scale, gate = {};
};

// A plain LayerNorm as a modulation of B samples.
Modulated of_affine(const Affine& norm, int64_t B) {
  const int64_t C = norm->weight.size(0);
  return {norm->bias.expand({B, C}), (norm->weight - 1.0).expand({B, C})};
}

// The patch embedding as files name it, under `root`.
void add_patch_embedding(Module& root, const DiTConfig& config, int level, at::Tensor& weight,
                         at::Tensor& bias) {
  const int C = config.hidden_size, p = config.patch(level);
  auto patch = root.register_module("x_embedder", std::make_shared<Module>())
                   ->register_module("proj", std::make_shared<Module>());
  weight = patch->register_parameter("weight", at::empty({C, config.in_channels, p, p}, at::kFloat));
  bias = patch->register_parameter("bias", at::empty({C}, at::kFloat));
}

Linear add_final_linear(Module& root, const DiTConfig& config, int level) {
  const int p = config.patch(level);
  return add_linear(root, "final_layer.linear", config.hidden_size, p * p * config.out_channels());
}

}  // namespace

LoraImpl::LoraImpl(const AdapterConfig& adapter, int64_t in_features, int64_t out_features)
    : scale(adapter.scale) {
  const int64_t r = adapter.rank, E = adapter.experts;
  const bool on_A = adapter.mix == AdapterMix::A;
  using Shape = std::vector<int64_t>;
  const Shape of_A = on_A ? Shape{E, r, in_features} : Shape{r, in_features},
              of_B = on_A ? Shape{out_features, r} : Shape{E, out_features, r};
  A = register_parameter("A", at::empty(of_A, at::kFloat));
  B = register_parameter("B", at::empty(of_B, at::kFloat));
}

LinearImpl::LinearImpl(int in_features, int out_features, bool has_bias) {
  weight = register_parameter("weight", at::empty({out_features, in_features}, at::kFloat));
  if (has_bias) bias = register_parameter("bias", at::empty({out_features}, at::kFloat));
}

void LinearImpl::add_adapter(const AdapterConfig& adapter) {
  lora = register_module("lora", Lora(adapter, weight.size(1), weight.size(0)));
}

at::Tensor LinearImpl::forward(const at::Tensor& x, at::ScalarType dtype, const at::Tensor& shares) {
  const at::Tensor y = at::linear(x.to(dtype), weight.to(dtype), bias.defined() ? bias.to(dtype) : bias);
  return lora ? y + low_rank_output(x.to(dtype), lora->A, lora->B, shares, lora->scale) : y;
}

AffineImpl::AffineImpl(int size) {
  weight = register_parameter("weight", at::empty({size}, at::kFloat));
  bias = register_parameter("bias", at::empty({size}, at::kFloat));
}

PatchLevelImpl::PatchLevelImpl(const DiTConfig& config, int level) {
  const int C = config.hidden_size;
  pos_embed = register_parameter("pos_embed", at::empty({1, config.num_tokens(level), C}, at::kFloat),
                                 /*requires_grad=*/false);
  embedding = register_parameter("embedding", at::empty({C}, at::kFloat));
  add_patch_embedding(*this, config, level, patch_weight, patch_bias);
  final_linear = add_final_linear(*this, config, level);
}

DiTBlockImpl::DiTBlockImpl(const DiTConfig& config, int index) : config(config), index(index) {
  const int C = config.hidden_size, H = config.num_heads, F = config.mlp_hidden;
  if (config.join_source(index) >= 0) {
    if (config.norms_joins()) skip_norm = add_layer(*this, "skip_norm", Affine(2 * C));
    skip_linear = add_linear(*this, "skip_linear", 2 * C, C);
  }
  if (config.modulation == Modulation::Affine) {
    norm1 = add_layer(*this, "norm1", Affine(C));
    norm2 = add_layer(*this, "norm2", Affine(C));
  }
  qkv = add_linear(*this, "attn.qkv", C, 3 * C, config.qkv_bias);
  proj = add_linear(*this, "attn.proj", C, C);
  fc1 = add_linear(*this, "mlp.fc1", C, F);
  fc2 = add_linear(*this, "mlp.fc2", F, C);
  if (config.modulation == Modulation::AdaLN) adaLN = add_linear(*this, "adaLN_modulation.1", C, 6 * C);
  if (config.width_routers) {
    attn_router = add_linear(*this, "attn_rate.router", C, H - 1);
    mlp_router = add_linear(*this, "mlp_rate.router", C, H - 1);
  }
  if (config.token_routers) {
    const int R = config.token_router_hidden();
    token_router_in = add_linear(*this, "token_selection.mlp_head.0", C, R);
    token_router_out = add_linear(*this, "token_selection.mlp_head.2", R, 1);
  }
  if (config.adapter.kind == AdapterKind::None) return;
  for (Linear& layer : {std::ref(qkv), std::ref(proj), std::ref(fc1), std::ref(fc2)})
    layer->add_adapter(config.adapter);
  if (config.adapter.kind == AdapterKind::TdLora)
    lora_alpha = add_linear(*this, "lora_alpha", C, config.adapter.experts);
}

at::Tensor DiTBlockImpl::forward(const at::Tensor& x, const at::Tensor& c, const Gates& gates,
                                 at::ScalarType dtype, const at::Tensor& shares, at::Tensor* mlp_input) {
  const BlockConfig& computed = config.block(index);
  Modulated of_attention, of_mlp;
  if (adaLN) {
    const auto ada = adaLN->forward(at::silu(c)).chunk(6, 1);
    of_attention = {ada[0], ada[1], ada[2]};
    of_mlp = {ada[3], ada[4], ada[5]};
  } else {
    of_attention = of_affine(norm1, x.size(0));
    of_mlp = of_affine(norm2, x.size(0));
  }
  const at::Tensor head_gate = gates.heads.empty() ? at::Tensor() : gates.heads[index];
  const at::Tensor group_gate = gates.groups.empty() ? at::Tensor() : gates.groups[index];

  const auto branch = [&](Branch which, const auto& compute) {
    return gates.branch ? gates.branch(index, which, compute) : compute();
  };
  // The token router reads h, before norm and modulation, or the block's input; a token that is off stays
  // untouched. The tokens in front of the patches are always on.
  const bool whole_block = config.token_scope == TokenScope::Block;
  at::Tensor tokens;  // (B, T)
  const auto route = [&](const at::Tensor& read) {
    if (!gates.tokens || tokens.defined()) return;
    tokens = gates.tokens(index, token_logits(read));
    if (config.extras() > 0)
      tokens = at::cat({at::ones({x.size(0), config.extras()}, tokens.options()), tokens}, 1);
  };
  const auto of_tokens = [&](const at::Tensor& all) {
    return gates.branch && tokens.defined() ? all * tokens.unsqueeze(2).to(dtype) : all;
  };
  const at::Tensor a = branch(Branch::Attention, [&] {
    if (whole_block) route(x);
    return of_tokens(attention(
        layer_norm_modulate(x, of_attention.shift, of_attention.scale, dtype, computed.attn_norm_eps),
        head_gate, dtype, shares, tokens));
  });
  // A branch that is kept or forecast has its zeros already, and those of a forecast are of then.
  const auto factors = [&] { return gates.branch ? at::Tensor() : tokens; };
  const at::Tensor h = gated_residual(x, of_attention.gate, a, factors());
  const at::Tensor m = branch(Branch::Mlp, [&] {
    route(whole_block ? x : h);
    const at::Tensor input = layer_norm_modulate(h, of_mlp.shift, of_mlp.scale, dtype, computed.mlp_norm_eps);
    if (mlp_input) *mlp_input = input;
    return of_tokens(mlp(input, group_gate, dtype, shares));
  });
  return gated_residual(h, of_mlp.gate, m, factors());
}

at::Tensor DiTBlockImpl::join(const at::Tensor& x, const at::Tensor& skip) {
  at::Tensor both = at::cat({x, skip}, 2);
  if (skip_norm)
    both = at::layer_norm(both, {both.size(2)}, skip_norm->weight, skip_norm->bias,
                          config.block(index).attn_norm_eps);
  const at::Tensor joined = skip_linear->forward(both);
  return config.join == Join::Residual ? x + joined : joined;
}

at::Tensor DiTBlockImpl::attention(const at::Tensor& x, const at::Tensor& head_gate, at::ScalarType dtype,
                                   const at::Tensor& shares, const at::Tensor& tokens) {
  const int64_t B = x.size(0), N = x.size(1), C = x.size(2), H = config.num_heads;
  // Unbound, not indexed: the gradients of q, k and v are then stacked once instead of padded and added.
  const auto parts =
      qkv->forward(x, dtype, shares).view({B, N, 3, H, C / H}).permute({2, 0, 3, 1, 4}).unbind(0);
  at::Tensor heads = tokens.defined()  // (B, H, N, D)
                         ? attention_among(parts[0], parts[1], parts[2], tokens.detach() != 0)
                         : dydit::attention(parts[0], parts[1], parts[2]);
  if (head_gate.defined()) heads = heads * head_gate.to(dtype).view({B, H, 1, 1});
  return proj->forward(heads.transpose(1, 2).reshape({B, N, C}), dtype, shares);
}

at::Tensor DiTBlockImpl::mlp(const at::Tensor& x, const at::Tensor& group_gate, at::ScalarType dtype,
                             const at::Tensor& shares) {
  return fc2->forward(gated_gelu(fc1->forward(x, dtype, shares), group_gate, config.gelu), dtype, shares);
}

at::Tensor DiTBlockImpl::token_logits(const at::Tensor& x) {
  const at::Tensor patches = x.slice(1, config.extras());
  return token_router_out->forward(at::relu(token_router_in->forward(patches))).squeeze(2);
}

WidthLogits DiTBlockImpl::width_logits(const at::Tensor& t_emb) {
  return {attn_router->forward(t_emb), mlp_router->forward(t_emb)};
}

at::Tensor DiTBlockImpl::expert_shares(const at::Tensor& t_emb) {
  return lora_alpha ? at::softmax(lora_alpha->forward(t_emb), 1) : at::Tensor();
}

DiTImpl::DiTImpl(const DiTConfig& config) : config(config) {
  const int C = config.hidden_size;
  pos_embed = register_parameter("pos_embed", at::empty({1, config.sequence(), C}, at::kFloat),
                                 /*requires_grad=*/config.learned_positions);
  add_patch_embedding(*this, config, /*level=*/0, patch_weight, patch_bias);
  if (config.num_classes > 0) {
    auto table = register_module("y_embedder", std::make_shared<Module>())
                     ->register_module("embedding_table", std::make_shared<Module>());
    label_table = table->register_parameter("weight", at::empty({config.label_rows(), C}, at::kFloat));
  }
  if (config.time_mlp) {
    t_mlp_in = add_linear(*this, "t_embedder.mlp.0", config.time_frequencies, config.time_hidden());
    t_mlp_out = add_linear(*this, "t_embedder.mlp.2", config.time_hidden(), C);
  }
  auto list = register_module("blocks", std::make_shared<Module>());
  for (int i = 0; i < config.depth; ++i) {
    blocks.push_back(list->register_module(std::to_string(i), DiTBlock(config, i)));
  }
  final_linear = add_final_linear(*this, config, /*level=*/0);
  if (config.modulation == Modulation::AdaLN) {
    final_adaLN = add_linear(*this, "final_layer.adaLN_modulation.1", C, 2 * C);
  } else {
    final_norm = add_layer(*this, "final_layer.norm", Affine(C));
  }
  if (config.output_conv) {
    const int channels = config.out_channels();
    auto conv = register_module("final_conv", std::make_shared<Module>());
    conv_weight = conv->register_parameter("weight", at::empty({channels, channels, 3, 3}, at::kFloat));
    conv_bias = conv->register_parameter("bias", at::empty({channels}, at::kFloat));
  }
  if (config.levels() == 1) return;
  auto levels = register_module("levels", std::make_shared<Module>());
  for (int level = 1; level < config.levels(); ++level)
    larger.push_back(levels->register_module(std::to_string(level), PatchLevel(config, level)));
}

at::Tensor DiTImpl::embed_timestep(const at::Tensor& t, int level) {
  const at::Tensor frequencies = timestep_frequencies(t, config.time_frequencies, config.frequency_divisor);
  const at::Tensor t_emb =
      config.time_mlp ? t_mlp_out->forward(at::silu(t_mlp_in->forward(frequencies))) : frequencies;
  return level > 0 ? t_emb + larger[level - 1]->embedding : t_emb;
}

at::Tensor DiTImpl::embed(const at::Tensor& x, const at::Tensor& front, int level) const {
  const PatchLevel* const own = level > 0 ? &larger[level - 1] : nullptr;
  at::Tensor h = at::linear(patchify(x, level), (own ? (*own)->patch_weight : patch_weight).flatten(1),
                            own ? (*own)->patch_bias : patch_bias);
  if (front.defined()) h = at::cat({front, h}, 1);
  return h + (own ? (*own)->pos_embed : pos_embed);
}

DiTImpl::Conditioning DiTImpl::condition(const at::Tensor& t_emb, const at::Tensor& y) const {
  const at::Tensor label = label_table.defined() ? at::embedding(label_table, y) : at::Tensor();
  if (!config.time_token) return {label.defined() ? t_emb + label : t_emb, {}};
  return {{}, label.defined() ? at::stack({label, t_emb}, 1) : t_emb.unsqueeze(1)};
}

at::Tensor DiTImpl::final_layer(const at::Tensor& x, const at::Tensor& ada, int level) {
  const at::Tensor patches = config.extras() > 0 ? x.slice(1, config.extras()) : x;
  const auto [shift, scale, gate] = [&]() -> Modulated {
    if (!final_adaLN) return of_affine(final_norm, x.size(0));
    const auto parts = ada.chunk(2, 1);
    return {parts[0], parts[1]};
  }();
  Linear last = level > 0 ? larger[level - 1]->final_linear : final_linear;
  const at::Tensor out = unpatchify(
      last->forward(layer_norm_modulate(patches, shift, scale, at::kFloat, config.final_norm_eps)), level);
  return config.output_conv ? at::conv2d(out, conv_weight, conv_bias, 1, 1) : out;
}

at::Tensor DiTImpl::forward(const at::Tensor& x, const at::Tensor& t_emb, const at::Tensor& y,
                            const Gates& gates, int level, Taps* taps) {
  const auto [c, front] = condition(t_emb, y);
  at::Tensor h = embed(x, front, level);
  std::vector<at::Tensor> outputs(config.depth);  // of blocks that others are joined with
  for (int next, l = 0; (next = gates.enter ? gates.enter(l, h) : l) < config.depth; l = next) {
    if (next != l) continue;
    DiTBlock& block = blocks[next++];
    if (const int source = config.join_source(l); source >= 0) h = block->join(h, outputs[source]);
    h = block->forward(h, c, gates, compute_dtype, block->expert_shares(t_emb),
                       taps && taps->asks_mlp_inputs ? &taps->mlp_inputs.emplace_back() : nullptr);
    if (taps && taps->blocks.contains(l)) {
      taps->outputs[l] = h;
      if (taps->ends_there && l == *taps->blocks.rbegin()) return {};
    }
    if (config.join_source(config.depth - 1 - l) == l) outputs[l] = h;
  }
  return final_layer(h, final_adaLN ? final_adaLN->forward(at::silu(c)) : at::Tensor(), level);
}

void DiTImpl::set_compute_dtype(at::ScalarType dtype) {
  at::NoGradGuard no_grad;
  compute_dtype = dtype;
  for (DiTBlock& block : blocks) {
    for (Linear& layer :
         {std::ref(block->qkv), std::ref(block->proj), std::ref(block->fc1), std::ref(block->fc2)}) {
      layer->weight.set_data(layer->weight.to(dtype));
      if (layer->bias.defined()) layer->bias.set_data(layer->bias.to(dtype));
    }
  }
}

// (B, in, side, side) -> (B, N, in*p*p): a patch's values in the order of the convolution's weight.
at::Tensor DiTImpl::patchify(const at::Tensor& x, int level) const {
  const int64_t g = config.grid(level), p = config.patch(level);
  return x.reshape({-1, config.in_channels, g, p, g, p})
      .permute({0, 2, 4, 1, 3, 5})
      .reshape({-1, g * g, config.patch_values(level)});
}

// 'nhwpqc->nchpwq'
at::Tensor DiTImpl::unpatchify(const at::Tensor& x, int level) const {
  const int64_t g = config.grid(level), p = config.patch(level), c = config.out_channels();
  return x.reshape({-1, g, g, p, p, c}).permute({0, 5, 1, 3, 2, 4}).reshape({-1, c, g * p, g * p});
}

}  // namespace dydit
