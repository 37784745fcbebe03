// All trainable parameters in one flat float32 buffer each for weights, gradients, Adam's moments and EMA:
// the optimizer, the gradient's norm, the average over processes and the saved state are then single passes.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "dydit/model/checkpoint.h"

namespace dydit {

struct AdamWOptions {
  double lr = 1e-4;
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
  double weight_decay = 0;
};

/// Parameters of a training model that its files do not hold: shares of the capacity rule, heads of losses on
/// features ("hooks.").
bool is_training_only(const std::string& name);

class ParameterStore {
 public:
  /// Moves the model's trainable parameters (those that require a gradient) and their gradients into the
  /// buffers (the model keeps views). EMA starts as a copy. A parameter learns with lr_scale(its name) times
  /// the learning rate.
  ParameterStore(DiT& model, const std::function<double(const std::string& name)>& lr_scale);
  /// The same of routers alone.
  ParameterStore(DiT& model, double router_lr_scale);

  /// L2 norm of the gradient over all parameters; summed in double, independent of the number of threads.
  double grad_norm() const;
  /// One AdamW step (decoupled weight decay), `step` counted from 1.
  void adamw_step(const AdamWOptions& options, int64_t step);
  /// ema <- decay ema + (1 - decay) weights
  void ema_step(double decay);

  /// Whether all weights and their average are finite.
  bool is_finite() const;

  /// The EMA as weights by name, frozen ones included; copies on the CPU.
  Weights ema_weights() const;
  /// A model in eval mode, of the trained one's configuration and dtype, whose parameters are views of the
  /// EMA, and of the frozen ones: it follows every ema_step. Without gradients.
  DiT average_view(const DiT& trained) const;

  at::Tensor values, grads, exp_avg, exp_avg_sq, ema;  // (P) float32 each, on the model's device

 private:
  struct Slot {
    std::string name;
    int64_t offset, size;
    std::vector<int64_t> shape;
  };
  struct Span {
    int64_t begin, end;
    float lr_scale;
  };
  std::vector<Slot> slots_;
  std::vector<Span> spans_;
  std::map<std::string, at::Tensor> frozen_;  // parameters that are not trained
};

}  // namespace dydit
