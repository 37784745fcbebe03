// The two types of number that models compute in.
#pragma once

#include <string_view>

#include <c10/core/DeviceType.h>
#include <c10/core/ScalarType.h>

#include "dydit/base/enum_names.h"
#include "dydit/base/isa.h"

namespace dydit {

inline constexpr EnumNames<at::ScalarType, 2> kDtypeNames = {"dtype",
                                                             {{"bf16", at::kBFloat16}, {"f32", at::kFloat}}};

/// What "auto" means: bfloat16 on a GPU and where the processor multiplies it natively (within DYDIT_ISA),
/// else float32.
inline at::ScalarType auto_dtype(at::DeviceType device = at::kCPU) {
  return device == at::kCUDA || has_native_bf16(active_isa()) ? at::kBFloat16 : at::kFloat;
}

/// "auto" or one of kDtypeNames; throws UsageError.
inline at::ScalarType dtype_of(std::string_view name, at::DeviceType device = at::kCPU) {
  return name == "auto" ? auto_dtype(device) : kDtypeNames.at(name);
}

}  // namespace dydit
