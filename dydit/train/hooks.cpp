// Formulas first, then one class a loss, which puts its weight, its head and what it reads around one of
// them.
#include "dydit/train/hooks.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>
#include <torch/torch.h>

#include "dydit/base/error.h"
#include "dydit/base/noise.h"
#include "dydit/diffusion/losses.h"
#include "dydit/diffusion/path.h"
#include "dydit/model/ops.h"
#include "dydit/model/recipe.h"

namespace dydit {
namespace {

using torch::nn::Module;

constexpr double kSelfBeta = 0.05;          // of the smooth L1 (SRA)
constexpr double kProjectorNormEps = 1e-5;  // torch's LayerNorm
constexpr double kLeastNorm = 1e-12;        // below it a token has no direction

at::Tensor mean_flat(const at::Tensor& x) { return x.flatten(1).mean(1); }

// x (..., D), each row divided by its length.
at::Tensor normalized(const at::Tensor& x) {
  return x / at::linalg_vector_norm(x, 2, {-1}, /*keepdim=*/true).clamp_min(kLeastNorm);
}

// Cosines of all pairs of rows. x (..., M, D) -> (..., M, M)
at::Tensor cosines(const at::Tensor& x) {
  const at::Tensor unit = normalized(x);
  return at::matmul(unit, unit.transpose(-2, -1));
}

// What block `index` put out for the patches.
at::Tensor patches_after(int index, const HookInputs& from, int extras) {
  return from.taps.outputs.at(index).slice(1, extras);
}

class Dispersive final : public LossHook {
 public:
  Dispersive(const HookOptions& options, const DiTConfig& config)
      : block_(options.block - 1),
        extras_(config.extras()),
        tau_(options.tau),
        weight_(options.align_weight()) {}

  void ask(Taps& taps) const override { taps.blocks.insert(block_); }
  at::Tensor loss(const HookInputs& from) override {
    return (weight_ * dispersive_loss(patches_after(block_, from, extras_), tau_))
        .expand({from.inputs.x0.size(0)});
  }

 private:
  const int block_, extras_;
  const double tau_, weight_;
};

class SelfAlignment final : public LossHook {
 public:
  SelfAlignment(const HookOptions& options, const DiT& model, Module& root)
      : block_(options.block - 1),
        teacher_block_(options.teacher_block - 1),
        weight_(options.align_weight()),
        extras_(model->config.extras()),
        dtype_(model->compute_dtype) {
    const int C = model->config.hidden_size;
    head_ = root.register_module("self", HookHead(HookHeadImpl::Kind::Self, C, 2 * C, C));
  }

  void ask(Taps& taps) const override { taps.blocks.insert(block_); }
  at::Tensor loss(const HookInputs& from) override {
    const at::Tensor h = head_->forward(patches_after(block_, from, extras_), dtype_);
    return weight_ * self_loss(h, target(from));
  }

 private:
  at::Tensor target(const HookInputs& from) {
    const at::NoGradGuard no_grad;
    DiT teacher = from.teacher;
    const StepInputs& inputs = from.inputs;
    const at::Tensor& t = inputs.t_teacher;
    Taps taps{.blocks = {teacher_block_}, .ends_there = true};
    teacher->forward(q_sample(inputs.x0, t, inputs.noise, teacher->config.objective),
                     teacher->embed_timestep(t), from.y, {}, /*level=*/0, &taps);
    return taps.outputs.at(teacher_block_).slice(1, extras_);
  }

  const int block_, teacher_block_;
  const double weight_;
  const int extras_;
  const at::ScalarType dtype_;
  HookHead head_{nullptr};
};

class EncoderAlignment final : public LossHook {
 public:
  EncoderAlignment(const HookOptions& options, const DiTConfig& config, Module& root)
      : block_(options.block - 1),
        extras_(config.extras()),
        grid_(std::min(config.grid(), options.encoder.grid)),
        options_(options) {
    auto projector = root.register_module("encoder", std::make_shared<Module>());
    norm_ = projector->register_module("norm", Affine(config.hidden_size));
    linear_ = projector->register_module("linear", Linear(config.hidden_size, options.encoder.channels));
  }

  void ask(Taps& taps) const override { taps.blocks.insert(block_); }
  at::Tensor loss(const HookInputs& from) override {
    const at::Tensor h = patches_after(block_, from, extras_);
    // Not at::layer_norm: its gradient's sums depend on the number of threads.
    const auto of_each = [&](const at::Tensor& row) { return row.expand({h.size(0), row.size(0)}); };
    const at::Tensor normed = layer_norm_modulate(h, of_each(norm_->bias), of_each(norm_->weight - 1.0),
                                                  at::kFloat, kProjectorNormEps);
    return encoder_loss(resize_tokens(linear_->forward(normed), grid_), target(from.inputs.x0), options_);
  }

 private:
  at::Tensor target(const at::Tensor& x0) const {
    const at::NoGradGuard no_grad;
    return resize_tokens(options_.encoder.features(x0.cpu()).to(x0.device()), grid_);
  }

  const int block_, extras_, grid_;
  const HookOptions options_;
  Affine norm_{nullptr};
  Linear linear_{nullptr};
};

// PLR of Expert Race, for blocks without experts: the first layer stands in the place of their router's.
class PerLayer final : public LossHook {
 public:
  PerLayer(const HookOptions& options, const DiT& model, Module& root)
      : config_(model->config), weight_(options.plr), dtype_(model->compute_dtype) {
    auto list = root.register_module("plr", std::make_shared<Module>());
    const int C = config_.hidden_size, out = config_.patch_values();
    for (int l = 0; l < config_.depth; ++l)
      heads_.push_back(
          list->register_module(std::to_string(l), HookHead(HookHeadImpl::Kind::Layer, C, C, out)));
  }

  void ask(Taps& taps) const override { taps.asks_mlp_inputs = true; }
  at::Tensor loss(const HookInputs& from) override {
    const StepInputs& inputs = from.inputs;
    const at::Tensor target =
        to_patches(loss_target(inputs.x0, inputs.t, inputs.noise, config_.objective), config_.patch_size);
    at::Tensor sum;
    for (size_t l = 0; l < heads_.size(); ++l) {
      const at::Tensor x = from.taps.mlp_inputs.at(l).slice(1, config_.extras());
      const at::Tensor error = layer_loss(heads_[l]->forward(x, dtype_), target);
      sum = sum.defined() ? sum + error : error;
    }
    return sum * (weight_ / static_cast<double>(heads_.size()));
  }

 private:
  const DiTConfig config_;
  const double weight_;
  const at::ScalarType dtype_;
  std::vector<HookHead> heads_;
};

// As DiT's layers begin: matrices uniform by Xavier's bound, norms the identity, other vectors 0.
void initialize(Module& root, uint64_t seed) {
  const at::NoGradGuard no_grad;
  for (auto& parameter : root.named_parameters()) {
    at::Tensor& value = parameter.value();
    if (value.dim() == 1) {
      value.fill_(parameter.key().ends_with("norm.weight") ? 1 : 0);
      continue;
    }
    fill_uniform({value.data_ptr<float>(), static_cast<size_t>(value.numel())}, seed,
                 fnv1a("hooks." + parameter.key()), static_cast<uint64_t>(TrainingDraw::HookWeights));
    const double bound = std::sqrt(6.0 / static_cast<double>(value.size(0) + value.size(1)));
    value.mul_(2 * bound).sub_(bound);
  }
}

// The first step whose loss has no hook, of a run of `steps`.
int64_t first_free_step(const HookOptions& options, int64_t steps) {
  return options.plr == 0 && options.until > 0 ? std::min(options.until, steps) : steps;
}

}  // namespace

at::Tensor cosine_loss(const at::Tensor& z, const at::Tensor& y) {
  return -(normalized(z) * normalized(y)).sum(2).mean(1);
}

at::Tensor manifold_intra(const at::Tensor& z, const at::Tensor& y) {
  return mean_flat((cosines(z) - cosines(y)).square());
}

at::Tensor manifold_inter(const at::Tensor& z, const at::Tensor& y) {
  return (cosines(z.mean(1)) - cosines(y.mean(1))).square().mean();
}

at::Tensor encoder_loss(const at::Tensor& z, const at::Tensor& y, const HookOptions& options) {
  at::Tensor sum = cosine_loss(z, y);
  if (options.manifold > 0) sum = sum + options.manifold * manifold_intra(z, y);
  if (options.manifold_inter > 0) sum = sum + options.manifold_inter * manifold_inter(z, y);
  return options.align_weight() * sum;
}

at::Tensor dispersive_loss(const at::Tensor& z, double tau) {
  const at::Tensor flat = z.flatten(1);
  // Distances are differences of products; about the mean little is lost in them.
  const at::Tensor centered = flat - flat.detach().mean(0, /*keepdim=*/true);
  const at::Tensor products = at::matmul(centered, centered.t()), squares = products.diagonal();
  const at::Tensor distances = squares.unsqueeze(0) + squares.unsqueeze(1) - 2 * products;
  const at::Tensor exponents = distances * (-1.0 / (static_cast<double>(flat.size(1)) * tau));
  return at::logsumexp(exponents.flatten(), {0}) - std::log(static_cast<double>(exponents.numel()));
}

at::Tensor self_loss(const at::Tensor& prediction, const at::Tensor& target) {
  return mean_flat(at::smooth_l1_loss(prediction, target, at::Reduction::None, kSelfBeta));
}

at::Tensor layer_loss(const at::Tensor& prediction, const at::Tensor& target) {
  return mean_flat((prediction - target).square());
}

double teacher_time(const Objective& objective, double time, double lag) {
  if (!objective.continuous()) return std::clamp(time - std::floor(lag), 1.0, last_time(objective));
  const ShareInterval shares = training_shares(objective);
  const double share = noise_share(objective, time) - lag / kNumTrainTimesteps;
  return time_at(objective, std::clamp(share, shares.least, shares.most));
}

at::Tensor to_patches(const at::Tensor& image, int patch) {
  const int64_t B = image.size(0), c = image.size(1), g = image.size(2) / patch;
  return image.reshape({B, c, g, patch, g, patch})
      .permute({0, 2, 4, 3, 5, 1})
      .reshape({B, g * g, patch * patch * c});
}

at::Tensor resize_tokens(const at::Tensor& tokens, int grid) {
  const int64_t B = tokens.size(0), D = tokens.size(2),
                from = std::lround(std::sqrt(static_cast<double>(tokens.size(1))));
  if (from == grid) return tokens;
  const at::Tensor map = tokens.transpose(1, 2).reshape({B, D, from, from});
  return at::upsample_bilinear2d(map, {grid, grid}, /*align_corners=*/false).flatten(2).transpose(1, 2);
}

HookHeadImpl::HookHeadImpl(Kind kind, int in, int hidden, int out) : kind(kind) {
  first = register_module(kind == Kind::Self ? "linear1" : "0", Linear(in, hidden));
  second = register_module(kind == Kind::Self ? "linear2" : "2", Linear(hidden, out));
}

at::Tensor HookHeadImpl::forward(const at::Tensor& x, at::ScalarType dtype) {
  const at::Tensor hidden = first->forward(x, dtype);
  return second->forward(kind == Kind::Self ? at::silu(hidden) : gated_gelu(hidden, {}, GeluForm::Erf));
}

Hooks::Hooks(const HookOptions& options, DiT& model, uint64_t seed) : options_(options) {
  auto root = model->register_module("hooks", std::make_shared<Module>());
  switch (options.align) {
    case Align::None:
      break;
    case Align::Self:
      hooks_.push_back(std::make_unique<SelfAlignment>(options, model, *root));
      break;
    case Align::Encoder:
      hooks_.push_back(std::make_unique<EncoderAlignment>(options, model->config, *root));
      break;
    case Align::Dispersive:
      hooks_.push_back(std::make_unique<Dispersive>(options, model->config));
      break;
  }
  if (options.plr > 0) hooks_.push_back(std::make_unique<PerLayer>(options, model, *root));
  initialize(*root, seed);
  root->to(model->pos_embed.device());
}

bool Hooks::is_on(size_t hook, uint64_t step) const {
  const bool aligns = hook == 0 && options_.align != Align::None;
  return !aligns || options_.aligns_at(static_cast<int64_t>(step));
}

std::optional<Taps> Hooks::taps(uint64_t step) const {
  std::optional<Taps> taps;
  for (size_t i = 0; i < hooks_.size(); ++i) {
    if (!is_on(i, step)) continue;
    if (!taps) taps.emplace();
    hooks_[i]->ask(*taps);
  }
  return taps;
}

at::Tensor Hooks::loss(const StepInputs& inputs, const at::Tensor& y, const Taps& taps, uint64_t step,
                       std::span<double, kMostHooks> sums) {
  at::Tensor sum;
  for (size_t i = 0; i < hooks_.size(); ++i) {
    if (!is_on(i, step)) continue;
    const at::Tensor loss = hooks_[i]->loss({inputs, y, taps, teacher_});
    sums[i] += loss.detach().sum(at::kDouble).item<double>();
    sum = sum.defined() ? sum + loss : loss;
  }
  return sum;
}

void check_hooks(const Dataset& data, const DiTConfig& config, const TrainOptions& options, int processes) {
  const HookOptions& hooks = options.hooks;
  if (!hooks.any()) return;
  const auto check_block = [&](const char* flag, int block) {
    DYDIT_USAGE_CHECK(block <= config.depth, "{} {}: the model has {} blocks", flag, block, config.depth);
  };
  if (hooks.align != Align::None) check_block("--align-block", hooks.block);
  if (hooks.align == Align::Self) check_block("--align-teacher-block", hooks.teacher_block);
  DYDIT_USAGE_CHECK(config.levels() == 1,
                    "{}: is for models of one patch size, this one has {}; train without it",
                    hooks.align != Align::None ? "--align" : "--plr", config.levels());
  DYDIT_USAGE_CHECK(!hooks.couples_samples() || (processes == 1 && options.accumulate == 1),
                    "{}: compares all images of a batch, which {} process(es) x {} micro-batches would cut; "
                    "take one process "
                    "and --accumulate 1",
                    hooks.align == Align::Dispersive ? "--align dispersive" : "--align-manifold-inter",
                    processes, options.accumulate);
  if (hooks.align == Align::Encoder) {
    const int side = hooks.encoder.side;
    DYDIT_USAGE_CHECK(!data.latents() && data.channels() == 3 && data.side() == side,
                      "--align-encoder: takes RGB images of {}x{} pixels, and these are {} of {}x{} with {} "
                      "channels; align to self instead",
                      side, side, data.latents() ? "latents" : "images", data.side(), data.side(),
                      data.channels());
  }
  const int64_t steps = first_free_step(hooks, options.total_steps);
  DYDIT_USAGE_CHECK(
      !options.dynamic || options.router.complete_steps >= steps,
      "--complete-steps {}: {} sees the complete model alone, which must be trained for as long, "
      "here {} steps",
      options.router.complete_steps, hooks.align != Align::None ? "--align" : "--plr", steps);
}

}  // namespace dydit
