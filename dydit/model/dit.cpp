// The forward of method.md sections 1 and 2, in the paper's order.
#include "dydit/model/dit.h"

#include "dydit/model/embeddings.h"
#include "dydit/model/ops.h"

namespace dydit {
namespace {

using torch::nn::Module;

// A layer registered under a dotted path ("attn.qkv"), making the modules on the way, so that parameter names
// are those of the published checkpoints while the code keeps flat members.
Linear add_linear(Module& root, const std::string& path, int in_features, int out_features) {
  Module* parent = &root;
  size_t start = 0;
  for (size_t dot; (dot = path.find('.', start)) != std::string::npos; start = dot + 1) {
    const std::string name = path.substr(start, dot - start);
    const auto children = parent->named_children();
    const auto* found = children.find(name);
    parent = found ? found->get() : parent->register_module(name, std::make_shared<Module>()).get();
  }
  return parent->register_module(path.substr(start), Linear(in_features, out_features));
}

}  // namespace

LinearImpl::LinearImpl(int in_features, int out_features) {
  weight = register_parameter("weight", at::empty({out_features, in_features}, at::kFloat));
  bias = register_parameter("bias", at::empty({out_features}, at::kFloat));
}

at::Tensor LinearImpl::forward(const at::Tensor& x, at::ScalarType dtype) {
  return at::linear(x.to(dtype), weight.to(dtype), bias.to(dtype));
}

DiTBlockImpl::DiTBlockImpl(const DiTConfig& config, int index) : config(config), index(index) {
  const int C = config.hidden_size, H = config.num_heads, F = config.mlp_hidden;
  qkv = add_linear(*this, "attn.qkv", C, 3 * C);
  proj = add_linear(*this, "attn.proj", C, C);
  fc1 = add_linear(*this, "mlp.fc1", C, F);
  fc2 = add_linear(*this, "mlp.fc2", F, C);
  adaLN = add_linear(*this, "adaLN_modulation.1", C, 6 * C);
  if (config.width_routers) {
    attn_router = add_linear(*this, "attn_rate.router", C, H - 1);
    mlp_router = add_linear(*this, "mlp_rate.router", C, H - 1);
  }
  if (config.token_routers) {
    const int R = config.token_router_hidden();
    token_router_in = add_linear(*this, "token_selection.mlp_head.0", C, R);
    token_router_out = add_linear(*this, "token_selection.mlp_head.2", R, 1);
  }
}

at::Tensor DiTBlockImpl::forward(const at::Tensor& x, const at::Tensor& c, const Gates& gates,
                                 at::ScalarType dtype) {
  const BlockConfig& computed = config.block(index);
  const auto ada = adaLN->forward(at::silu(c)).chunk(6, 1);
  const at::Tensor &shift_msa = ada[0], &scale_msa = ada[1], &gate_msa = ada[2];
  const at::Tensor &shift_mlp = ada[3], &scale_mlp = ada[4], &gate_mlp = ada[5];
  const at::Tensor head_gate = gates.heads.empty() ? at::Tensor() : gates.heads[index];
  const at::Tensor group_gate = gates.groups.empty() ? at::Tensor() : gates.groups[index];

  const auto branch = [&](Branch which, const auto& compute) {
    return gates.branch ? gates.branch(index, which, compute) : compute();
  };
  const at::Tensor a = branch(Branch::Attention, [&] {
    return attention(layer_norm_modulate(x, shift_msa, scale_msa, dtype, computed.attn_norm_eps), head_gate,
                     dtype);
  });
  const at::Tensor h = gated_residual(x, gate_msa, a);

  at::Tensor tokens;
  const at::Tensor m = branch(Branch::Mlp, [&] {
    // The token router reads h, before norm and modulation; a token that is off keeps h untouched.
    if (gates.tokens) tokens = gates.tokens(index, token_logits(h));
    const at::Tensor all =
        mlp(layer_norm_modulate(h, shift_mlp, scale_mlp, dtype, computed.mlp_norm_eps), group_gate, dtype);
    return gates.branch && tokens.defined() ? all * tokens.unsqueeze(2).to(dtype) : all;
  });
  return gated_residual(h, gate_mlp, m, tokens);
}

at::Tensor DiTBlockImpl::attention(const at::Tensor& x, const at::Tensor& head_gate, at::ScalarType dtype) {
  const int64_t B = x.size(0), N = x.size(1), C = x.size(2), H = config.num_heads;
  // Unbound, not indexed: the gradients of q, k and v are then stacked once instead of padded and added.
  const auto parts = qkv->forward(x, dtype).view({B, N, 3, H, C / H}).permute({2, 0, 3, 1, 4}).unbind(0);
  at::Tensor heads = dydit::attention(parts[0], parts[1], parts[2]);  // (B, H, N, D)
  if (head_gate.defined()) heads = heads * head_gate.to(dtype).view({B, H, 1, 1});
  return proj->forward(heads.transpose(1, 2).reshape({B, N, C}), dtype);
}

at::Tensor DiTBlockImpl::mlp(const at::Tensor& x, const at::Tensor& group_gate, at::ScalarType dtype) {
  return fc2->forward(gated_gelu(fc1->forward(x, dtype), group_gate), dtype);
}

at::Tensor DiTBlockImpl::token_logits(const at::Tensor& x) {
  return token_router_out->forward(at::relu(token_router_in->forward(x))).squeeze(2);
}

WidthLogits DiTBlockImpl::width_logits(const at::Tensor& t_emb) {
  return {attn_router->forward(t_emb), mlp_router->forward(t_emb)};
}

DiTImpl::DiTImpl(const DiTConfig& config) : config(config) {
  const int C = config.hidden_size, p = config.patch_size;
  pos_embed = register_parameter("pos_embed", at::empty({1, config.num_tokens(), C}, at::kFloat),
                                 /*requires_grad=*/false);
  auto patch = register_module("x_embedder", std::make_shared<Module>())
                   ->register_module("proj", std::make_shared<Module>());
  patch_weight = patch->register_parameter("weight", at::empty({C, config.in_channels, p, p}, at::kFloat));
  patch_bias = patch->register_parameter("bias", at::empty({C}, at::kFloat));
  auto table = register_module("y_embedder", std::make_shared<Module>())
                   ->register_module("embedding_table", std::make_shared<Module>());
  label_table = table->register_parameter("weight", at::empty({config.num_classes + 1, C}, at::kFloat));
  t_mlp_in = add_linear(*this, "t_embedder.mlp.0", kFrequencyEmbeddingSize, C);
  t_mlp_out = add_linear(*this, "t_embedder.mlp.2", C, C);
  auto list = register_module("blocks", std::make_shared<Module>());
  for (int i = 0; i < config.depth; ++i) {
    blocks.push_back(list->register_module(std::to_string(i), DiTBlock(config, i)));
  }
  final_linear = add_linear(*this, "final_layer.linear", C, p * p * config.out_channels());
  final_adaLN = add_linear(*this, "final_layer.adaLN_modulation.1", C, 2 * C);
}

at::Tensor DiTImpl::embed_timestep(const at::Tensor& t) {
  return t_mlp_out->forward(at::silu(t_mlp_in->forward(timestep_frequencies(t, config.frequency_divisor))));
}

at::Tensor DiTImpl::forward(const at::Tensor& x, const at::Tensor& t_emb, const at::Tensor& y,
                            const Gates& gates) {
  const at::Tensor c = t_emb + at::embedding(label_table, y);
  at::Tensor h = at::linear(patchify(x), patch_weight.flatten(1), patch_bias) + pos_embed;
  for (int next, l = 0; (next = gates.enter ? gates.enter(l, h) : l) < config.depth; l = next) {
    if (next == l) h = blocks[next++]->forward(h, c, gates, compute_dtype);
  }
  const auto ada = final_adaLN->forward(at::silu(c)).chunk(2, 1);  // shift, scale
  return unpatchify(final_linear->forward(layer_norm_modulate(h, ada[0], ada[1], at::kFloat, kLayerNormEps)));
}

void DiTImpl::set_compute_dtype(at::ScalarType dtype) {
  at::NoGradGuard no_grad;
  compute_dtype = dtype;
  for (DiTBlock& block : blocks) {
    for (Linear& layer :
         {std::ref(block->qkv), std::ref(block->proj), std::ref(block->fc1), std::ref(block->fc2)}) {
      layer->weight.set_data(layer->weight.to(dtype));
      layer->bias.set_data(layer->bias.to(dtype));
    }
  }
}

// (B, in, side, side) -> (B, N, in*p*p): a patch's values in the order of the convolution's weight.
at::Tensor DiTImpl::patchify(const at::Tensor& x) const {
  const int64_t g = config.grid(), p = config.patch_size;
  return x.reshape({-1, config.in_channels, g, p, g, p})
      .permute({0, 2, 4, 1, 3, 5})
      .reshape({-1, g * g, config.patch_values()});
}

// 'nhwpqc->nchpwq'
at::Tensor DiTImpl::unpatchify(const at::Tensor& x) const {
  const int64_t g = config.grid(), p = config.patch_size, c = config.out_channels();
  return x.reshape({-1, g, g, p, p, c}).permute({0, 5, 1, 3, 2, 4}).reshape({-1, c, g * p, g * p});
}

}  // namespace dydit
