// Small tensors throughout: 12 L shares.
#include "dydit/train/capacity.h"

#include <algorithm>
#include <cmath>

#include <ATen/ATen.h>

#include "dydit/model/dit.h"
#include "dydit/model/macs.h"
#include "dydit/train/gates.h"

namespace dydit {
namespace {

constexpr int kKinds = 3;

int part_count(const DiTConfig& config, int kind) {
  return kind == static_cast<int>(PartKind::Tokens) ? config.num_tokens() : config.num_heads;
}

bool is_routed(const DiTConfig& config, int kind) {
  return kind == static_cast<int>(PartKind::Tokens) ? config.token_routers : config.width_routers;
}

int keep_count(float share, int count) {
  return std::clamp(static_cast<int>(std::lround(share * static_cast<float>(count))), 1, count);
}

// d keep_ratio / d share, with shares instead of rounded counts, (3, L, 4).
at::Tensor work_slope(const DiTConfig& config, const at::Tensor& share) {
  const auto attn = static_cast<double>(attention_macs(config, config.num_heads));
  const auto mlp = static_cast<double>(mlp_macs(config, config.num_heads, config.num_tokens()));
  const double scale = 1.0 / (config.depth * (attn + mlp) * kQuarters);
  const at::Tensor groups = config.width_routers ? share[1] : at::ones_like(share[1]);
  const at::Tensor tokens = config.token_routers ? share[2] : at::ones_like(share[2]);
  at::Tensor slope = at::zeros_like(share);
  if (config.width_routers) {
    slope[0].fill_(attn * scale);
    slope[1].copy_(tokens * (mlp * scale));
  }
  if (config.token_routers) slope[2].copy_(groups * (mlp * scale));
  return slope;
}

}  // namespace

at::Tensor keep_share(DiT& model) {
  auto own = model->named_parameters(/*recurse=*/false);
  const at::Tensor* share = own.find(kKeepShareName);
  return share ? *share : at::Tensor();
}

KeepCounts keep_counts(const DiTConfig& config, const at::Tensor& share) {
  KeepCounts counts;
  std::vector<KeepCounts::PerQuarter>* kinds[kKinds] = {&counts.heads, &counts.groups, &counts.tokens};
  const at::Tensor values = share.detach().contiguous();
  const float* value = values.data_ptr<float>();
  for (int kind = 0; kind < kKinds; ++kind) {
    for (int l = 0; l < config.depth; ++l, value += kQuarters) {
      if (!is_routed(config, kind)) continue;
      KeepCounts::PerQuarter quarters{};
      for (int q = 0; q < kQuarters; ++q) quarters[q] = keep_count(value[q], part_count(config, kind));
      kinds[kind]->push_back(quarters);
    }
  }
  return counts;
}

double keep_ratio(const DiTConfig& config, const KeepCounts& counts) {
  const auto attn = static_cast<double>(attention_macs(config, config.num_heads));
  const auto mlp = static_cast<double>(mlp_macs(config, config.num_heads, config.num_tokens()));
  double work = 0;
  for (int l = 0; l < config.depth; ++l) {
    for (int q = 0; q < kQuarters; ++q) {
      const double heads =
          config.width_routers ? static_cast<double>(counts.heads[l][q]) / config.num_heads : 1.0;
      const double groups =
          config.width_routers ? static_cast<double>(counts.groups[l][q]) / config.num_heads : 1.0;
      const double tokens =
          config.token_routers ? static_cast<double>(counts.tokens[l][q]) / config.num_tokens() : 1.0;
      work += attn * heads + mlp * groups * tokens;
    }
  }
  return work / (config.depth * (attn + mlp) * kQuarters);
}

void project_share_gradient(const DiTConfig& config, const at::Tensor& share, at::Tensor& gradient) {
  at::NoGradGuard no_grad;
  const at::Tensor slope = work_slope(config, share.detach());
  const double length = slope.square().sum().item<double>();
  if (length > 0) gradient.sub_(slope * ((gradient * slope).sum().item<double>() / length));
}

void scale_shares(const DiTConfig& config, at::Tensor& share, double target) {
  at::NoGradGuard no_grad;
  at::Tensor smallest = at::empty_like(share);
  for (int kind = 0; kind < kKinds; ++kind) smallest[kind].fill_(1.0 / part_count(config, kind));
  const auto scaled = [&](double factor) {
    return at::minimum(at::maximum(share * factor, smallest), at::ones_like(share));
  };
  if (target >= 1) {
    share.fill_(1);
    return;
  }
  // keep_ratio grows with the factor in small steps; bisection ends at the step nearest the target.
  double low = 0, high = 1;
  while (keep_ratio(config, keep_counts(config, scaled(high))) < target && high < 1e6) high *= 2;
  for (int i = 0; i < 60; ++i) {
    const double middle = 0.5 * (low + high);
    (keep_ratio(config, keep_counts(config, scaled(middle))) < target ? low : high) = middle;
  }
  const auto distance = [&](double factor) {
    return std::abs(keep_ratio(config, keep_counts(config, scaled(factor))) - target);
  };
  share.copy_(scaled(distance(low) < distance(high) ? low : high));
}

at::Tensor capacity_gate(const at::Tensor& logits, const at::Tensor& noise, const at::Tensor& share,
                         bool first_on) {
  const int64_t M = logits.size(1), forced = first_on ? 1 : 0;
  if (M == 0) return logits;
  const at::Tensor wanted = share * static_cast<double>(M + forced);  // (B), differentiable
  const at::Tensor keep =
      (at::round(wanted.detach()).clamp(1, M + forced).to(at::kLong) - forced).unsqueeze(1);
  const at::Tensor z = logits + noise;
  const at::Tensor order = at::argsort(z.detach(), /*stable=*/true, /*dim=*/1, /*descending=*/true);
  const at::Tensor rank = at::argsort(order, /*stable=*/true, /*dim=*/1, /*descending=*/false);
  const at::Tensor last = (keep - 1).clamp_min(0);  // rank of the boundary
  const at::Tensor boundary = z.detach().gather(1, order.gather(1, last));
  const at::Tensor soft = at::sigmoid((z - boundary) / kGumbelTau);
  const at::Tensor hard = (rank < keep).to(at::kFloat), at_boundary = (rank == keep - 1).to(at::kFloat);
  return hard + (soft - soft.detach()) + at_boundary * (wanted - wanted.detach()).unsqueeze(1);
}

}  // namespace dydit
