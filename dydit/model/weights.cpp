// Tensors between files and LibTorch: both share the memory where they can.
#include <cstring>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "dydit/base/error.h"
#include "dydit/model/checkpoint.h"

namespace dydit {
namespace {

at::ScalarType to_scalar_type(Dtype dtype) {
  switch (dtype) {
    case Dtype::F64:
      return at::kDouble;
    case Dtype::F32:
      return at::kFloat;
    case Dtype::F16:
      return at::kHalf;
    case Dtype::BF16:
      return at::kBFloat16;
    case Dtype::I64:
      return at::kLong;
    case Dtype::I32:
      return at::kInt;
    case Dtype::I16:
      return at::kShort;
    case Dtype::I8:
      return at::kChar;
    case Dtype::U8:
      return at::kByte;
    case Dtype::Bool:
      return at::kBool;
  }
  throw Error("unknown dtype");
}

Dtype from_scalar_type(at::ScalarType type) {
  for (const Dtype dtype : {Dtype::F64, Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::I64, Dtype::I32,
                            Dtype::I16, Dtype::I8, Dtype::U8, Dtype::Bool}) {
    if (to_scalar_type(dtype) == type) return dtype;
  }
  throw Error(fmt::format("tensors of type {} cannot be written to a file", c10::toString(type)));
}

}  // namespace

at::Tensor to_tensor(const TensorView& view, std::shared_ptr<const void> owner) {
  const at::ScalarType type = to_scalar_type(view.dtype);
  const size_t alignment = dtype_size(view.dtype);
  void* data = const_cast<std::byte*>(view.data);
  const auto keep_alive = [owner](void*) {};
  if (reinterpret_cast<uintptr_t>(data) % alignment != 0) {
    // from_blob needs aligned elements; the bytes are moved to where they are.
    std::vector<int64_t> strides = view.strides;
    int64_t extent = view.numel();
    if (!strides.empty() && extent > 0) {
      extent = 1;
      for (size_t i = 0; i < strides.size(); ++i) extent += (view.shape[i] - 1) * strides[i];
    }
    const at::Tensor copy = at::empty({extent}, type);
    if (extent > 0) std::memcpy(copy.data_ptr(), data, extent * alignment);
    return strides.empty() ? copy.view(view.shape) : copy.as_strided(view.shape, strides);
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
