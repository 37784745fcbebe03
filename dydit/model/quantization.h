// Weights of 8-bit integers: symmetric, a scale for every output and every segment of the inputs (a head of
// proj, a channel group of fc2, the whole row of qkv and fc1), so that segments can be left out.
//
// In a file: blocks.B.LAYER.weight (out, in) int8, beside it blocks.B.LAYER.weight.scale (out, segments)
// float32 and, of a layer that was smoothed, blocks.B.LAYER.weight.smooth (in) float32; metadata
// 'quantization'.
#pragma once

#include <array>
#include <string>
#include <string_view>

#include <ATen/core/Tensor.h>

#include "dydit/model/checkpoint.h"

namespace dydit {

inline constexpr const char* kQuantizationScheme = "w8a8-dynamic";
inline constexpr int kQuantizationVersion = 1;

/// The layers of a block that are quantised.
inline constexpr std::array<std::string_view, 4> kBlockLayers = {"attn.qkv", "attn.proj", "mlp.fc1",
                                                                 "mlp.fc2"};
/// Of a tensor's name: whether it is one of those layers' weights or biases.
bool is_block_layer(std::string_view name);
/// Whether it is a scale or smoothing factors.
bool is_quantization_part(std::string_view name);
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

/// A layer ("blocks.3.attn.qkv") as it is stored, else quantised now.
QuantizedWeight quantized_layer(const Weights& weights, const std::string& layer, int segments);
/// A tensor by its name: quantised weights as the float32 ones that they stand for, others as they are.
at::Tensor float_weight(const Weights& weights, const std::string& name);

/// The checkpoint with its blocks' layers quantised. smooth (L, 2, C) float32: of the inputs of qkv and of
/// fc1, or undefined. Throws Error where it is quantised already.
Checkpoint quantize_checkpoint(const Checkpoint& checkpoint, const at::Tensor& smooth,
                               const Quantization& how);
/// Throws Error for a quantised checkpoint: `what` takes the one that it was made of.
void refuse_quantized(const Checkpoint& checkpoint, std::string_view what);

}  // namespace dydit
