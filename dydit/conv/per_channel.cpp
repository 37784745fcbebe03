#include "dydit/conv/per_channel.h"

#include <algorithm>

#include <ATen/ATen.h>

#include "dydit/engine/cpu/packed_linear.h"

namespace dydit::conv {
namespace {

// The taps of output `at` that lie inside `size` pixels.
struct Taps {
  Taps(const Extent& extent, int stride, int at, int size) {
    const int begin = at * stride - extent.before;
    first = std::max(0, -begin);
    pixel = begin + first;
    count = std::min(extent.taps, size - begin) - first;
  }
  bool same_as(const Taps& other) const { return first == other.first && count == other.count; }
  int first, pixel, count;  // pixel: of the first
};

}  // namespace

void pool(Team& team, const PoolShape& shape, const Map& from, Map& to, int channel) {
  team.run(to.H, [&](int y, int) {
    const Taps rows(shape.rows, shape.stride, y, from.H);
    for (int x = 0; x < to.W; ++x) {
      const Taps columns(shape.columns, shape.stride, x, from.W);
      kernels().pool({to.as<float>() + to.at(y, x) + channel,
                      from.as<const float>() + from.at(rows.pixel, columns.pixel), from.W * from.stride,
                      from.stride, rows.count, columns.count, from.C, shape.largest});
    }
  });
}

DepthwiseConv::DepthwiseConv(const at::Tensor& weight, const at::Tensor& bias, const Extent& rows,
                             const Extent& columns, int stride)
    : shape_{static_cast<int>(weight.size(0)), static_cast<int>(weight.size(0)), stride, rows, columns},
      columns_(cpu::ceil_div(shape_.in, cpu::kPanel) * cpu::kPanel) {
  const int taps = rows.taps * columns.taps;
  const at::Tensor w = weight.to(at::kFloat).reshape({shape_.in, taps}).t().contiguous(),
                   b = bias.to(at::kFloat).contiguous();
  weights_.assign(static_cast<size_t>(taps) * columns_, 0.0f);
  bias_.assign(columns_, 0.0f);
  for (int tap = 0; tap < taps; ++tap)
    std::copy_n(w.const_data_ptr<float>() + tap * shape_.in, shape_.in, weights_.data() + tap * columns_);
  std::copy_n(b.const_data_ptr<float>(), shape_.in, bias_.data());
}

void DepthwiseConv::run(Team& team, const Map& from, Map& to) const {
  const int64_t weight_row = int64_t{shape_.columns.taps} * columns_;
  team.run(to.H, [&](int y, int) {
    const Taps rows(shape_.rows, shape_.stride, y, from.H);
    const auto columns_at = [&](int x) { return Taps(shape_.columns, shape_.stride, x, from.W); };
    for (int x = 0, end; x < to.W; x = end) {
      const Taps columns = columns_at(x);
      end = x + 1;
      while (end < to.W && columns_at(end).same_as(columns)) ++end;
      kernels().depthwise(
          {to.as<float>() + to.at(y, x), from.as<const float>() + from.at(rows.pixel, columns.pixel),
           from.W * from.stride, from.stride, rows.count, columns.count, shape_.in,
           weights_.data() + rows.first * weight_row + int64_t{columns.first} * columns_, weight_row,
           columns_, bias_.data(), kRelu6Ceiling, end - x, to.stride, shape_.stride * from.stride});
    }
  });
}

}  // namespace dydit::conv
