// The FLOPs term is quadratic in a mean over the global batch, so that mean must be known before any
// backward: then its gradient is a constant times the gradient of each sample's ratio.
#include "dydit/train/step.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include <ATen/Parallel.h>
#include <torch/torch.h>

#include "dydit/base/noise.h"
#include "dydit/diffusion/consistency.h"
#include "dydit/diffusion/losses.h"
#include "dydit/model/dit.h"
#include "dydit/model/macs.h"
#include "dydit/plan/run_plan.h"
#include "dydit/train/capacity.h"
#include "dydit/train/distill.h"
#include "dydit/train/hooks.h"
#include "dydit/train/state.h"

namespace dydit {
namespace {

float uniform(uint64_t seed, uint64_t step, int index, TrainingDraw draw) {
  float value = 0;
  fill_uniform({&value, 1}, seed, training_sample(step, index), static_cast<uint64_t>(draw));
  return value;
}

at::Tensor drop_labels(const at::Tensor& labels, const DiTConfig& config, const TrainOptions& options,
                       uint64_t step, int first, TrainingDraw draw) {
  if (config.num_classes == 0) return at::zeros_like(labels);
  at::Tensor dropped = labels.clone();
  for (int64_t b = 0; config.has_null_class && b < labels.size(0); ++b) {
    if (uniform(options.seed, step, first + static_cast<int>(b), draw) < options.label_dropout) {
      dropped.data_ptr<int64_t>()[b] = config.null_class();
    }
  }
  return dropped;
}

double sum_of(const at::Tensor& values) { return values.detach().sum(at::kDouble).item<double>(); }

// As region_of has them, (B) int64.
at::Tensor regions_of(const Objective& objective, const at::Tensor& t, int regions = kQuarters) {
  if (!objective.continuous()) return at::div(t, kNumTrainTimesteps / regions, "floor");
  const at::Tensor times = t.cpu(), of_samples = at::empty(t.sizes(), at::kLong);
  for (int64_t b = 0; b < t.numel(); ++b)
    of_samples.data_ptr<int64_t>()[b] = region_of(objective, times.data_ptr<double>()[b], regions);
  return of_samples.to(t.device());
}

void add_kept(StepTerms& terms, const TrainingGates::Kept& kept, const at::Tensor& quarters_of_samples) {
  const at::Tensor quarters = quarters_of_samples.cpu();
  const auto quarter = [&](int64_t b) { return static_cast<size_t>(quarters.data_ptr<int64_t>()[b]); };
  for (int64_t b = 0; b < quarters.numel(); ++b) ++terms.drawn[quarter(b)];
  for (const auto& [sums, shares] :
       {std::pair{&terms.heads, kept.heads}, std::pair{&terms.groups, kept.groups},
        std::pair{&terms.tokens, kept.tokens}}) {
    const at::Tensor host = shares.cpu().contiguous();
    for (int64_t b = 0; b < host.size(0); ++b) (*sums)[quarter(b)] += host.data_ptr<float>()[b];
  }
}

// Global sums -> means, in one message.
void reduce_terms(StepTerms& terms, int global_batch, Communicator& processes) {
  const std::vector<double*> values = terms.values();
  std::vector<double> sums;
  for (const double* value : values) sums.push_back(*value);
  processes.sum(std::span<double>(sums));
  for (size_t i = 0; i < values.size(); ++i) *values[i] = sums[i];
  terms.divide(global_batch);
}

// Each sample's loss.
struct SampleLoss {
  DiffusionLoss parts;
  at::Tensor weighted_mse;

  at::Tensor total() const { return weighted_mse + parts.vb; }
  void add_to(double& mse, double& weighted, double& vb) const {
    const double sum = sum_of(parts.mse);
    mse += sum;
    weighted += weighted_mse.is_same(parts.mse) ? sum : sum_of(weighted_mse);
    vb += sum_of(parts.vb);
  }
};

// Of whatever the options' objective is.
SampleLoss loss_of(DiT& model, const at::Tensor& output, const StepInputs& inputs,
                   const TrainOptions& options) {
  if (options.distill.kind == DistillKind::Lcm) {
    const at::Tensor eps = output.slice(1, 0, inputs.x_t.size(1)),
                     loss = consistency_loss(lcm_consistency(inputs.x_t, eps, inputs.t), inputs.target,
                                             options.distill.loss);
    return {{loss, at::zeros_like(loss)}, loss};
  }
  const DiffusionLoss loss =
      diffusion_loss(output, inputs.x0, inputs.x_t, inputs.t, inputs.noise, model->config.objective);
  return {loss, inputs.loss_weight.defined() ? loss.mse * inputs.loss_weight : loss.mse};
}

// The work ratio of each sample as the mean over even times counts it.
at::Tensor visited(const at::Tensor& ratio, const StepInputs& inputs) {
  return inputs.visits.defined() ? ratio * inputs.visits : ratio;
}

// One micro-batch of the dynamic model, kept for its backward.
struct DynamicForward {
  std::unique_ptr<TrainingGates> gates;
  at::Tensor output;
  at::Tensor ratio = {};  // of each sample
};

// Mean work ratios over the global batch: of each level's samples, which have a target of their own.
class LevelRatios {
 public:
  explicit LevelRatios(int levels) : sums_(2 * levels) {}

  void add(int level, const at::Tensor& ratio) {
    sums_[2 * level] += sum_of(ratio);
    sums_[2 * level + 1] += static_cast<double>(ratio.numel());
  }
  void reduce(Communicator& processes) { processes.sum(std::span<double>(sums_)); }
  double mean(int level) const { return sums_[2 * level] * (1.0 / sums_[2 * level + 1]); }
  /// Of a level's samples the term is that of their mean, and of all samples the mean of terms.
  double flops_loss(double target) const {
    double loss = 0, samples = 0;
    for (size_t i = 1; i < sums_.size(); i += 2) samples += sums_[i];
    for (size_t i = 1; i < sums_.size(); i += 2) {
      if (sums_[i] > 0) loss += sums_[i] / samples * flops_term(mean(static_cast<int>(i / 2)), target).loss;
    }
    return loss;
  }

 private:
  std::vector<double> sums_;  // of each level: ratios, and samples
};

// The level of a step whose samples all have the same: each equally often.
int drawn_level(const DiTConfig& config, uint64_t seed, uint64_t step) {
  if (config.levels() == 1) return 0;
  const float u = uniform(seed, step, 0, TrainingDraw::Level);
  return std::min(static_cast<int>(u * static_cast<float>(config.levels())), config.levels() - 1);
}

// The samples of each level that there is, in order of levels.
std::vector<StepInputs> parts_by_level(const DiTConfig& config, StepInputs inputs) {
  if (!levels_share_time(config)) return {std::move(inputs)};
  const at::Tensor times = inputs.t.to(at::kCPU, at::kDouble);
  std::vector<std::vector<int64_t>> rows(config.levels());
  for (int64_t b = 0; b < times.numel(); ++b)
    rows[level_at(config, times.data_ptr<double>()[b])].push_back(b);
  std::vector<StepInputs> parts;
  for (int level = 0; level < config.levels(); ++level) {
    if (!rows[level].empty()) parts.push_back(inputs.select(at::tensor(rows[level]), level));
  }
  return parts;
}

// t and what it counts for, of the samples from `first` on, as many as there is noise for.
void draw_times(const DiTConfig& config, const TrainOptions& options, uint64_t step, int first,
                StepInputs& inputs) {
  const int64_t count = inputs.noise.size(0);
  if (options.distill.kind != DistillKind::None) {
    const DistillTimes drawn = draw_distill_times(options, step, first, count);
    inputs.t = drawn.t;
    inputs.visits = drawn.visits;
    return;
  }
  const TimestepSampler sampler(options.timesteps, config.objective);
  std::vector<double> times;
  for (int b = 0; b < count; ++b) times.push_back(sampler.time(options.seed, step, first + b));
  const at::Tensor drawn = at::tensor(times, at::kDouble);
  inputs.t = config.objective.continuous() ? drawn : drawn.to(at::kLong);
  const auto of_each = [&](const auto& factor) {
    std::vector<float> factors;
    for (const double time : times) factors.push_back(static_cast<float>(factor(time)));
    return at::tensor(factors, at::kFloat);
  };
  if (options.timesteps.weighs_loss())
    inputs.loss_weight = of_each([&](double t) { return sampler.loss_weight(t); });
  if (!options.dynamic || sampler.evenly()) return;
  inputs.visits = of_each([&](double t) {
    if (options.router.gate_rule == GateRule::Threshold) return sampler.visits(t);
    const int regions = options.router.regions,
              region = region_of(config.objective, t, regions);  // which alone its counts depend on
    return 1 / (regions * sampler.share_of(region, regions));
  });
}

// `keep` is undefined under the threshold rule.
DynamicForward forward_dynamic(DiT& model, const TrainOptions& options, const StepInputs& inputs,
                               const at::Tensor& keep) {
  DynamicForward forward;
  const at::Tensor t_emb = model->embed_timestep(inputs.t, inputs.level);
  CapacityInputs capacity;
  if (keep.defined())
    capacity = {keep_share(model), keep,
                regions_of(model->config.objective, inputs.t, options.router.regions),
                options.router.share_gradient};
  forward.gates = std::make_unique<TrainingGates>(model, t_emb, inputs.gate_noise, options.router.gates,
                                                  capacity, inputs.level);
  forward.output = model->forward(inputs.x_t, t_emb, inputs.y, forward.gates->gates(), inputs.level);
  return forward;
}

// The complete model, no gates; `hooks` add what they ask of it in this step.
SampleLoss backward_complete(DiT& model, const TrainOptions& options, const StepInputs& inputs,
                             const at::Tensor& y, double scale, Hooks* hooks, uint64_t step,
                             StepTerms& terms) {
  std::optional<Taps> taps = hooks ? hooks->taps(step) : std::nullopt;
  const at::Tensor output = model->forward(inputs.x_t, model->embed_timestep(inputs.t, inputs.level), y, {},
                                           inputs.level, taps ? &*taps : nullptr);
  const SampleLoss loss = loss_of(model, output, inputs, options);
  at::Tensor total = loss.total();
  if (taps) total = total + hooks->loss(inputs, y, *taps, step, terms.hooks);
  (total.sum() * scale).backward();
  return loss;
}

// As draw_times, of the teacher of self-alignment.
at::Tensor draw_teacher_times(const DiTConfig& config, const TrainOptions& options, uint64_t step, int first,
                              const at::Tensor& t) {
  const at::Tensor from = t.to(at::kDouble), times = at::empty_like(from);
  for (int b = 0; b < t.numel(); ++b) {
    const double lag =
        options.hooks.interval * double{uniform(options.seed, step, first + b, TrainingDraw::TeacherLag)};
    times.data_ptr<double>()[b] = teacher_time(config.objective, from.data_ptr<double>()[b], lag);
  }
  return times.to(t.scalar_type());
}

}  // namespace

std::vector<double*> StepTerms::values() {
  std::vector<double*> all = {&mse,          &vb,
                              &complete_mse, &complete_vb,
                              &weighted_mse, &complete_weighted_mse,
                              &ratio,        &inference_ratio,
                              &flops_loss};
  for (double& hook : hooks) all.push_back(&hook);
  for (auto* kept : {&heads, &groups, &tokens, &drawn}) {
    for (double& value : *kept) all.push_back(&value);
  }
  return all;
}

void StepTerms::divide(double samples) {
  const std::vector<double*> all = values();
  for (size_t i = 0; i + 4 * kQuarters < all.size(); ++i) *all[i] /= samples;
  for (auto* kept : {&heads, &groups, &tokens}) {
    for (int q = 0; q < kQuarters; ++q) (*kept)[q] /= drawn[q];
  }
}

void StepTerms::multiply_quarters() {
  for (auto* kept : {&heads, &groups, &tokens}) {
    for (int q = 0; q < kQuarters; ++q) (*kept)[q] = drawn[q] > 0 ? (*kept)[q] * drawn[q] : 0;
  }
}

FlopsTerm flops_term(double mean_ratio, double target) {
  const double distance = mean_ratio - target;
  return {2.0 * distance * distance, 4.0 * distance};
}

StepInputs make_step_inputs(const DiTConfig& config, const TrainOptions& options, Batch& batch, int first,
                            int64_t begin, int64_t count) {
  const uint64_t step = batch.step;
  const auto in_batch = static_cast<int64_t>(batch.labels.size());
  const at::Tensor images =
      at::from_blob(batch.images.data(), {in_batch, config.in_channels, config.input_size, config.input_size},
                    at::kFloat)
          .slice(0, begin, begin + count);
  const at::Tensor labels =
      at::from_blob(batch.labels.data(), {in_batch}, at::kLong).slice(0, begin, begin + count);
  first += static_cast<int>(begin);
  StepInputs inputs;
  inputs.x0 = images;
  inputs.noise = at::empty_like(images);
  const auto per_sample = static_cast<size_t>(images.stride(0));
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      fill_normal({inputs.noise.data_ptr<float>() + b * per_sample, per_sample}, options.seed,
                  training_sample(step, first + static_cast<int>(b)),
                  static_cast<uint64_t>(TrainingDraw::Noise));
    }
  });
  draw_times(config, options, step, first, inputs);
  if (options.hooks.align == Align::Self)
    inputs.t_teacher = draw_teacher_times(config, options, step, first, inputs.t);
  inputs.x_t = q_sample(images, inputs.t, inputs.noise, config.objective);
  inputs.y = drop_labels(labels, config, options, step, first, TrainingDraw::LabelDropout);
  inputs.y_complete = drop_labels(labels, config, options, step, first, TrainingDraw::CompleteLabelDropout);
  if (options.dynamic)
    inputs.gate_noise = draw_gate_noise(config, options.seed, step, first, static_cast<int>(count));
  inputs.level = levels_share_time(config) ? 0 : drawn_level(config, options.seed, step);
  return inputs.to(options.device);
}

StepInputs StepInputs::select(const at::Tensor& rows, int level) const {
  StepInputs selected = *this;
  const at::Tensor here = rows.to(x0.device());
  for (at::Tensor* tensor : {&selected.x0, &selected.noise, &selected.x_t, &selected.t, &selected.loss_weight,
                             &selected.visits, &selected.t_teacher, &selected.y, &selected.y_complete}) {
    if (tensor->defined()) *tensor = tensor->index_select(0, here);
  }
  for (auto* gates : {&selected.gate_noise.heads, &selected.gate_noise.groups, &selected.gate_noise.tokens}) {
    for (at::Tensor& noise : *gates) noise = noise.index_select(0, here);
  }
  selected.level = level;
  return selected;
}

StepInputs StepInputs::to(at::Device device) const {
  StepInputs moved = *this;
  for (at::Tensor* tensor : {&moved.x0, &moved.noise, &moved.x_t, &moved.t, &moved.target, &moved.loss_weight,
                             &moved.visits, &moved.y, &moved.y_complete, &moved.t_teacher}) {
    if (tensor->defined()) *tensor = tensor->to(device);
  }
  for (auto* gates : {&moved.gate_noise.heads, &moved.gate_noise.groups, &moved.gate_noise.tokens}) {
    for (at::Tensor& noise : *gates) noise = noise.to(device);
  }
  return moved;
}

StepTerms compute_gradient(DiT& model, ParameterStore& store, const TrainOptions& options,
                           Communicator& processes, uint64_t step, int first,
                           const std::function<StepInputs(int m)>& inputs_of, const StepHelpers& helpers) {
  TORCH_INTERNAL_ASSERT(options.hooks.any() == (helpers.hooks != nullptr));
  const DiTConfig& config = model->config;
  const double scale = 1.0 / options.global_batch;
  const double target = options.dynamic ? target_ratio(options.router, static_cast<int64_t>(step)) : 1.0;
  const auto parts_of = [&](int m) { return parts_by_level(config, inputs_of(m)); };

  at::Tensor keep;
  if (const at::Tensor share = keep_share(model); share.defined())
    keep = choose_counts(config, share, target).to(share.device());

  StepTerms terms;
  store.grads.zero_();
  LevelRatios ratios(config.levels());
  if (options.dynamic && options.accumulate > 1) {  // only a forward tells which tokens open
    at::NoGradGuard no_grad;
    for (int m = 0; m < options.accumulate; ++m) {
      for (const StepInputs& inputs : parts_of(m))
        ratios.add(inputs.level,
                   visited(forward_dynamic(model, options, inputs, keep).gates->ratio(), inputs));
    }
    ratios.reduce(processes);
  }
  for (int m = 0; m < options.accumulate; ++m) {
    std::vector<StepInputs> parts = parts_of(m);
    for (StepInputs& inputs : parts) {
      if (helpers.distillation) inputs.target = helpers.distillation->target(model, inputs, keep);
    }
    if (!options.dynamic) {
      for (const StepInputs& inputs : parts) {
        backward_complete(model, options, inputs, inputs.y, scale, helpers.hooks, step, terms)
            .add_to(terms.mse, terms.weighted_mse, terms.vb);
        const int64_t count = inputs.t.numel();
        terms.ratio += static_cast<double>(count);
        terms.inference_ratio += static_cast<double>(count);
        const at::Tensor all = at::ones({count}, at::kFloat);
        add_kept(terms, {all, all, all}, regions_of(config.objective, inputs.t));
      }
      continue;
    }
    // All forwards before any backward: the mean over the levels' samples is each sample's slope.
    std::vector<DynamicForward> forwards;
    for (const StepInputs& inputs : parts) {
      DynamicForward& forward = forwards.emplace_back(forward_dynamic(model, options, inputs, keep));
      forward.ratio = visited(forward.gates->ratio(), inputs);
      if (options.accumulate == 1) ratios.add(inputs.level, forward.ratio);
    }
    if (options.accumulate == 1) ratios.reduce(processes);
    for (size_t i = 0; i < parts.size(); ++i) {
      const StepInputs& inputs = parts[i];
      const DynamicForward forward = std::move(forwards[i]);
      const SampleLoss loss = loss_of(model, forward.output, inputs, options);
      // The capacity rule meets its target by its counts.
      const double slope = options.router.gate_rule == GateRule::Capacity
                               ? 0.0
                               : flops_term(ratios.mean(inputs.level), target).slope;
      ((loss.total().sum() + slope * forward.ratio.sum()) * scale).backward();
      loss.add_to(terms.mse, terms.weighted_mse, terms.vb);
      terms.ratio += sum_of(forward.ratio);
      terms.inference_ratio += sum_of(visited(forward.gates->inference_ratio(), inputs));
      add_kept(terms, forward.gates->kept(), regions_of(config.objective, inputs.t));
      if (static_cast<int64_t>(step) < options.router.complete_steps) {
        backward_complete(model, options, inputs, inputs.y_complete, scale, helpers.hooks, step, terms)
            .add_to(terms.complete_mse, terms.complete_weighted_mse, terms.complete_vb);
      }
    }
  }
  processes.sum(std::span<float>(store.grads.data_ptr<float>(), static_cast<size_t>(store.grads.numel())));
  reduce_terms(terms, options.global_batch, processes);
  if (options.dynamic) terms.flops_loss = ratios.flops_loss(target);
  return terms;
}

double least_training_bytes(const DiTConfig& config, const TrainOptions& options, int processes) {
  constexpr double kBuffers = 5;  // those of ParameterStore, in which what rests has its weights alone
  const bool part = options.adapter.kind != AdapterKind::None || options.trained != TrainedPart::All;
  const auto all = static_cast<double>(num_parameters(config));
  const double trained =
      part ? static_cast<double>(router_parameters(config) + adapter_parameters(config)) : all;
  const double micro =
      static_cast<double>(options.global_batch) / (static_cast<double>(processes) * options.accumulate);
  const double C = config.hidden_size, F = config.mlp_hidden,
               element = options.dtype == at::kBFloat16 ? 2 : 4;
  // A token in a block: its two residuals in float32; the inputs and outputs of the four linears, and the
  // GELU's.
  const double token = 2 * C * sizeof(float) + element * (8 * C + 2 * F);
  const double teacher =
      options.distill.teacher ? static_cast<double>(num_parameters(options.distill.teacher->config)) : 0;
  return (trained * kBuffers + (all - trained) + teacher) * sizeof(float) +
         micro * config.sequence() * config.depth * token;
}

void apply_update(DiT& model, ParameterStore& store, const TrainOptions& options, double grad_norm,
                  RunState& state) {
  at::Tensor share = keep_share(model);
  const bool good = std::isfinite(grad_norm) && (options.skip_norm <= 0 || grad_norm < options.skip_norm);
  if (good) {
    if (options.clip_grad > 0 && grad_norm > options.clip_grad)
      store.grads.mul_(options.clip_grad / grad_norm);
    if (share.defined()) project_share_gradient(model->config, share, share.mutable_grad());
    store.adamw_step({.lr = learning_rate(options, state.step), .weight_decay = options.weight_decay},
                     ++state.updates);
  } else {
    ++state.skipped;
  }
  store.ema_step(options.ema_decay);
  ++state.step;
  if (share.defined()) scale_shares(model->config, share, target_ratio(options.router, state.step));
}

}  // namespace dydit
