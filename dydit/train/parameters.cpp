// Slots are a parameter's place in the buffers; spans are the longest stretches of one learning rate.
#include "dydit/train/parameters.h"

#include <cmath>

#include "dydit/model/dit.h"
#include "dydit/model/edit.h"
#include "dydit/train/capacity.h"
#include "dydit/train/flat.h"

namespace dydit {

bool is_training_only(const std::string& name) {
  return name == kKeepShareName || name.starts_with("hooks.");
}

ParameterStore::ParameterStore(DiT& model, double router_lr_scale)
    : ParameterStore(model, [router_lr_scale](const std::string& name) {
        return is_router_parameter(name) || name == kKeepShareName ? router_lr_scale : 1.0;
      }) {}

ParameterStore::ParameterStore(DiT& model,
                               const std::function<double(const std::string& name)>& lr_scale_of) {
  at::NoGradGuard no_grad;
  int64_t total = 0;
  for (const auto& parameter : model->named_parameters()) {
    const std::string& name = parameter.key();
    if (!parameter.value().requires_grad()) {
      frozen_[name] = parameter.value();
      continue;
    }
    const auto lr_scale = static_cast<float>(lr_scale_of(name));
    slots_.push_back({name, total, parameter.value().numel(), parameter.value().sizes().vec()});
    if (spans_.empty() || spans_.back().lr_scale != lr_scale) spans_.push_back({total, total, lr_scale});
    total = spans_.back().end += parameter.value().numel();
  }
  values =
      at::empty({total}, model->pos_embed.options().requires_grad(false));  // float32, where the model lies
  grads = at::zeros_like(values);
  exp_avg = at::zeros_like(values);
  exp_avg_sq = at::zeros_like(values);
  auto parameters = model->named_parameters();
  for (const Slot& slot : slots_) {
    at::Tensor& parameter = parameters[slot.name];
    at::Tensor view = values.slice(0, slot.offset, slot.offset + slot.size).view(slot.shape);
    view.copy_(parameter);
    parameter.set_data(view);
    // Autograd adds into a gradient that is there, so the views stay.
    parameter.mutable_grad() = grads.slice(0, slot.offset, slot.offset + slot.size).view(slot.shape);
  }
  ema = values.clone();
}

double ParameterStore::grad_norm() const { return flat::l2_norm(grads); }

void ParameterStore::adamw_step(const AdamWOptions& options, int64_t step) {
  const auto correction1 = static_cast<float>(1.0 - std::pow(options.beta1, step));
  flat::AdamWFactors factors;
  factors.beta1 = static_cast<float>(options.beta1);
  factors.beta2 = static_cast<float>(options.beta2);
  factors.root_correction2 = static_cast<float>(std::sqrt(1.0 - std::pow(options.beta2, step)));
  factors.eps = static_cast<float>(options.eps);
  for (const Span& span : spans_) {
    const float lr = static_cast<float>(options.lr) * span.lr_scale;
    factors.decay = 1.0f - lr * static_cast<float>(options.weight_decay);
    factors.step_size = lr / correction1;
    const auto part = [&](const at::Tensor& buffer) { return buffer.slice(0, span.begin, span.end); };
    flat::adamw(part(values), part(grads), part(exp_avg), part(exp_avg_sq), factors);
  }
}

void ParameterStore::ema_step(double decay) { flat::move_average(ema, values, decay); }

bool ParameterStore::is_finite() const {
  return std::isfinite(flat::l2_norm(values)) && std::isfinite(flat::l2_norm(ema));
}

Weights ParameterStore::ema_weights() const {
  Weights weights;
  for (const Slot& slot : slots_) {
    if (is_training_only(slot.name)) continue;
    weights[slot.name] = ema.slice(0, slot.offset, slot.offset + slot.size)
                             .view(slot.shape)
                             .to(at::kCPU, at::kFloat, /*non_blocking=*/false, /*copy=*/true);
  }
  for (const auto& [name, value] : frozen_)
    weights[name] = value.detach().to(at::kCPU, at::kFloat, /*non_blocking=*/false, /*copy=*/true);
  return weights;
}

DiT ParameterStore::average_view(const DiT& trained) const {
  at::NoGradGuard no_grad;
  DiT average(trained->config);
  average->eval();
  average->compute_dtype = trained->compute_dtype;
  auto parameters = average->named_parameters();
  const auto share = [&](const std::string& name, const at::Tensor& value) {
    if (is_training_only(name)) return;
    parameters[name].set_data(value);
    parameters[name].set_requires_grad(false);
  };
  for (const Slot& slot : slots_)
    share(slot.name, ema.slice(0, slot.offset, slot.offset + slot.size).view(slot.shape));
  for (const auto& [name, value] : frozen_) share(name, value.detach());
  return average;
}

}  // namespace dydit
