// Every tensor draws from a generator of its own, so that one more tensor changes no other.
#include "dydit/model/edit.h"

#include <algorithm>
#include <cmath>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include "dydit/base/error.h"
#include "dydit/base/machine.h"
#include "dydit/model/adapters.h"
#include "dydit/model/dit.h"
#include "dydit/model/embeddings.h"
#include "dydit/model/macs.h"
#include "dydit/model/quantization.h"

namespace dydit {
namespace {

at::Generator generator_for(uint64_t seed, uint64_t index) {
  return at::detail::createCPUGenerator(seed * 1'000'003 + index);
}

// Rows are outputs; trailing dimensions (a patch's values) count as inputs.
void xavier_uniform(at::Tensor& weight, at::Generator& generator) {
  const auto fan_out = static_cast<double>(weight.size(0)), fan_in = static_cast<double>(weight[0].numel());
  const double bound = std::sqrt(6.0 / (fan_in + fan_out));
  weight.uniform_(-bound, bound, generator);
}

// (H, D) -> rows of a head, summed: |weight| (H*D, anything) -> (H)
at::Tensor row_importance(const at::Tensor& weight, int parts) {
  return weight.to(at::kDouble).abs().sum(1).view({parts, -1}).sum(1);
}

at::Tensor descending_order(const at::Tensor& importance) {
  return at::argsort(importance, /*stable=*/true, /*dim=*/0, /*descending=*/true);
}

void reorder_block(Weights& weights, const DiTConfig& config, const std::string& block) {
  const int64_t H = config.num_heads, D = config.head_size(), C = config.hidden_size, F = config.mlp_hidden;
  at::Tensor& qkv_w = weights[block + "attn.qkv.weight"];
  at::Tensor& proj_w = weights[block + "attn.proj.weight"];
  at::Tensor head_importance = row_importance(proj_w.t(), H);
  for (const at::Tensor& part : qkv_w.view({3, C, C}).unbind(0)) {
    head_importance = head_importance + row_importance(part, H);
  }
  const at::Tensor heads = descending_order(head_importance);
  const at::Tensor columns = (heads.unsqueeze(1) * D + at::arange(D, at::kLong).unsqueeze(0)).flatten();
  qkv_w = qkv_w.view({3, C, C}).index_select(1, columns).view({3 * C, C});
  if (const auto qkv_b = weights.find(block + "attn.qkv.bias"); qkv_b != weights.end())
    qkv_b->second = qkv_b->second.view({3, C}).index_select(1, columns).view({3 * C});
  proj_w = proj_w.index_select(1, columns);

  at::Tensor &fc1_w = weights[block + "mlp.fc1.weight"], &fc1_b = weights[block + "mlp.fc1.bias"];
  at::Tensor& fc2_w = weights[block + "mlp.fc2.weight"];
  const at::Tensor channels = descending_order(row_importance(fc1_w, F) + row_importance(fc2_w.t(), F));
  fc1_w = fc1_w.index_select(0, channels);
  fc1_b = fc1_b.index_select(0, channels);
  fc2_w = fc2_w.index_select(1, channels);
}

// The counts of one level for all: those of tokens in proportion.
KeepCounts with_levels(const KeepCounts& counts, const DiTConfig& config) {
  KeepCounts all = counts;
  for (int level = 1; level < config.levels(); ++level) {
    all.heads.insert(all.heads.end(), counts.heads.begin(), counts.heads.end());
    all.groups.insert(all.groups.end(), counts.groups.begin(), counts.groups.end());
    for (KeepCounts::PerRegion regions : counts.tokens) {
      for (int& count : regions) count = std::max(1, count * config.num_tokens(level) / config.num_tokens());
      all.tokens.push_back(regions);
    }
  }
  return all;
}

}  // namespace

bool is_router_parameter(const std::string& name) {
  return name.find(".router.") != std::string::npos || name.find("token_selection") != std::string::npos;
}

Checkpoint init_checkpoint(const DiTConfig& config, uint64_t seed) {
  if (config.levels() > 1) {
    DiTConfig single = config;
    single.level_from.clear();
    return add_levels(init_checkpoint(single, seed), config.level_from);
  }
  // pos_embed is made in double, beside its place and its copy in float32.
  const double pos_embed = static_cast<double>(config.num_tokens()) * config.hidden_size;
  check_memory(std::max(static_cast<double>(num_parameters(config)) * sizeof(float),
                        pos_embed * (sizeof(double) + 2 * sizeof(float))),
               model_name(config), "take a smaller model");
  at::NoGradGuard no_grad;
  Checkpoint checkpoint;
  checkpoint.config = config;
  DiT model(config);
  uint64_t index = 0;
  for (const auto& parameter : model->named_parameters()) {
    const std::string& name = parameter.key();
    at::Tensor tensor = at::zeros_like(parameter.value());
    at::Generator generator = generator_for(seed, index++);
    const bool zero = name.find("adaLN") != std::string::npos || name.starts_with("final_layer.linear");
    const bool norm = name.find("norm") != std::string::npos;
    if (norm || config.time_token) {
      // U-ViT: normal, cut off at two units of 1, which none of 0.02 reaches in effect.
      if (norm && name.ends_with("weight")) tensor.fill_(1.0);
      if (!norm && tensor.dim() >= 2) tensor.normal_(0.0, 0.02, generator);
    } else if (name == "pos_embed") {
      tensor = sincos_pos_embed(config.hidden_size, config.grid());
    } else if (name.starts_with("y_embedder") || (name.starts_with("t_embedder") && tensor.dim() == 2)) {
      tensor.normal_(0.0, 0.02, generator);
    } else if (tensor.dim() >= 2 && !zero) {
      xavier_uniform(tensor, generator);
    }
    checkpoint.weights[name] = tensor;
  }
  return checkpoint;
}

Checkpoint add_routers(const Checkpoint& checkpoint, const RouterInit& init, uint64_t seed) {
  at::NoGradGuard no_grad;
  DYDIT_CHECK(!checkpoint.config.is_dynamic(),
              "{}: already has routers; fine-tuning starts from a static DiT", checkpoint.path.string());
  Checkpoint dynamic = checkpoint;
  dynamic.config.width_routers = init.width;
  dynamic.config.token_routers = init.tokens;
  dynamic.config.token_scope = init.tokens ? init.scope : TokenScope::Mlp;
  DiT model(dynamic.config);
  uint64_t index = 0;
  for (const auto& parameter : model->named_parameters()) {
    const std::string& name = parameter.key();
    if (!is_router_parameter(name)) continue;
    at::Tensor tensor = at::zeros_like(parameter.value());
    at::Generator generator = generator_for(seed, index++);
    if (tensor.dim() == 2 && tensor.numel() > 0) xavier_uniform(tensor, generator);
    if (name.ends_with("router.bias")) tensor.fill_(init.width_bias);
    if (name.ends_with("mlp_head.2.bias")) tensor.fill_(init.token_bias);
    dynamic.weights[name] = tensor;
  }
  return dynamic;
}

Checkpoint drop_routers(Checkpoint checkpoint) {
  DYDIT_CHECK(checkpoint.config.is_dynamic(), "{}: has no routers to drop", checkpoint.path.string());
  std::erase_if(checkpoint.weights, [](const auto& entry) { return is_router_parameter(entry.first); });
  checkpoint.config.width_routers = checkpoint.config.token_routers = false;
  checkpoint.config.token_scope = TokenScope::Mlp;
  checkpoint.keep_counts.reset();
  checkpoint.lambda.reset();  // of work that the routers saved
  return checkpoint;
}

Checkpoint keep_shares(Checkpoint checkpoint, const KeepShares& shares) {
  if (!checkpoint.config.is_dynamic()) checkpoint = add_routers(checkpoint, {}, 0);
  const DiTConfig& config = checkpoint.config;
  const auto same = [&](bool routed, double share, int of) {
    const KeepCounts::PerRegion counts(kQuarters, std::max(1, static_cast<int>(std::lround(share * of))));
    return std::vector<KeepCounts::PerRegion>(routed ? config.depth : 0, counts);
  };
  checkpoint.keep_counts = with_levels({same(config.width_routers, shares.heads, config.num_heads),
                                        same(config.width_routers, shares.groups, config.num_heads),
                                        same(config.token_routers, shares.tokens, config.num_tokens())},
                                       config);
  return checkpoint;
}

Checkpoint add_long_skips(Checkpoint checkpoint) {
  at::NoGradGuard no_grad;
  DiTConfig& config = checkpoint.config;
  DYDIT_CHECK(config.join == Join::None, "{}: already has long skips", checkpoint.path.string());
  DYDIT_CHECK(config.depth % 2 == 0, "{}: has {} blocks; long skips join an even number",
              checkpoint.path.string(), config.depth);
  config.join = Join::Residual;
  for (const auto& parameter : DiT(config)->named_parameters()) {
    const std::string& name = parameter.key();
    if (name.find("skip_") == std::string::npos) continue;
    checkpoint.weights[name] = at::full_like(parameter.value(), name.ends_with("skip_norm.weight") ? 1 : 0);
  }
  return checkpoint;
}

Checkpoint add_levels(Checkpoint checkpoint, const std::vector<int>& level_from) {
  at::NoGradGuard no_grad;
  DiTConfig& config = checkpoint.config;
  check_levels(config, level_from);
  config.level_from = level_from;
  const at::Tensor patch = checkpoint.weights.at("x_embedder.proj.weight"),
                   rows = checkpoint.weights.at("final_layer.linear.weight"),
                   row_bias = checkpoint.weights.at("final_layer.linear.bias");
  const int64_t C = config.hidden_size, p = config.patch_size, out = config.out_channels();
  for (int level = 1; level < config.levels(); ++level) {
    const int64_t factor = int64_t{1} << level;  // patches of level 0 along a side
    // The large patch is embedded as the mean of its pixels, and predicts each of them by their mean's.
    const auto set = [&](const char* name, const at::Tensor& value) {
      checkpoint.weights[fmt::format("levels.{}.{}", level, name)] = value.contiguous();
    };
    set("x_embedder.proj.weight", patch.repeat_interleave(factor, 2).repeat_interleave(factor, 3) /
                                      static_cast<double>(factor * factor));
    set("x_embedder.proj.bias", checkpoint.weights.at("x_embedder.proj.bias").clone());
    const auto repeated = [&](const at::Tensor& of_patch) {  // (p p out, ...) -> (p' p' out, ...)
      return of_patch.reshape({p, p, out, -1})
          .repeat_interleave(factor, 0)
          .repeat_interleave(factor, 1)
          .reshape({factor * p * factor * p * out, -1});
    };
    set("final_layer.linear.weight", repeated(rows));
    set("final_layer.linear.bias", repeated(row_bias).flatten());
    set("pos_embed", sincos_pos_embed(config.hidden_size, config.grid(level), static_cast<double>(factor)));
    set("embedding", at::zeros({C}, at::kFloat));
  }
  if (checkpoint.keep_counts) checkpoint.keep_counts = with_levels(*checkpoint.keep_counts, config);
  return checkpoint;
}

Checkpoint add_adapters(const Checkpoint& checkpoint, const AdapterConfig& adapter, uint64_t seed) {
  at::NoGradGuard no_grad;
  const std::string at = checkpoint.path.string();
  const int C = checkpoint.config.hidden_size;
  DYDIT_CHECK(checkpoint.config.adapter.kind == AdapterKind::None, "{}: already has adapters ({})", at,
              adapter_text(checkpoint.config.adapter));
  DYDIT_USAGE_CHECK(adapter.rank <= C,
                    "adapters of rank {}: the hidden size of {} is {}; a lower rank is wanted", adapter.rank,
                    at, C);
  Checkpoint adapted = checkpoint;
  adapted.config.adapter = adapter;
  uint64_t index = uint64_t{1} << 19;  // draws beside those of the routers
  for (const auto& parameter : DiT(adapted.config)->named_parameters()) {
    const std::string& name = parameter.key();
    if (!is_adapter_parameter(name)) continue;
    at::Tensor tensor = at::zeros_like(parameter.value());
    if (name.ends_with(".lora.A")) {
      const double bound = 1 / std::sqrt(static_cast<double>(tensor.size(-1)));
      for (const at::Tensor& expert : tensor.view({-1, adapter.rank, tensor.size(-1)}).unbind(0))
        expert.uniform_(-bound, bound, generator_for(seed, index++));
    } else if (name.ends_with("lora_alpha.weight")) {
      at::Generator generator = generator_for(seed, index++);
      xavier_uniform(tensor, generator);
    }
    adapted.weights[name] = tensor;
  }
  return adapted;
}

Checkpoint merge_adapters(Checkpoint checkpoint) {
  at::NoGradGuard no_grad;
  const std::string at = checkpoint.path.string();
  const AdapterConfig adapter = checkpoint.config.adapter;
  DYDIT_CHECK(adapter.kind != AdapterKind::None, "{}: has no adapters to merge", at);
  DYDIT_CHECK(
      adapter.kind == AdapterKind::Lora,
      "{}: its adapters are {}, which make other weights at every timestep; only those of a LoRA can be "
      "merged",
      at, adapter_text(adapter));
  refuse_quantized(checkpoint, "merging");
  Weights& weights = checkpoint.weights;
  for (int l = 0; l < checkpoint.config.depth; ++l) {
    for (const std::string_view layer : kBlockLayers) {
      const std::string name = fmt::format("blocks.{}.{}", l, layer);
      at::Tensor& weight = weights.at(name + ".weight");
      const auto matrix = [&](const char* which) { return weights.at(name + which).to(at::kFloat); };
      weight =
          weight.to(at::kFloat) + low_rank_update(matrix(".lora.A"), matrix(".lora.B"), {}, adapter.scale);
    }
  }
  std::erase_if(weights, [](const auto& entry) { return is_adapter_parameter(entry.first); });
  checkpoint.config.adapter = {};
  checkpoint.adapter_base.clear();
  checkpoint.notes.erase(kOrderNote);
  return checkpoint;
}

Checkpoint in_dtype(Checkpoint checkpoint, at::ScalarType dtype) {
  for (auto& [name, tensor] : checkpoint.weights) {
    if (!name.ends_with("pos_embed")) tensor = tensor.to(dtype);
  }
  return checkpoint;
}

Checkpoint random_model(const std::string& size, int input_size) {
  constexpr std::string_view kDynamic = "Dy";
  const bool dynamic = size.starts_with(kDynamic);
  DiTConfig config = named_config(dynamic ? size.substr(kDynamic.size()) : size);
  config.input_size = input_size;
  Checkpoint checkpoint = init_checkpoint(config, 0);
  checkpoint.path = "random weights";
  if (!dynamic) return checkpoint;
  // As initialised the timestep's embedding is near zero, and the routers would not hear it.
  constexpr double kLouder = 20;
  for (const char* name : {"t_embedder.mlp.0.weight", "t_embedder.mlp.2.weight"})
    if (config.time_mlp) checkpoint.weights[name] = checkpoint.weights[name] * kLouder;
  return add_routers(checkpoint, {.width_bias = 0, .token_bias = 0}, 0);
}

Checkpoint reorder_by_importance(const Checkpoint& checkpoint) {
  DYDIT_CHECK(checkpoint.config.adapter.kind == AdapterKind::None,
              "{}: has adapters, which do not fit another order of heads and channels; dydit convert --merge "
              "makes weights of a LoRA's",
              checkpoint.path.string());
  Checkpoint reordered = checkpoint;
  for (int b = 0; b < checkpoint.config.depth; ++b) {
    reorder_block(reordered.weights, checkpoint.config, fmt::format("blocks.{}.", b));
  }
  return reordered;
}

}  // namespace dydit
