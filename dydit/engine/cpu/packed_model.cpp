#include "dydit/engine/cpu/packed_model.h"

#include <algorithm>
#include <utility>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "dydit/model/macs.h"

namespace dydit::cpu {
namespace {

// Of a tensor that was copied: else a model would be in memory twice.
void drop_pages(const Checkpoint& checkpoint, const at::Tensor& weight) {
  for (const auto& file : checkpoint.files) file->drop_pages(weight.data_ptr(), weight.nbytes());
}

bool takes_narrow(const Level& level) {
  return level.activations == at::kBFloat16 ? kernels().narrow_bf16 : kernels().narrow_float;
}

std::vector<float> float_values(const Checkpoint& checkpoint, const std::string& name) {
  const at::Tensor values = checkpoint.weights.at(name).to(at::kFloat).contiguous();
  return {values.data_ptr<float>(), values.data_ptr<float>() + values.numel()};
}

// `level`, but for float32 weights that the file has in bfloat16: they stay so, and are exact.
Level exact_level(const Checkpoint& checkpoint, const std::string& name, const Level& level) {
  const bool stored = checkpoint.weights.at(name + ".weight").scalar_type() == at::kBFloat16;
  return level == kLevelF32 && stored ? kLevelBf16Fma : level;
}

}  // namespace

PackedModel::PackedModel(const Checkpoint& checkpoint, const Level& level, int threads)
    : config_(checkpoint.config), narrow_values_(takes_narrow(level)) {
  Team team(threads);
  const auto floats = [&](const std::string& name) {  // a copy: the file may change once this is packed
    const at::Tensor& table = checkpoint.weights.at(name);
    at::Tensor copy = table.to(at::kFloat, /*non_blocking=*/false, /*copy=*/true).contiguous();
    drop_pages(checkpoint, table);
    return copy;
  };
  if (config_.num_classes > 0) labels = floats("y_embedder.embedding_table.weight");
  for (int level = 0; level < config_.levels(); ++level) {
    const std::string prefix = level > 0 ? fmt::format("levels.{}.", level) : "";
    levels.push_back({pack_exact(checkpoint, prefix + "x_embedder.proj", team),
                      pack_exact(checkpoint, prefix + "final_layer.linear", team),
                      floats(prefix + "pos_embed"),
                      level > 0 ? float_values(checkpoint, prefix + "embedding") : std::vector<float>()});
  }
  if (config_.time_mlp) {
    t_in = pack_exact(checkpoint, "t_embedder.mlp.0", team);
    t_out = pack_exact(checkpoint, "t_embedder.mlp.2", team);
  }
  if (config_.output_conv) {
    conv_weight = float_values(checkpoint, "final_conv.weight");
    conv_bias = float_values(checkpoint, "final_conv.bias");
  }
  for (int l = 0; l < config_.depth; ++l) blocks.push_back(pack_block(checkpoint, l, level, team));
  if (config_.modulation == Modulation::AdaLN) {
    pack_modulation(checkpoint, team);
  } else {
    take_constant(checkpoint);
  }
}

PackedLinear PackedModel::pack(const Checkpoint& checkpoint, const std::string& name, int out_segments,
                               int in_segments, const Level& level, Team& team, std::span<const int> rows) {
  const at::Tensor& weight = checkpoint.weights.at(name + ".weight");
  const auto found = checkpoint.weights.find(name + ".bias");
  const at::Tensor bias =
      found != checkpoint.weights.end() ? found->second : at::zeros({weight.size(0)}, at::kFloat);
  PackedLinear packed;
  if (level.weights == at::kChar) {
    packed = PackedLinear(quantized_layer(checkpoint.weights, name, in_segments), bias, out_segments, level,
                          arena_, team, rows);
  } else {
    packed = PackedLinear(float_weight(checkpoint.weights, name + ".weight").flatten(1), bias, out_segments,
                          in_segments, level, takes_narrow(level), arena_, team, rows);
  }
  if (packed.expands()) expanded_floats_ = std::max(expanded_floats_, packed.tile_floats());
  drop_pages(checkpoint, weight);
  return packed;
}

PackedLinear PackedModel::pack_exact(const Checkpoint& checkpoint, const std::string& name, Team& team) {
  return pack(checkpoint, name, 1, 1, exact_level(checkpoint, name, kLevelF32), team);
}

PackedBlock PackedModel::pack_block(const Checkpoint& checkpoint, int index, const Level& level, Team& team) {
  const int H = config_.num_heads, C = config_.hidden_size, D = config_.head_size();
  const std::string prefix = fmt::format("blocks.{}.", index);
  const auto pack_layer = [&](std::string_view layer, int outs, std::span<const int> rows = {}) {
    const std::string name = fmt::format("{}{}", prefix, layer);
    return pack(checkpoint, name, outs, input_segments(config_, layer), exact_level(checkpoint, name, level),
                team, rows);
  };
  std::vector<int> qkv_rows;  // head by head: its q, k and v
  for (int h = 0; h < H; ++h) {
    for (int part = 0; part < 3; ++part) {
      for (int d = 0; d < D; ++d) qkv_rows.push_back(part * C + h * D + d);
    }
  }
  PackedBlock block;
  block.qkv = pack_layer("attn.qkv", H, qkv_rows);
  block.proj = pack_layer("attn.proj", 1);
  block.fc1 = pack_layer("mlp.fc1", H);
  block.fc2 = pack_layer("mlp.fc2", 1);
  if (config_.join_source(index) >= 0) {
    block.join = pack_exact(checkpoint, prefix + "skip_linear", team);
    if (config_.norms_joins()) {
      block.join_shift = float_values(checkpoint, prefix + "skip_norm.bias");
      block.join_scale = float_values(checkpoint, prefix + "skip_norm.weight");
      for (float& scale : block.join_scale) scale -= 1.0f;
    }
  }
  if (config_.token_routers) {
    // Small, and faster in float32, which is what it is multiplied with.
    block.token_in = pack(checkpoint, prefix + "token_selection.mlp_head.0", 1, 1, kLevelF32, team);
    const at::Tensor out =
        at::cat({checkpoint.weights.at(prefix + "token_selection.mlp_head.2.weight").flatten(),
                 checkpoint.weights.at(prefix + "token_selection.mlp_head.2.bias")})
            .to(at::kFloat)
            .contiguous();
    block.token_out.assign(out.data_ptr<float>(), out.data_ptr<float>() + out.numel());
  }
  return block;
}

// Of every branch shift, scale and a gate of 1, then the final layer's.
void PackedModel::take_constant(const Checkpoint& checkpoint) {
  const auto add = [&](const std::string& norm, bool gated) {
    const std::vector<float> shift = float_values(checkpoint, norm + ".bias"),
                             weight = float_values(checkpoint, norm + ".weight");
    constant.insert(constant.end(), shift.begin(), shift.end());
    for (const float value : weight) constant.push_back(value - 1.0f);
    if (gated) constant.insert(constant.end(), shift.size(), 1.0f);
  };
  for (int l = 0; l < config_.depth; ++l) {
    add(fmt::format("blocks.{}.norm1", l), true);
    add(fmt::format("blocks.{}.norm2", l), true);
  }
  add("final_layer.norm", false);
}

// One product makes the modulation of all layers, so they share a type: bfloat16 when all are stored in it.
void PackedModel::pack_modulation(const Checkpoint& checkpoint, Team& team) {
  const int L = config_.depth;
  std::vector<std::string> names;
  for (int l = 0; l < L; ++l) names.push_back(fmt::format("blocks.{}.adaLN_modulation.1", l));
  names.push_back("final_layer.adaLN_modulation.1");
  const bool bf16 = std::all_of(names.begin(), names.end(), [&](const std::string& name) {
    return checkpoint.weights.at(name + ".weight").scalar_type() == at::kBFloat16;
  });
  for (int l = 0; l <= L; ++l) {
    ada.push_back(pack(checkpoint, names[l], 1, 1, bf16 ? kLevelBf16Fma : kLevelF32, team));
    ada[l].add_panels(0, l * 6 * config_.hidden_size, ada_panels);
  }
}

int64_t PackedModel::executed_macs(const StepPlan& step, std::span<const int> tokens) const {
  const auto layer = [](const PackedLinear& weights) {
    return int64_t{weights.out_segments()} * weights.padded_out_size() * weights.padded_in_size();
  };
  const PackedLevel& own = levels[step.level];
  int64_t macs =
      config_.num_tokens(step.level) * (layer(own.patch) + layer(own.final)) + layer(t_in) + layer(t_out);
  macs += static_cast<int64_t>(conv_weight.size()) * config_.input_size * config_.input_size;
  for (const PackedLinear& weights : ada) macs += layer(weights);
  const int64_t width_router = step.mode == Mode::Dynamic ? width_router_macs(config_) : 0;
  for (int l = 0; l < config_.depth; ++l) {
    if (step.branch(l, Branch::Attention).action != kSkipped)
      macs += config_.sequence(step.level) * layer(blocks[l].join);
    const bool whole_block = config_.token_scope == TokenScope::Block && step.routes_tokens(config_);
    if (step.routes_at(config_, l)) macs += router_macs(l, step);
    if (step.computes(l, Branch::Attention))
      macs +=
          attention_macs(l, step, whole_block ? tokens[l] : config_.num_tokens(step.level)) + width_router;
    if (step.computes(l, Branch::Mlp)) macs += mlp_macs(l, step, tokens[l]) + width_router;
  }
  return macs;
}

int64_t PackedModel::attention_macs(int index, const StepPlan& step, int tokens) const {
  const PackedBlock& block = blocks[index];
  const int N = config_.extras() + tokens, D = config_.head_size();
  const int64_t heads = step.blocks[index].active_heads();
  const int64_t keys = ceil_div(N, kPanel) * kPanel,
                channels =
                    ceil_div(D, kPanel) * kPanel - (narrow_values_ && ends_narrow(D) ? kNarrowPanel : 0);
  const int64_t attention = heads * N * (keys * even(D) + channels * even(N));
  const int64_t qkv = heads * N * block.qkv.padded_out_size() * block.qkv.padded_in_size();
  const int64_t proj = heads * N * block.proj.padded_out_size() * block.proj.padded_in_size();
  return attention + qkv + proj;
}

int64_t PackedModel::mlp_macs(int index, const StepPlan& step, int tokens) const {
  const PackedBlock& block = blocks[index];
  const int rows = config_.extras() + tokens;
  const int64_t groups = step.blocks[index].active_groups();
  const int64_t fc1 = groups * rows * block.fc1.padded_out_size() * block.fc1.padded_in_size();
  const int64_t fc2 = groups * rows * block.fc2.padded_out_size() * block.fc2.padded_in_size();
  return fc1 + fc2;
}

int64_t PackedModel::router_macs(int index, const StepPlan& step) const {
  const PackedLinear& in = blocks[index].token_in;
  const int64_t row = even(config_.hidden_size);
  return config_.sequence(step.level) * (in.padded_out_size() * row + in.out_size());
}

}  // namespace dydit::cpu
