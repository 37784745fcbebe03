// Weights of 8-bit integers: symmetric, a scale for every output and every segment of the inputs (a head of
// proj, a channel group of fc2, the whole row of qkv and fc1), so that segments can be left out.
#pragma once

#include <array>
#include <string>
#include <string_view>

#include <ATen/core/Tensor.h>

#include "dydit/model/config.h"

namespace dydit {

/// The layers of a block that `dtype` speaks of; all else is float32 or as the file has it.
inline constexpr std::array<std::string_view, 4> kBlockLayers = {"attn.qkv", "attn.proj", "mlp.fc1",
                                                                 "mlp.fc2"};
bool is_block_layer(std::string_view name);
/// Segments of such a layer's inputs, each with a scale of its own.
int input_segments(const DiTConfig& config, std::string_view layer);

/// weight = values scale, divided by `smooth` along the inputs where it is defined.
struct QuantizedWeight {
  at::Tensor values;  // (out, in) int8, -127 to 127
  at::Tensor scale;   // (out, segments) float32, 0 where a segment's weights all are
  at::Tensor smooth;  // (in) float32, or undefined: what activations are divided by before they are rounded
};

/// weight (out, in) of any floating type. Rounds half to even.
QuantizedWeight quantize(const at::Tensor& weight, int segments, const at::Tensor& smooth = {});
/// The float32 weights (out, in) that it stands for.
at::Tensor dequantize(const QuantizedWeight& weight);

}  // namespace dydit
