#include "dydit/model/recipe.h"

#include <cmath>
#include <string_view>

#include <ATen/ATen.h>

namespace dydit {
namespace {

// The i-th number of the sequence that begins with `seed`.
uint64_t splitmix64(uint64_t seed, uint64_t i) {
  uint64_t s = seed + (i + 1) * 0x9E3779B97F4A7C15u;
  s = (s ^ s >> 30) * 0xBF58476D1CE4E5B9u;
  s = (s ^ s >> 27) * 0x94D049BB133111EBu;
  return s ^ s >> 31;
}

}  // namespace

uint64_t fnv1a(std::string_view text) {
  uint64_t hash = 0xCBF29CE484222325u;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001B3u;
  return hash;
}

at::Tensor recipe_uniform(const std::string& name, const std::vector<int64_t>& shape) {
  const at::Tensor tensor = at::empty(shape, at::kFloat);
  const uint64_t seed = fnv1a(name);
  float* const out = tensor.data_ptr<float>();
  const auto count = static_cast<uint64_t>(tensor.numel());
  for (uint64_t i = 0; i < count; ++i) out[i] = static_cast<float>(splitmix64(seed, i) >> 40) * 0x1p-24f;
  return tensor;
}

at::Tensor recipe_tensor(const std::string& name, const std::vector<int64_t>& shape) {
  const at::Tensor u = recipe_uniform(name, shape);
  const bool norm = name.find("norm") != name.npos, weight = name.ends_with("weight");
  if (norm && weight) return u + 0.5f;
  float scale = norm ? 0.25f : 0.1f;
  if (weight) {
    const double fan_in = static_cast<double>(u.numel()) / static_cast<double>(shape[0]);
    scale = static_cast<float>(std::sqrt(3 / fan_in));
  }
  return (u * 2 - 1) * scale;
}

}  // namespace dydit
