// Dtypes and shapes of tensors in files. One table holds what is known of a dtype.
#include "dydit/io/tensor_view.h"

#include <array>

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace dydit {
namespace {

struct DtypeRow {
  Dtype dtype;
  std::string_view name;
  size_t size;
};

// In the order of the enum.
constexpr std::array<DtypeRow, 10> kDtypes = {{{Dtype::F64, "F64", 8},
                                               {Dtype::F32, "F32", 4},
                                               {Dtype::F16, "F16", 2},
                                               {Dtype::BF16, "BF16", 2},
                                               {Dtype::I64, "I64", 8},
                                               {Dtype::I32, "I32", 4},
                                               {Dtype::I16, "I16", 2},
                                               {Dtype::I8, "I8", 1},
                                               {Dtype::U8, "U8", 1},
                                               {Dtype::Bool, "BOOL", 1}}};

}  // namespace

size_t dtype_size(Dtype dtype) { return kDtypes[static_cast<size_t>(dtype)].size; }

std::string_view dtype_name(Dtype dtype) { return kDtypes[static_cast<size_t>(dtype)].name; }

std::optional<Dtype> dtype_from_name(std::string_view name) {
  for (const DtypeRow& row : kDtypes) {
    if (row.name == name) return row.dtype;
  }
  return std::nullopt;
}

int64_t TensorView::numel() const {
  int64_t product = 1;
  for (int64_t size : shape) product *= size;
  return product;
}

std::optional<int64_t> checked_numel(std::span<const int64_t> shape) {
  int64_t product = 1;
  bool overflow = false;
  bool empty = false;
  for (int64_t size : shape) {
    if (size < 0) return std::nullopt;
    // A zero makes the tensor empty, but not the sizes around it sane: their product must fit all the same.
    empty = empty || size == 0;
    overflow = overflow || (size > 0 && __builtin_mul_overflow(product, size, &product));
  }
  if (overflow) return std::nullopt;
  return empty ? 0 : product;
}

bool is_contiguous(const TensorView& tensor) {
  if (tensor.strides.empty()) return true;
  if (tensor.strides.size() != tensor.shape.size()) return false;
  int64_t expected = 1;
  for (size_t i = tensor.shape.size(); i-- > 0;) {
    if (tensor.shape[i] != 1 && tensor.strides[i] != expected) return false;
    expected *= tensor.shape[i];
  }
  return true;
}

std::string shape_text(std::span<const int64_t> shape) { return fmt::format("({})", fmt::join(shape, ", ")); }

}  // namespace dydit
