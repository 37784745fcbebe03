// See the header.
#include "dydit/base/dtype.h"

#include "dydit/base/isa.h"

namespace dydit {

at::ScalarType auto_dtype(at::DeviceType device) {
  return device == at::kCUDA || has_native_bf16(active_isa()) ? at::kBFloat16 : at::kFloat;
}

at::ScalarType dtype_of(std::string_view name, at::DeviceType device) {
  return name == "auto" ? auto_dtype(device) : kDtypeNames.at(name);
}

}  // namespace dydit
