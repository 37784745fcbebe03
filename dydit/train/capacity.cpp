// Small numbers throughout: 12 L shares, of four regions, and as many counts.
#include "dydit/train/capacity.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include <ATen/ATen.h>

#include "dydit/model/dit.h"
#include "dydit/model/macs.h"
#include "dydit/train/gates.h"

namespace dydit {
namespace {

constexpr int kKinds = 3;

int part_count(const DiTConfig& config, int kind) {
  return kind == PartKind::Tokens ? config.num_tokens() : config.num_heads;
}

bool is_routed(const DiTConfig& config, int kind) {
  return kind == PartKind::Tokens ? config.token_routers : config.width_routers;
}

// A level of patch sizes, and the regions of t that it is trained in: its work is counted over these.
struct LevelOf {
  DiTConfig config;
  std::vector<uint8_t> trained;  // of each region

  LevelOf(const DiTConfig& whole, int level, int64_t regions)
      : config(at_level(whole, level)), trained(regions, !levels_share_time(whole)) {
    for (int t = 0; t < kNumTrainTimesteps; ++t)
      trained[t * regions / kNumTrainTimesteps] |= level_at_thousandth(whole, t) == level;
  }
  int regions() const { return static_cast<int>(trained.size()); }
  int regions_trained() const { return static_cast<int>(std::count(trained.begin(), trained.end(), 1)); }
};

// A level's shares or counts (3, L, R) of those of all (3, levels L, R); a view.
at::Tensor of_level(const DiTConfig& config, const at::Tensor& all, int level) {
  return all.slice(1, level * config.depth, (level + 1) * config.depth);
}

// Work ratio when share_of(kind, block, quarter) of the parts are on; kinds without routers are wholly on.
template <typename Fn>
double work_ratio(const LevelOf& level, const Fn& share_of) {
  const DiTConfig& config = level.config;
  const auto attn = static_cast<double>(attention_macs(config, config.num_heads));
  const auto mlp = static_cast<double>(mlp_macs(config, config.num_heads, config.num_tokens()));
  const bool whole_block = config.token_scope == TokenScope::Block;
  const auto share = [&](int kind, int l, int q) {
    return is_routed(config, kind) ? share_of(kind, l, q) : 1.0;
  };
  double work = 0;
  for (int l = 0; l < config.depth; ++l) {
    for (int q = 0; q < level.regions(); ++q) {
      if (!level.trained[q]) continue;
      const double entering = config.entering_share(share(PartKind::Tokens, l, q));
      work += (whole_block ? attention_work(config).of(entering) : attn) * share(PartKind::Heads, l, q) +
              mlp * share(PartKind::Groups, l, q) * entering;
    }
  }
  return work / (config.depth * (attn + mlp) * level.regions_trained());
}

// Whole counts near the wanted ones whose work meets a target. Part i is kind, block and quarter in row-major
// order.
class CountSearch {
 public:
  CountSearch(const LevelOf& level, const at::Tensor& share, double target)
      : level_(level),
        tolerance_(kCountTolerance * target),
        regions_(level.regions()),
        stride_(level.config.depth * regions_) {
    const DiTConfig& config = config_;
    const at::Tensor values = share.detach().cpu().contiguous();
    for (int i = 0; i < kKinds * stride_; ++i) {
      const int count = part_count(config, i / stride_);
      wanted_.push_back(values.data_ptr<float>()[i] * static_cast<double>(count));
      counts_.push_back(
          is_routed(config, i / stride_)
              ? std::clamp(static_cast<int64_t>(std::llround(wanted_[i])), int64_t{1}, int64_t{count})
              : count);
    }
    const auto on = [&](int kind, int l, int q) { return share_on(kind * stride_ + l * regions_ + q); };
    error_ = work_ratio(level, on) - target;
  }

  at::Tensor run() {
    while (std::abs(error_) > tolerance_ && (move_one() || move_two())) {
    }
    return at::tensor(counts_, at::kLong).view({kKinds, config_.depth, regions_});
  }

 private:
  double share_on(int i) const { return static_cast<double>(counts_[i]) / part_count(config_, i / stride_); }

  bool can_move(int i, int by) const {
    const int kind = i / stride_;
    return level_.trained[i % regions_] && is_routed(config_, kind) && counts_[i] + by >= 1 &&
           counts_[i] + by <= part_count(config_, kind);
  }

  // Change of the work ratio by so many more of part i.
  double change(int i, int by) const {
    if (config_.token_scope == TokenScope::Mlp) return by * slope(i);
    const double parts = part_count(config_, i / stride_);
    return (block_work(i, by / parts) - block_work(i, 0)) * each_block();
  }

  // Of the block and region of part i, with `more` of its share on; tokens go through the whole block.
  double block_work(int i, double more) const {
    const int place = i % stride_;
    const auto on = [&](int kind) {
      return share_on(kind * stride_ + place) + (i / stride_ == kind ? more : 0);
    };
    const auto mlp = static_cast<double>(mlp_macs(config_, config_.num_heads, config_.num_tokens()));
    const double entering = config_.entering_share(on(PartKind::Tokens));
    return attention_work(config_).of(entering) * on(PartKind::Heads) + mlp * entering * on(PartKind::Groups);
  }

  // What a block's whole work in one region is of all.
  double each_block() const {
    const auto attn = static_cast<double>(attention_macs(config_, config_.num_heads));
    const auto mlp = static_cast<double>(mlp_macs(config_, config_.num_heads, config_.num_tokens()));
    return 1.0 / (config_.depth * level_.regions_trained() * (attn + mlp));
  }

  // Change of the work ratio by one more of part i, where each part's is its own.
  double slope(int i) const {
    const int kind = i / stride_, place = i % stride_;
    const auto attn = static_cast<double>(attention_macs(config_, config_.num_heads));
    const auto mlp = static_cast<double>(mlp_macs(config_, config_.num_heads, config_.num_tokens()));
    const double each =
        1.0 / (part_count(config_, kind) * config_.depth * level_.regions_trained() * (attn + mlp));
    if (kind == PartKind::Heads) return attn * each;
    if (kind == PartKind::Groups)
      return mlp * each * config_.entering_share(share_on(PartKind::Tokens * stride_ + place));
    const double of_all = config_.entering_share(1) - config_.entering_share(0);
    return mlp * each * of_all * share_on(PartKind::Groups * stride_ + place);
  }

  void move(int i, int by) {
    error_ += change(i, by);
    counts_[i] += by;
  }

  // Of the moves that bring the work nearer, the one that rounding was closest to.
  bool move_one() {
    const int by = error_ > 0 ? -1 : 1;
    int best = -1;
    double least = 0;
    for (int i = 0; i < kKinds * stride_; ++i) {
      if (!can_move(i, by) || std::abs(error_ + change(i, by)) >= std::abs(error_)) continue;
      const auto k = static_cast<double>(counts_[i]);
      const double penalty = std::abs(k + by - wanted_[i]) - std::abs(k - wanted_[i]);
      if (best >= 0 && penalty >= least) continue;
      best = i;
      least = penalty;
    }
    if (best >= 0) move(best, by);
    return best >= 0;
  }

  // Two parts, each by one or two either way: those that come nearest. Two kinds of one MLP are left out,
  // since their slopes are each other's.
  bool move_two() {
    struct Move {
      int i, by;
      double change;
    };
    std::vector<Move> moves;
    for (int i = 0; i < kKinds * stride_; ++i) {
      for (const int by : {-2, -1, 1, 2}) {
        if (can_move(i, by)) moves.push_back({i, by, change(i, by)});
      }
    }
    double least = std::abs(error_) * (1 - 1e-9);  // rounding is no progress
    Move first{}, second{};
    for (const Move& a : moves) {
      for (const Move& b : moves) {
        if (a.i % stride_ == b.i % stride_ || std::abs(error_ + a.change + b.change) >= least) continue;
        least = std::abs(error_ + a.change + b.change);
        first = a;
        second = b;
      }
    }
    if (first.by == 0) return false;
    move(first.i, first.by);
    move(second.i, second.by);
    return true;
  }

  const LevelOf& level_;
  const DiTConfig& config_ = level_.config;
  const double tolerance_;
  const int regions_, stride_;  // parts of a kind: L x regions
  std::vector<double> wanted_;  // share * count
  std::vector<int64_t> counts_;
  double error_;  // work ratio of counts_ - target
};

// d work ratio / d share, with shares instead of rounded counts, (3, L, R).
at::Tensor work_slope(const LevelOf& level, const at::Tensor& share) {
  const DiTConfig& config = level.config;
  const auto attn = static_cast<double>(attention_macs(config, config.num_heads));
  const auto mlp = static_cast<double>(mlp_macs(config, config.num_heads, config.num_tokens()));
  const double scale = 1.0 / (config.depth * (attn + mlp) * level.regions_trained());
  const at::Tensor groups = config.width_routers ? share[1] : at::ones_like(share[1]);
  const at::Tensor tokens = config.token_routers ? share[2] : at::ones_like(share[2]);
  at::Tensor slope = at::zeros_like(share);
  if (config.token_scope == TokenScope::Block) {
    const AttentionWork work = attention_work(config);
    const at::Tensor heads = config.width_routers ? share[0] : at::ones_like(share[0]);
    const double in_front = config.entering_share(0), of_patches = config.entering_share(1) - in_front;
    const at::Tensor entering = tokens * of_patches + in_front;
    if (config.width_routers) {
      slope[0].copy_((entering * work.linear + entering.square() * work.quadratic) * scale);
      slope[1].copy_(entering * (mlp * scale));
    }
    slope[2].copy_((heads * (entering * (2 * work.quadratic) + work.linear) + groups * mlp) *
                   (of_patches * scale));
  } else if (config.width_routers) {
    slope[0].fill_(attn * scale);
    const double in_front = config.entering_share(0), of_patches = config.entering_share(1) - in_front;
    slope[1].copy_((in_front > 0 ? tokens * of_patches + in_front : tokens) * (mlp * scale));
  }
  if (config.token_routers && config.token_scope == TokenScope::Mlp)
    slope[2].copy_(groups * (mlp * scale * (config.entering_share(1) - config.entering_share(0))));
  for (int q = 0; q < level.regions(); ++q) {
    if (!level.trained[q]) slope.select(2, q).zero_();
  }
  return slope;
}

// Logits about their mean, their spread over the parts held to kLogitSpread. Their order alone decides, so
// nothing else keeps all of them from drifting one way or apart; the routers' weights would grow with them,
// and with those the gradient that tokens get through their logits.
at::Tensor balance(const at::Tensor& logits) {
  const at::Tensor centred = logits - logits.mean(1, /*keepdim=*/true);
  const at::Tensor spread = at::sqrt(centred.square().mean(1, /*keepdim=*/true) + 1e-12);
  return centred / (spread / kLogitSpread).clamp_min(1.0);
}

// Shares (3, L, R) on the CPU, in place.
void scale_level(const LevelOf& level, const at::Tensor& share, double target) {
  const DiTConfig& config = level.config;
  auto value = share.accessor<float, 3>();
  const auto scaled = [&](int kind, int l, int q, double factor) {
    return std::clamp(value[kind][l][q] * factor, 1.0 / part_count(config, kind), 1.0);
  };
  const auto ratio_of = [&](double factor) {
    return work_ratio(level, [&](int kind, int l, int q) { return scaled(kind, l, q, factor); });
  };
  double low = 0, high = 1;
  while (ratio_of(high) < target && high < 1e6) high *= 2;
  for (int i = 0; i < 60; ++i) {
    const double middle = 0.5 * (low + high);
    (ratio_of(middle) < target ? low : high) = middle;
  }
  for (int kind = 0; kind < kKinds; ++kind) {
    for (int l = 0; l < config.depth; ++l) {
      for (int q = 0; q < level.regions(); ++q)
        value[kind][l][q] = static_cast<float>(scaled(kind, l, q, high));
    }
  }
}

// What one more part is worth, by the parts whose rank lies between the counts of half a bin less and more,
// in equal weights (DiffCR's finite difference: its bins are a tenth apart). Of few parts the interval is one
// wide. rank (B, M) of the M that are not `forced`; wanted (B) parts, those included -> (B, M)
at::Tensor interval_weights(const at::Tensor& rank, const at::Tensor& wanted, int64_t forced) {
  constexpr double kHalfBin = 0.05;
  const int64_t M = rank.size(1);
  const double half = kHalfBin * static_cast<double>(M + forced);
  const auto count = [&](double by) { return at::round(wanted + by).sub(forced).unsqueeze(1); };
  const at::Tensor low = count(-half).clamp(0, M - 1), high = at::maximum(count(half).clamp(0, M), low + 1);
  return (rank >= low).logical_and(rank < high).to(at::kFloat) / (high - low);
}

}  // namespace

at::Tensor keep_share(DiT& model) {
  auto own = model->named_parameters(/*recurse=*/false);
  const at::Tensor* share = own.find(kKeepShareName);
  return share ? *share : at::Tensor();
}

at::Tensor choose_counts(const DiTConfig& config, const at::Tensor& share, double target) {
  std::vector<at::Tensor> counts;
  for (int level = 0; level < config.levels(); ++level)
    counts.push_back(
        CountSearch(LevelOf(config, level, share.size(2)), of_level(config, share, level), target).run());
  return at::cat(counts, 1);
}

KeepCounts keep_counts(const DiTConfig& config, const at::Tensor& counts) {
  KeepCounts result;
  std::vector<KeepCounts::PerRegion>* kinds[kKinds] = {&result.heads, &result.groups, &result.tokens};
  const auto count = counts.accessor<int64_t, 3>();
  for (int kind = 0; kind < kKinds; ++kind) {
    for (int l = 0; is_routed(config, kind) && l < config.levels() * config.depth; ++l) {
      auto& regions = kinds[kind]->emplace_back();
      for (int64_t q = 0; q < counts.size(2); ++q) regions.push_back(static_cast<int>(count[kind][l][q]));
    }
  }
  return result;
}

void project_share_gradient(const DiTConfig& config, const at::Tensor& share, at::Tensor& gradient) {
  at::NoGradGuard no_grad;
  for (int level = 0; level < config.levels(); ++level) {
    const at::Tensor slope = work_slope(LevelOf(config, level, share.size(2)),
                                        of_level(config, share.detach(), level)),
                     own = of_level(config, gradient, level);
    const double length = slope.square().sum().item<double>();
    if (length > 0) own.sub_(slope * ((own * slope).sum().item<double>() / length));
  }
}

void scale_shares(const DiTConfig& config, at::Tensor& share, double target) {
  at::NoGradGuard no_grad;
  if (target >= 1) {
    share.fill_(1);
    return;
  }
  const at::Tensor host = share.detach().cpu();  // on the CPU the shares themselves
  for (int level = 0; level < config.levels(); ++level)
    scale_level(LevelOf(config, level, share.size(2)), of_level(config, host, level), target);
  if (!share.is_cpu()) share.copy_(host);
}

at::Tensor capacity_gate(const at::Tensor& logits, const at::Tensor& noise, const at::Tensor& share,
                         const at::Tensor& counts, bool first_on, ShareGradient gradient) {
  const int64_t M = logits.size(1), forced = first_on ? 1 : 0;
  if (M == 0) return logits;
  const at::Tensor wanted = share * static_cast<double>(M + forced);  // (B), differentiable
  const at::Tensor keep = (counts - forced).unsqueeze(1);             // (B, 1), of the M
  const at::Tensor z = balance(logits) + noise;
  const at::Tensor order = at::argsort(z.detach(), /*stable=*/true, /*dim=*/1, /*descending=*/true);
  const at::Tensor rank = at::argsort(order, /*stable=*/true, /*dim=*/1, /*descending=*/false);
  const at::Tensor last = (keep - 1).clamp_min(0);  // rank of the boundary
  const at::Tensor boundary = z.detach().gather(1, order.gather(1, last));
  const at::Tensor soft = at::sigmoid((z - boundary) / kGumbelTau);
  const at::Tensor hard = (rank < keep).to(at::kFloat);
  const at::Tensor of_share = gradient == ShareGradient::Boundary
                                  ? (rank == keep).to(at::kFloat)
                                  : interval_weights(rank, wanted.detach(), forced);
  return hard + (soft - soft.detach()) + of_share * (wanted - wanted.detach()).unsqueeze(1);
}

}  // namespace dydit
