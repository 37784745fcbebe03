// A tensor as it lies in a file: dtype, shape, strides and a pointer. The readers and writers speak only
// this, so that they build without LibTorch; dydit/model turns it into at::Tensor.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace dydit {

enum class Dtype { F64, F32, F16, BF16, I64, I32, I16, I8, U8, Bool };

/// The readers refuse tensors of more dimensions; a weight has at most 5.
inline constexpr size_t kMaxRank = 8;

/// Bytes of one element.
size_t dtype_size(Dtype dtype);
/// The safetensors spelling: "F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL".
std::string_view dtype_name(Dtype dtype);
/// The dtype of a safetensors spelling; nothing for one we do not know.
std::optional<Dtype> dtype_from_name(std::string_view name);

struct TensorView {
  Dtype dtype = Dtype::F32;
  std::vector<int64_t> shape;
  std::vector<int64_t> strides;  // in elements; empty = contiguous, row-major
  // Where the file has it: often not aligned to the element. Read it with memcpy, never through a float*.
  const std::byte* data = nullptr;

  int64_t numel() const;
};

using TensorViews = std::map<std::string, TensorView>;

/// The product of the sizes; nothing when it does not fit int64_t or a size is negative.
std::optional<int64_t> checked_numel(std::span<const int64_t> shape);

/// True when the elements lie row-major without gaps.
bool is_contiguous(const TensorView& tensor);

/// The bytes from the first to the last element of a view whose bounds were checked.
size_t extent_bytes(const TensorView& tensor);

/// Throws Error (begins with `name`) when the tensors, each written out, are larger than what they lie in:
/// views of one storage make a small file a model of any size. Twice the bytes that they cover together, and
/// 16 MiB in any case, are allowed: weights may be tied.
void check_covered(const TensorViews& tensors, const std::string& name);

/// "(2, 3)" for messages.
std::string shape_text(std::span<const int64_t> shape);

}  // namespace dydit
