#include "dydit/calibrate/smoothing.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "dydit/model/quantization.h"

namespace dydit {

at::Tensor smoothing_factors(const Checkpoint& checkpoint, const GenerateOptions& options, double exponent,
                             const ProgressFn& on_progress, const CancelFlag* cancel) {
  const DiTConfig& config = checkpoint.config;
  const at::Tensor largest = at::zeros({config.depth, 2, config.hidden_size}, at::kFloat);
  GenerateOptions measured = options;
  measured.dtype = at::kFloat;
  measured.largest_inputs = {largest.data_ptr<float>(), static_cast<size_t>(largest.numel())};
  GenerateCallbacks callbacks;
  callbacks.on_sample = [](GeneratedSample&&) {};
  callbacks.on_progress = on_progress;
  callbacks.cancel = cancel;
  generate(checkpoint, measured, callbacks);
  at::Tensor factors = at::ones_like(largest);
  for (int l = 0; l < config.depth; ++l) {
    for (const auto& [input, layer] : {std::pair{0, "attn.qkv"}, std::pair{1, "mlp.fc1"}}) {
      const at::Tensor weight = checkpoint.weights.at(fmt::format("blocks.{}.{}.weight", l, layer)),
                       columns = weight.to(at::kFloat).abs().amax(0), inputs = largest[l][input];
      const at::Tensor ratio = inputs.pow(exponent) / columns.pow(1 - exponent);
      factors[l][input].copy_(at::where((inputs > 0).logical_and(columns > 0), ratio, at::ones_like(ratio)));
    }
  }
  return factors;
}

}  // namespace dydit
