// Dtypes and shapes of tensors in files. Tables hold what is known of a dtype.
#include "dydit/io/tensor_view.h"

#include <algorithm>
#include <array>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "dydit/base/error.h"

namespace dydit {
namespace {

// In the order of the enum.
constexpr std::array<std::string_view, 10> kNames = {"F64", "F32", "F16", "BF16", "I64",
                                                     "I32", "I16", "I8",  "U8",   "BOOL"};
constexpr std::array<size_t, 10> kSizes = {8, 4, 2, 2, 8, 4, 2, 1, 1, 1};

}  // namespace

size_t dtype_size(Dtype dtype) { return kSizes[static_cast<size_t>(dtype)]; }

std::string_view dtype_name(Dtype dtype) { return kNames[static_cast<size_t>(dtype)]; }

std::optional<Dtype> dtype_from_name(std::string_view name) {
  const auto found = std::find(kNames.begin(), kNames.end(), name);
  if (found == kNames.end()) return std::nullopt;
  return static_cast<Dtype>(found - kNames.begin());
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

size_t extent_bytes(const TensorView& tensor) {
  const int64_t elements = tensor.numel();
  if (elements == 0 || tensor.strides.empty())
    return static_cast<size_t>(elements) * dtype_size(tensor.dtype);
  int64_t last = 0;
  for (size_t i = 0; i < tensor.shape.size(); ++i) last += (tensor.shape[i] - 1) * tensor.strides[i];
  return static_cast<size_t>(last + 1) * dtype_size(tensor.dtype);
}

void check_covered(const TensorViews& tensors, const std::string& name) {
  constexpr size_t kAlwaysFine = 16 << 20;
  size_t written_out = 0, covered = 0;
  std::vector<std::pair<const std::byte*, const std::byte*>> ranges;
  for (const auto& [key, view] : tensors) {
    written_out += static_cast<size_t>(view.numel()) * dtype_size(view.dtype);
    ranges.emplace_back(view.data, view.data + extent_bytes(view));
  }
  std::sort(ranges.begin(), ranges.end());
  const std::byte* reached = nullptr;
  for (const auto& [begin, end] : ranges) {
    const std::byte* from = std::max(begin, reached);
    if (end > from) covered += static_cast<size_t>(end - from);
    reached = std::max(reached, end);
  }
  DYDIT_CHECK(
      written_out <= std::max(kAlwaysFine, 2 * covered),
      "{}: its tensors take {} bytes, but lie in {} bytes of the file, which they share; save each of "
      "them apart (tensor.clone())",
      name, written_out, covered);
}

std::string shape_text(std::span<const int64_t> shape) { return fmt::format("({})", fmt::join(shape, ", ")); }

}  // namespace dydit
