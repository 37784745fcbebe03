// A forced first part stands in front of every width gate; tokens are gated as the forward reaches them.
#include "dydit/train/gates.h"

#include <cmath>

#include "dydit/base/noise.h"
#include "dydit/model/dit.h"
#include "dydit/model/macs.h"
#include "dydit/plan/run_plan.h"
#include "dydit/train/capacity.h"

namespace dydit {
namespace {

// (B, H-1) of router outputs -> (B, H) with the always-on part.
at::Tensor with_first_on(const at::Tensor& parts) {
  return at::cat({at::ones({parts.size(0), 1}, parts.options()), parts}, 1);
}

at::Tensor mean_share(const std::vector<at::Tensor>& masks, const at::Tensor& all) {
  if (masks.empty()) return all;
  at::Tensor sum = at::zeros_like(all);
  for (const at::Tensor& mask : masks) sum = sum + mask.detach().mean(1);
  return sum / static_cast<double>(masks.size());
}

}  // namespace

GateNoise draw_gate_noise(const DiTConfig& config, uint64_t seed, uint64_t step, int first, int count) {
  const int H = config.num_heads, N = config.num_tokens(), L = config.depth;
  const int width = config.width_routers ? 2 * L * (H - 1) : 0, tokens = config.token_routers ? L * N : 0;
  at::Tensor all = at::empty({count, width + tokens}, at::kFloat);
  for (int b = 0; b < count; ++b) {
    fill_uniform({all.data_ptr<float>() + b * all.stride(0), static_cast<size_t>(all.stride(0))}, seed,
                 training_sample(step, first + b), static_cast<uint64_t>(TrainingDraw::Gates));
  }
  all = at::log(all) - at::log1p(-all);  // the difference of two Gumbel variables is logistic
  GateNoise noise;
  for (int l = 0; l < L && config.width_routers; ++l) {
    noise.heads.push_back(all.slice(1, 2 * l * (H - 1), (2 * l + 1) * (H - 1)));
    noise.groups.push_back(all.slice(1, (2 * l + 1) * (H - 1), (2 * l + 2) * (H - 1)));
  }
  for (int l = 0; l < L && config.token_routers; ++l) {
    noise.tokens.push_back(all.slice(1, width + l * N, width + (l + 1) * N));
  }
  return noise;
}

at::Tensor gumbel_gate(const at::Tensor& logits, const at::Tensor& noise, GateKind kind) {
  const at::Tensor soft = at::sigmoid((logits + noise) / kGumbelTau);
  if (kind == GateKind::Soft) return soft;
  // soft - soft is exactly 0, so the forward sees exactly 0 or 1.
  return (soft.detach() > 0.5).to(at::kFloat) + (soft - soft.detach());
}

TrainingGates::TrainingGates(DiT& model, const at::Tensor& t_emb, GateNoise noise, GateKind kind,
                             const CapacityInputs& capacity, int level)
    : config_(at_level(model->config, level)),
      noise_(std::move(noise)),
      all_(at::ones({t_emb.size(0)}, t_emb.options())) {
  const bool by_capacity = capacity.share.defined();
  // Each sample's share or count of one router, (B).
  const int first_block = level * config_.depth;
  const auto of_samples = [capacity, first_block](const at::Tensor& values, int part, int block) {
    return values[part][first_block + block].index_select(0, capacity.regions);
  };
  const auto by_rank = [=](int part, int block, const at::Tensor& logits, const at::Tensor& gate_noise) {
    return capacity_gate(logits, gate_noise, of_samples(capacity.share, part, block),
                         of_samples(capacity.counts, part, block), part != PartKind::Tokens,
                         capacity.gradient);
  };
  // Training's gate of one router's logits, and what inference would open.
  const auto gate_of = [=](int part, int block, const at::Tensor& logits, const at::Tensor& gate_noise) {
    return by_capacity ? by_rank(part, block, logits, gate_noise) : gumbel_gate(logits, gate_noise, kind);
  };
  const auto open_of = [=](int part, int block, const at::Tensor& logits) {
    at::NoGradGuard no_grad;
    if (!by_capacity) return (logits > kGateThreshold).to(at::kFloat);
    return by_rank(part, block, logits, at::zeros_like(logits));
  };
  for (int l = 0; config_.width_routers && l < config_.depth; ++l) {
    const WidthLogits logits = model->blocks[l]->width_logits(t_emb);
    gates_.heads.push_back(with_first_on(gate_of(PartKind::Heads, l, logits.heads, noise_.heads[l])));
    gates_.groups.push_back(with_first_on(gate_of(PartKind::Groups, l, logits.groups, noise_.groups[l])));
    open_heads_.push_back(with_first_on(open_of(PartKind::Heads, l, logits.heads)));
    open_groups_.push_back(with_first_on(open_of(PartKind::Groups, l, logits.groups)));
  }
  if (config_.token_routers) {
    gates_.tokens = [this, gate_of, open_of](int block, const at::Tensor& logits) {
      const at::Tensor& of_tokens = noise_.tokens[block];
      tokens_.push_back(
          gate_of(PartKind::Tokens, block, logits, of_tokens.slice(1, 0, config_.num_tokens())));
      open_tokens_.push_back(open_of(PartKind::Tokens, block, logits));
      return tokens_.back();
    };
  }
}

at::Tensor TrainingGates::work_ratio(const std::vector<at::Tensor>& heads,
                                     const std::vector<at::Tensor>& groups,
                                     const std::vector<at::Tensor>& tokens) const {
  const auto attn_macs = static_cast<double>(attention_macs(config_, config_.num_heads));
  const AttentionWork attn = attention_work(config_);
  const bool whole_block = config_.token_scope == TokenScope::Block;
  const auto mlp = static_cast<double>(mlp_macs(config_, config_.num_heads, config_.num_tokens()));
  at::Tensor work = at::zeros_like(all_);
  for (int l = 0; l < config_.depth; ++l) {
    const at::Tensor head_share = heads.empty() ? all_ : heads[l].mean(1);
    const at::Tensor group_share = groups.empty() ? all_ : groups[l].mean(1);
    at::Tensor token_share = tokens.empty() ? all_ : tokens[l].mean(1);
    if (config_.extras() > 0)
      token_share = (token_share * config_.num_tokens() + config_.extras()) / config_.sequence();
    const at::Tensor of_attention =
        whole_block ? (attn.linear * token_share + attn.quadratic * token_share.square()) * head_share
                    : attn_macs * head_share;
    work = work + of_attention + mlp * group_share * token_share;
  }
  return work / (config_.depth * (attn_macs + mlp));
}

at::Tensor TrainingGates::ratio() const { return work_ratio(gates_.heads, gates_.groups, tokens_); }

at::Tensor TrainingGates::inference_ratio() const {
  return work_ratio(open_heads_, open_groups_, open_tokens_);
}

TrainingGates::Kept TrainingGates::kept() const {
  return {mean_share(gates_.heads, all_), mean_share(gates_.groups, all_), mean_share(tokens_, all_)};
}

at::Tensor flops_loss(const at::Tensor& mean_ratio, double target) {
  return 2.0 * (mean_ratio - target).square();
}

}  // namespace dydit
