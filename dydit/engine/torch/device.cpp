// See the header.
#include "dydit/engine/torch/device.h"

#include <fmt/format.h>

#include "dydit/base/error.h"
#include "dydit/base/machine.h"
#include "dydit/engine/torch/conditioning.h"
#include "dydit/model/quantization.h"

namespace dydit::aten {
namespace {

std::string version_text(int version) { return fmt::format("{}.{}", version / 1000, version % 1000 / 10); }

}  // namespace

void check_device(const DeviceFacts& facts, at::Device device, at::ScalarType dtype) {
  const std::string name = device.str();
  DYDIT_CHECK(facts.built,
              "--device {}: this program was built without CUDA; build one with scripts/build cuda", name);
  DYDIT_CHECK(facts.driver > 0,
              "--device {}: there is no driver of NVIDIA (see nvidia-smi); take --device cpu", name);
  DYDIT_CHECK(facts.driver >= facts.runtime,
              "--device {}: the driver knows CUDA up to {}, this program needs {}; update the driver or take "
              "--device cpu",
              name, version_text(facts.driver), version_text(facts.runtime));
  DYDIT_CHECK(facts.count > 0,
              "--device {}: there is no GPU that CUDA can use (see nvidia-smi); take --device cpu", name);
  DYDIT_CHECK(device.index() < facts.count, "--device {}: there are {} GPUs, cuda:0 to cuda:{}", name,
              facts.count, facts.count - 1);
  DYDIT_CHECK(facts.capability >= kLeastCapability,
              "--device {}: {} has compute capability {}.{}, the least is {}.{}; take --device cpu", name,
              facts.name, facts.capability / 10, facts.capability % 10, kLeastCapability / 10,
              kLeastCapability % 10);
  DYDIT_CHECK(dtype != at::kBFloat16 || facts.capability >= kBf16Capability,
              "--device {}: {} (compute capability {}.{}) has no arithmetic of bfloat16; take --dtype f32",
              name, facts.name, facts.capability / 10, facts.capability % 10);
}

int64_t device_bytes(const Checkpoint& checkpoint, const EngineOptions& options, int64_t rows) {
  const DiTConfig& config = checkpoint.config;
  const int64_t element = options.dtype == at::kBFloat16 ? 2 : 4;
  int64_t bytes = 0;
  for (const auto& [name, weight] : checkpoint.weights) {
    const bool layer = is_block_layer(name);
    bytes += weight.numel() * (layer ? element * (config.width_routers ? 2 : 1) : 4);
  }
  bytes += Conditioning::table_bytes(config, options.where.device, rows);
  const int64_t T = config.sequence(), C = config.hidden_size, F = config.mlp_hidden;
  // The stream and the rows gathered from it; normed, qkv, heads, what a branch gives, and fc1's output.
  const int64_t row =
      T * (2 * C * 4 + element * (C + 3 * C + C + C + F)) +
      4 * (config.in_channels + config.out_channels()) * int64_t{config.input_size} * config.input_size +
      config.num_joins() * T * C * 4;
  return bytes + rows * row;
}

void check_device_memory(const DeviceFacts& facts, int64_t bytes, int64_t rows) {
  DYDIT_CHECK(bytes <= facts.free_bytes,
              "{}: {} rows take {} of its memory, {} of {} are free: take a smaller --batch or --dtype bf16",
              facts.name, rows, memory_text(static_cast<double>(bytes)),
              memory_text(static_cast<double>(facts.free_bytes)),
              memory_text(static_cast<double>(facts.total_bytes)));
}

}  // namespace dydit::aten
