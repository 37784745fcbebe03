#include "dydit/eval/feature_network.h"

#include <algorithm>

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include "dydit/base/error.h"
#include "dydit/io/text.h"
#include "dydit/io/torch_file.h"

namespace dydit::eval {

at::Tensor NetworkWeights::take(const std::string& name, at::IntArrayRef shape) {
  const auto found = tensors_.find(name);
  DYDIT_CHECK(found != tensors_.end(), "{}: no tensor {}; these are no weights of {}", file_, name, what_);
  const at::Tensor tensor = found->second;
  tensors_.erase(found);
  DYDIT_CHECK(tensor.sizes() == shape, "{}: {} has shape [{}]; {} has [{}]", file_, name,
              fmt::join(tensor.sizes(), ", "), what_, fmt::join(shape, ", "));
  DYDIT_CHECK(tensor.is_floating_point(), "{}: {} is not floating point", file_, name);
  DYDIT_CHECK(at::isfinite(tensor).all().item<bool>(), "{}: {} holds values that are not finite", file_,
              name);
  return tensor.to(at::kDouble);
}

NetworkWeights::Folded NetworkWeights::fold(const std::string& conv, const std::string& norm,
                                            at::IntArrayRef shape, double eps) {
  const at::Tensor weight = take(conv + ".weight", shape), scale = take(norm + ".weight", {shape[0]}),
                   bias = take(norm + ".bias", {shape[0]}), mean = take(norm + ".running_mean", {shape[0]}),
                   variance = take(norm + ".running_var", {shape[0]});
  const at::Tensor factor = scale / at::sqrt(variance + eps);
  return {weight * factor.view({-1, 1, 1, 1}), bias - mean * factor};
}

void NetworkWeights::check_all_taken() const {
  for (const auto& [name, tensor] : tensors_)
    DYDIT_CHECK(is_counter_name(name), "{}: holds {}, which {} has not", file_, printable(name, 60), what_);
}

Conv FeatureNetwork::folded(NetworkWeights& weights, const std::string& conv, const std::string& norm,
                            const ConvShape& shape, double eps, bool bf16) {
  const auto [weight, bias] =
      weights.fold(conv, norm, {shape.out, shape.in, shape.rows.taps, shape.columns.taps}, eps);
  return Conv(weight, bias, shape, bf16, arena_, team_);
}

Conv FeatureNetwork::linear(NetworkWeights& weights, const std::string& name, int features, int classes,
                            bool bias) {
  const at::Tensor weight = weights.take(name + ".weight", {classes, features});
  return Conv(weight, bias ? weights.take(name + ".bias", {classes}) : at::Tensor(),
              {.in = features, .out = classes, .rows = kOneTap, .columns = kOneTap}, /*bf16=*/false, arena_,
              team_);
}

void run_conv(FeatureWorkspace& workspace, const Conv& conv, const Map& from, Map& to, const ConvUse& use) {
  workspace.scratch[0].reserve(conv.scratch_bytes());
  conv.run(workspace.team, workspace.scratch, from, to, use);
}

HeldMap apply(FeatureWorkspace& workspace, const Conv& conv, const Map& from, Activation after) {
  const ConvShape& shape = conv.shape();
  HeldMap to(workspace.maps, shape.out_height(from.H), shape.out_width(from.W), shape.out);
  run_conv(workspace, conv, from, *to, {.after = after});
  return to;
}

void mean_of_positions(const Map& map, float* out) {
  const int pixels = map.H * map.W;
  std::vector<double> sums(map.C, 0.0);
  for (int i = 0; i < pixels; ++i) {
    const float* from = map.as<const float>() + map.at(0, i);
    for (int c = 0; c < map.C; ++c) sums[c] += from[c];
  }
  for (int c = 0; c < map.C; ++c) out[c] = static_cast<float>(sums[c] / pixels);
}

void apply_linear(FeatureWorkspace& workspace, const Conv& linear, const float* row, float* out) {
  HeldMap from(workspace.maps, 1, 1, linear.shape().in);
  std::copy_n(row, from->C, from->as<float>());
  const HeldMap to = apply(workspace, linear, *from, Activation::None);
  std::copy_n(to->as<const float>(), to->C, out);
}

}  // namespace dydit::eval
