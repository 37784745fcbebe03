// In float32, as diffusers does it.
#include "dydit/data/latent_scale.h"

#include <cassert>
#include <cmath>
#include <utility>

#include <nlohmann/json.hpp>

#include "dydit/base/error.h"
#include "dydit/io/json.h"

namespace dydit {
namespace {

using nlohmann::json;

// What is subtracted, multiplied by and divided by for one channel.
struct Step {
  float offset, factor, divisor;

  Step(const LatentScale& scale, size_t channel)
      : offset(static_cast<float>(scale.mean.empty() ? scale.shift : scale.mean[channel])),
        factor(static_cast<float>(scale.scaling)),
        divisor(scale.std.empty() ? 1.0f : static_cast<float>(scale.std[channel])) {}
};

template <typename Fn>
at::Tensor each_channel(const at::Tensor& in, const LatentScale& scale, const Fn& fn) {
  const at::Tensor out = in.to(at::kFloat).contiguous().clone();
  const auto channels = static_cast<size_t>(out.size(-3));
  assert(scale.mean.empty() || scale.mean.size() == channels);
  const auto plane = static_cast<size_t>(out.size(-2) * out.size(-1));
  float* values = out.data_ptr<float>();
  for (size_t i = 0; i < static_cast<size_t>(out.numel()); i += plane) {
    const Step step(scale, i / plane % channels);
    for (size_t j = 0; j < plane; ++j) values[i + j] = fn(step, values[i + j]);
  }
  return out;
}

double finite(const json& value, const std::string& where) {
  DYDIT_CHECK(value.is_number() && std::isfinite(value.get<double>()), "{}: {} is no finite number", where,
              shown(value));
  return value.get<double>();
}

}  // namespace

at::Tensor LatentScale::to_model(const at::Tensor& z) const {
  return each_channel(z, *this, [](const Step& s, float v) { return (v - s.offset) * s.factor / s.divisor; });
}

at::Tensor LatentScale::to_autoencoder(const at::Tensor& x) const {
  return each_channel(x, *this, [](const Step& s, float v) { return v * s.divisor / s.factor + s.offset; });
}

void LatentScale::to_model(std::span<float> z, int channels) const {
  const size_t plane = z.size() / static_cast<size_t>(channels);
  for (size_t c = 0; c < static_cast<size_t>(channels); ++c) {
    const Step s(*this, c);
    for (float& v : z.subspan(c * plane, plane)) v = (v - s.offset) * s.factor / s.divisor;
  }
}

json scale_to_json(const LatentScale& scale) {
  json result = {{"scaling", scale.scaling}, {"shift", scale.shift}};
  if (!scale.mean.empty()) {
    result["mean"] = scale.mean;
    result["std"] = scale.std;
  }
  return result;
}

LatentScale scale_from_json(const json& value, int channels, const std::string& where) {
  DYDIT_CHECK(value.is_object() && value.contains("scaling"),
              "{}: expected an object with \"scaling\", got {}", where, shown(value));
  LatentScale scale;
  scale.scaling = finite(value["scaling"], where);
  if (value.contains("shift")) scale.shift = finite(value["shift"], where);
  DYDIT_CHECK(scale.scaling != 0, "{}: scaling is 0", where);
  for (const auto& [key, list] : {std::pair{"mean", &scale.mean}, {"std", &scale.std}}) {
    if (!value.contains(key)) continue;
    DYDIT_CHECK(value[key].is_array() && value[key].size() == static_cast<size_t>(channels),
                "{}: {} has not one value for each of {} channels", where, key, channels);
    for (const json& number : value[key]) list->push_back(finite(number, where));
  }
  DYDIT_CHECK(scale.mean.size() == scale.std.size(), "{}: mean and std belong together", where);
  for (const double std : scale.std) DYDIT_CHECK(std > 0, "{}: std {} is not above 0", where, std);
  return scale;
}

}  // namespace dydit
