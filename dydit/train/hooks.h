// Losses on hidden features, added to a step's loss in training alone: alignment to the model's own average,
// to a frozen encoder or away from each other, and a prediction from every layer. Letters: B samples, N
// patches, C hidden size, D channels of the encoder, p the patch size.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "dydit/data/dataset.h"
#include "dydit/model/dit.h"
#include "dydit/train/step.h"

namespace dydit {

/// Minus the mean over tokens of the cosine of z and y, both (B, N, D) -> (B). (REPA)
at::Tensor cosine_loss(const at::Tensor& z, const at::Tensor& y);
/// Mean square over pairs of an image's tokens of how far their cosine in z is from that in y -> (B).
/// (U-REPA)
at::Tensor manifold_intra(const at::Tensor& z, const at::Tensor& y);
/// The same over pairs of images, each the mean of its tokens -> ().
at::Tensor manifold_inter(const at::Tensor& z, const at::Tensor& y);
/// The weight of the alignment times [cosine_loss + both manifold losses, each with its weight] -> (B).
at::Tensor encoder_loss(const at::Tensor& z, const at::Tensor& y, const HookOptions& options);
/// log mean exp(-distance^2 / (values of an image * tau)) over all pairs of images, each with itself
/// included. z (B, N, C) -> ()
at::Tensor dispersive_loss(const at::Tensor& z, double tau);
/// Smooth L1 with beta .05, mean over an image. prediction, target (B, N, C) -> (B). (SRA)
at::Tensor self_loss(const at::Tensor& prediction, const at::Tensor& target);
/// Mean square error, prediction and target (B, N, p p c) -> (B).
at::Tensor layer_loss(const at::Tensor& prediction, const at::Tensor& target);
/// The time of the self teacher for a model at `time`: its noise share is `lag` thousandths lower, of a table
/// whole steps down to t = 1.
double teacher_time(const Objective& objective, double time, double lag);
/// (B, c, S, S) -> (B, N, p p c): a patch's values in the order of the final layer's rows.
at::Tensor to_patches(const at::Tensor& image, int patch);
/// (B, N, D) of a square grid -> (B, grid * grid, D), bilinear.
at::Tensor resize_tokens(const at::Tensor& tokens, int grid);

/// Two linear layers: SiLU between them (SRA's linear1, linear2) or GELU in its exact form (0, 2 of PLR).
struct HookHeadImpl : torch::nn::Module {
  enum class Kind { Self, Layer };
  HookHeadImpl(Kind kind, int in, int hidden, int out);
  /// (B, N, in) -> (B, N, out) float32; the first layer is computed in `dtype`.
  at::Tensor forward(const at::Tensor& x, at::ScalarType dtype);

  Kind kind;
  Linear first{nullptr}, second{nullptr};
};
TORCH_MODULE(HookHead);

struct HookInputs {
  const StepInputs& inputs;
  const at::Tensor& y;  // labels of the forward that was tapped
  const Taps& taps;
  const DiT& teacher;  // the average; null without self-alignment
};

class LossHook {
 public:
  virtual ~LossHook() = default;
  /// Asks for what it reads of a forward.
  virtual void ask(Taps& taps) const = 0;
  /// (B), its weight included.
  virtual at::Tensor loss(const HookInputs& from) = 0;
};

/// All of a run, in the order of hook_names.
class Hooks {
 public:
  /// Registers their parameters in `model` under "hooks."; their values are functions of the seed and the
  /// parameter's name.
  Hooks(const HookOptions& options, DiT& model, uint64_t seed);

  /// The teacher of self-alignment, before the first loss.
  void set_teacher(DiT teacher) { teacher_ = std::move(teacher); }
  /// What step `step` asks of its forward; nullopt: nothing.
  std::optional<Taps> taps(uint64_t step) const;
  /// Their sum, (B), of a forward with the taps of this step; adds each one's sum over samples to `sums`.
  at::Tensor loss(const StepInputs& inputs, const at::Tensor& y, const Taps& taps, uint64_t step,
                  std::span<double, kMostHooks> sums);

 private:
  bool is_on(size_t hook, uint64_t step) const;

  const HookOptions options_;
  DiT teacher_{nullptr};
  std::vector<std::unique_ptr<LossHook>> hooks_;  // an alignment first
};

/// Throws where the hooks do not fit the model, the data or the way a batch is cut.
void check_hooks(const Dataset& data, const DiTConfig& config, const TrainOptions& options, int processes);

}  // namespace dydit
