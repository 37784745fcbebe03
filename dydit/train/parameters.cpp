// Passes over flat buffers in fixed blocks, so that results do not depend on the number of threads.
#include "dydit/train/parameters.h"

#include <cmath>
#include <numeric>

#include <ATen/Parallel.h>

#include "dydit/model/dit.h"
#include "dydit/model/init.h"
#include "dydit/train/capacity.h"

namespace dydit {
namespace {

constexpr int64_t kBlock = 1 << 16;  // elements a task

// fn(begin, end) over [0, size) in blocks.
template <typename Fn>
void for_blocks(int64_t size, const Fn& fn) {
  const int64_t blocks = (size + kBlock - 1) / kBlock;
  at::parallel_for(0, blocks, 1, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) fn(b * kBlock, std::min(size, (b + 1) * kBlock));
  });
}

}  // namespace

ParameterStore::ParameterStore(DiT& model, double router_lr_scale) {
  at::NoGradGuard no_grad;
  int64_t total = 0;
  for (const auto& parameter : model->named_parameters()) {
    const std::string& name = parameter.key();
    if (!parameter.value().requires_grad()) {
      pos_embed_ = parameter.value();
      continue;
    }
    const bool router = is_router_parameter(name) || name == kKeepShareName;
    slots_.push_back({name, total, parameter.value().numel(), parameter.value().sizes().vec(),
                      router ? static_cast<float>(router_lr_scale) : 1.0f});
    total += parameter.value().numel();
  }
  values = at::empty({total});
  grads = at::zeros({total});
  exp_avg = at::zeros({total});
  exp_avg_sq = at::zeros({total});
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

void ParameterStore::zero_grad() { grads.zero_(); }

double ParameterStore::grad_norm() const {
  const float* g = grads.data_ptr<float>();
  std::vector<double> partial((grads.numel() + kBlock - 1) / kBlock);
  for_blocks(grads.numel(), [&](int64_t begin, int64_t end) {
    double sum = 0;
    for (int64_t i = begin; i < end; ++i) sum += static_cast<double>(g[i]) * g[i];
    partial[begin / kBlock] = sum;
  });
  return std::sqrt(std::accumulate(partial.begin(), partial.end(), 0.0));
}

void ParameterStore::scale_grad(double factor) {
  float* g = grads.data_ptr<float>();
  for_blocks(grads.numel(), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) g[i] *= static_cast<float>(factor);
  });
}

void ParameterStore::adamw_step(const AdamWOptions& options, int64_t step) {
  const auto beta1 = static_cast<float>(options.beta1), beta2 = static_cast<float>(options.beta2);
  const auto correction1 = static_cast<float>(1.0 - std::pow(options.beta1, step));
  const auto root_correction2 = static_cast<float>(std::sqrt(1.0 - std::pow(options.beta2, step)));
  const auto eps = static_cast<float>(options.eps);
  for (const Slot& slot : slots_) {
    const float lr = static_cast<float>(options.lr) * slot.lr_scale;
    const float decay = 1.0f - lr * static_cast<float>(options.weight_decay);
    const float step_size = lr / correction1;
    float* w = values.data_ptr<float>() + slot.offset;
    const float* g = grads.data_ptr<float>() + slot.offset;
    float *m = exp_avg.data_ptr<float>() + slot.offset, *v = exp_avg_sq.data_ptr<float>() + slot.offset;
    for_blocks(slot.size, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        m[i] += (1.0f - beta1) * (g[i] - m[i]);
        v[i] = beta2 * v[i] + (1.0f - beta2) * g[i] * g[i];
        w[i] = w[i] * decay - step_size * m[i] / (std::sqrt(v[i]) / root_correction2 + eps);
      }
    });
  }
}

void ParameterStore::ema_step(double decay) {
  const auto keep = static_cast<float>(decay), take = static_cast<float>(1.0 - decay);
  float* average = ema.data_ptr<float>();
  const float* w = values.data_ptr<float>();
  for_blocks(ema.numel(), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) average[i] = keep * average[i] + take * w[i];
  });
}

Weights ParameterStore::ema_weights() const {
  Weights weights;
  for (const Slot& slot : slots_) {
    if (slot.name == kKeepShareName) continue;  // becomes counts in the metadata, not a weight
    weights[slot.name] = ema.slice(0, slot.offset, slot.offset + slot.size).view(slot.shape).clone();
  }
  weights["pos_embed"] = pos_embed_.detach().clone();
  return weights;
}

}  // namespace dydit
