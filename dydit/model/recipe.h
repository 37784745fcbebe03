// Weights by recipe: a function of a tensor's name and shape, the same on every machine and in every
// language. Vectors recorded with them stand for models that are too large to keep.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <ATen/core/Tensor.h>

namespace dydit {

/// FNV-1a, 64 bits.
uint64_t fnv1a(std::string_view text);

/// float32 in [0, 1): element i from 24 bits of splitmix64(fnv1a(name), i).
at::Tensor recipe_uniform(const std::string& name, const std::vector<int64_t>& shape);

/// From u, recipe_uniform's: norm weights 0.5 + u, norm biases
/// (2u - 1) / 4, other biases (2u - 1) / 10, other weights (2u - 1) sqrt(3 / fan_in), fan_in being the
/// product of all dimensions but the first. float32.
at::Tensor recipe_tensor(const std::string& name, const std::vector<int64_t>& shape);

}  // namespace dydit
