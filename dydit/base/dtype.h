// The two types of number that models compute in.
#pragma once

#include <string_view>

#include <c10/core/DeviceType.h>
#include <c10/core/ScalarType.h>

#include "dydit/base/enum_names.h"
#include "dydit/base/level.h"

namespace dydit {

inline constexpr EnumNames<at::ScalarType, 2> kDtypeNames = {"dtype",
                                                             {{"bf16", at::kBFloat16}, {"f32", at::kFloat}}};

/// And what the CPU engine computes models in: int8 quantises qkv, proj, fc1 and fc2.
inline constexpr EnumNames<at::ScalarType, 3> kModelDtypeNames = {
    "dtype", {{"bf16", at::kBFloat16}, {"f32", at::kFloat}, {"int8", at::kChar}}};

/// What "auto" means: bfloat16 on a GPU and where the processor's dot products pay (within DYDIT_ISA), else
/// float32.
inline at::ScalarType auto_dtype(at::DeviceType device = at::kCPU) {
  return device == at::kCUDA || bf16_dot_pays() ? at::kBFloat16 : at::kFloat;
}

/// "auto" or one of kModelDtypeNames; throws UsageError.
inline at::ScalarType dtype_of(std::string_view name, at::DeviceType device = at::kCPU) {
  return name == "auto" ? auto_dtype(device) : kModelDtypeNames.at(name);
}

}  // namespace dydit
