#include "dydit/model/quantization.h"

#include <algorithm>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "dydit/base/error.h"

namespace dydit {
namespace {

constexpr double kMost = 127;
constexpr std::string_view kWeight = ".weight";

}  // namespace

bool is_block_layer(std::string_view name) {
  if (!name.starts_with("blocks.")) return false;
  const auto is_part = [&](std::string_view layer) {
    const size_t at = name.find(layer);
    return at != name.npos && name[at - 1] == '.' && name.substr(at + layer.size()).starts_with('.');
  };
  return std::any_of(kBlockLayers.begin(), kBlockLayers.end(), is_part);
}

bool is_quantization_part(std::string_view name) {
  return is_block_layer(name) && (name.ends_with(".scale") || name.ends_with(".smooth"));
}

int input_segments(const DiTConfig& config, std::string_view layer) {
  return layer == "attn.proj" || layer == "mlp.fc2" ? config.num_heads : 1;
}

QuantizedWeight quantize(const at::Tensor& weight, int segments, const at::Tensor& smooth) {
  at::Tensor values = weight.to(at::kFloat);
  if (smooth.defined()) values = values * smooth;
  const at::Tensor parts = values.reshape({values.size(0), segments, -1});
  const at::Tensor scale = parts.abs().amax(-1) / kMost;
  const at::Tensor divisor = at::where(scale > 0, scale, at::ones({}, at::kFloat)).unsqueeze(-1);
  const at::Tensor rounded = (parts / divisor).round().clamp(-kMost, kMost).to(at::kChar);
  return {rounded.reshape(values.sizes()).contiguous(), scale.contiguous(), smooth};
}

at::Tensor dequantize(const QuantizedWeight& weight) {
  const at::Tensor& values = weight.values;
  const at::Tensor parts = values.to(at::kFloat).reshape({values.size(0), weight.scale.size(1), -1});
  const at::Tensor whole = (parts * weight.scale.unsqueeze(-1)).reshape(values.sizes());
  return weight.smooth.defined() ? whole / weight.smooth : whole;
}

QuantizedWeight quantized_layer(const Weights& weights, const std::string& layer, int segments) {
  const at::Tensor& weight = weights.at(layer + ".weight");
  if (weight.scalar_type() != at::kChar) return quantize(weight, segments);
  const auto smooth = weights.find(layer + ".weight.smooth");
  return {weight, weights.at(layer + ".weight.scale"),
          smooth == weights.end() ? at::Tensor() : smooth->second};
}

at::Tensor float_weight(const Weights& weights, const std::string& name) {
  const at::Tensor& weight = weights.at(name);
  if (weight.scalar_type() != at::kChar) return weight;
  return dequantize(quantized_layer(weights, name.substr(0, name.size() - kWeight.size()), 1));
}

Checkpoint quantize_checkpoint(const Checkpoint& checkpoint, const at::Tensor& smooth,
                               const Quantization& how) {
  refuse_quantized(checkpoint, "quantize");
  DYDIT_CHECK(checkpoint.config.adapter.kind == AdapterKind::None,
              "{}: has adapters, for which there are no 8 bits; merge them first (dydit convert --merge)",
              checkpoint.path.string());
  Checkpoint result = checkpoint;
  result.quantization = how;
  for (int l = 0; l < checkpoint.config.depth; ++l) {
    for (const std::string_view layer : kBlockLayers) {
      const std::string name = fmt::format("blocks.{}.{}", l, layer);
      const int input = layer == "attn.qkv" ? 0 : layer == "mlp.fc1" ? 1 : -1;
      const at::Tensor factors =
          smooth.defined() && input >= 0 ? smooth[l][input].contiguous() : at::Tensor();
      const QuantizedWeight quantized = quantize(checkpoint.weights.at(name + ".weight"),
                                                 input_segments(checkpoint.config, layer), factors);
      result.weights[name + ".weight"] = quantized.values;
      result.weights[name + ".weight.scale"] = quantized.scale;
      if (factors.defined()) result.weights[name + ".weight.smooth"] = factors;
    }
  }
  return result;
}

void refuse_quantized(const Checkpoint& checkpoint, std::string_view what) {
  DYDIT_CHECK(
      !checkpoint.quantization,
      "{}: its weights are quantised to 8 bits, and what was rounded off is gone; {} takes the checkpoint "
      "that it was made of (sha256 {:.10})",
      checkpoint.path.string(), what, checkpoint.quantization->parent_sha256);
}

}  // namespace dydit
