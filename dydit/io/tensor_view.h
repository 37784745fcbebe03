// A tensor as it lies in a file: dtype, shape, strides and a pointer. The readers and writers speak only
// this, so that they build without LibTorch; dydit/model turns it into at::Tensor.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace dydit {

enum class Dtype { F64, F32, F16, BF16, I64, I32, I16, I8, U8, Bool };

/// Bytes of one element.
size_t dtype_size(Dtype dtype);
/// The safetensors spelling: "F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL".
std::string_view dtype_name(Dtype dtype);

struct TensorView {
  Dtype dtype = Dtype::F32;
  std::vector<int64_t> shape;
  std::vector<int64_t> strides;  // in elements; empty = contiguous, row-major
  const std::byte* data = nullptr;

  int64_t numel() const;
};

using TensorViews = std::map<std::string, TensorView>;

}  // namespace dydit
