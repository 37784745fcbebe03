// Tensors between files and LibTorch: both share the memory where they can.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include <ATen/ATen.h>

#include "dydit/base/error.h"
#include "dydit/model/checkpoint.h"
#include "dydit/model/checkpoint_parts.h"

namespace dydit {
namespace {

// In the order of Dtype.
constexpr std::array kScalarTypes = {at::kDouble, at::kFloat, at::kHalf, at::kBFloat16, at::kLong,
                                     at::kInt,    at::kShort, at::kChar, at::kByte,     at::kBool};

Dtype from_scalar_type(at::ScalarType type) {
  const auto found = std::find(kScalarTypes.begin(), kScalarTypes.end(), type);
  DYDIT_CHECK(found != kScalarTypes.end(), "tensors of type {} cannot be written to a file",
              c10::toString(type));
  return static_cast<Dtype>(found - kScalarTypes.begin());
}

}  // namespace

// NaN is both the least and the largest.
bool is_finite(const at::Tensor& tensor) {
  if (tensor.numel() == 0) return true;
  const auto [least, largest] = at::aminmax(tensor);
  return std::isfinite(least.item<double>()) && std::isfinite(largest.item<double>());
}

at::Tensor to_tensor(const TensorView& view, std::shared_ptr<const void> owner) {
  const at::ScalarType type = kScalarTypes[static_cast<size_t>(view.dtype)];
  const size_t alignment = dtype_size(view.dtype);
  void* data = const_cast<std::byte*>(view.data);
  const auto keep_alive = [owner](void*) {};
  if (reinterpret_cast<uintptr_t>(data) % alignment != 0) {
    // from_blob needs aligned elements; the bytes are moved to where they are.
    const size_t extent = extent_bytes(view);
    const at::Tensor copy = at::empty({static_cast<int64_t>(extent / alignment)}, type);
    if (extent > 0) std::memcpy(copy.data_ptr(), data, extent);
    return view.strides.empty() ? copy.view(view.shape) : copy.as_strided(view.shape, view.strides);
  }
  if (view.strides.empty()) return at::from_blob(data, view.shape, keep_alive, type);
  return at::from_blob(data, view.shape, view.strides, keep_alive, type);
}

TensorView to_view(const at::Tensor& tensor) {
  TORCH_INTERNAL_ASSERT(tensor.is_contiguous() && tensor.is_cpu());
  return {from_scalar_type(tensor.scalar_type()),
          tensor.sizes().vec(),
          {},
          static_cast<const std::byte*>(tensor.data_ptr())};
}

}  // namespace dydit
