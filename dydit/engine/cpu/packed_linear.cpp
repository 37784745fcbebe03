#include "dydit/engine/cpu/packed_linear.h"

#include <algorithm>
#include <numeric>
#include <type_traits>

#include <ATen/ATen.h>

namespace dydit::cpu {
namespace {

// A panel of `columns` output columns, of which the weights of the first `width` lie in `rows`; T is the
// stored type's bits. Line by line of the panel, `inputs` of every column each, so that each is written once:
// a panel does not fit the first-level cache.
template <typename T>
void pack_panel(T* panel, int columns, int inputs, const T* const* rows, int width, int in_segments,
                int in_size, int padded_in_size) {
  for (int s = 0; s < in_segments; ++s) {
    T* out = panel + int64_t{s} * padded_in_size * columns;
    for (int k = 0; k < in_size; ++k) {
      T* to = out + k / inputs * inputs * columns + k % inputs;
      for (int c = 0; c < width; ++c) to[c * inputs] = rows[c][int64_t{s} * in_size + k];
    }
  }
}

}  // namespace

PackedLinear::PackedLinear(const at::Tensor& weight, const at::Tensor& bias, int out_segments,
                           int in_segments, bool bf16, bool bf16_rows, bool narrow, Arena& arena, Team& team,
                           std::span<const int> rows)
    : out_segments_(out_segments),
      out_size_(static_cast<int>(weight.size(0)) / out_segments),
      in_segments_(in_segments),
      in_size_(static_cast<int>(weight.size(1)) / in_segments),
      panels_(ceil_div(out_size_, kPanel)),
      segment_pairs_(ceil_div(in_size_, 2)),
      bf16_(bf16) {
  // A line of a narrow bfloat16 panel is two pairs, which a segment may not share with the next.
  narrow_ = narrow && ends_narrow(out_size_) && (!bf16_rows || segment_pairs_ % 2 == 0);
  const int total = out_segments_ * panels_, element = bf16 ? 2 : 4;
  data_ = static_cast<std::byte*>(arena.take(static_cast<size_t>(first_element(out_segments_, 0)) * element));
  bias_.assign(static_cast<size_t>(total) * kPanel, 0.0f);
  const at::Tensor values = weight.to(bf16 ? at::kBFloat16 : at::kFloat).contiguous();
  const at::Tensor biases = bias.to(at::kFloat).contiguous();
  const int64_t in = weight.size(1);
  const auto pack = [&](auto* data) {
    using T = std::remove_pointer_t<decltype(data)>;
    team.run(total, [&, data](int index, int) {
      const int segment = index / panels_, panel = index % panels_, first = panel * kPanel,
                width = std::min(kPanel, out_size_ - first);
      const T* from[kPanel];
      for (int c = 0; c < width; ++c) {
        const int out = segment * out_size_ + first + c, row = rows.empty() ? out : rows[out];
        bias_[static_cast<size_t>(index) * kPanel + c] = biases.data_ptr<float>()[row];
        from[c] = static_cast<const T*>(values.data_ptr()) + row * in;
      }
      const int columns = is_narrow(panel) ? kNarrowPanel : kPanel,
                inputs = 64 / (columns * (bf16_rows ? 2 : 4));
      pack_panel(data + first_element(segment, panel), columns, inputs, from, width, in_segments_, in_size_,
                 padded_in_size());
    });
  };
  if (bf16) {
    pack(reinterpret_cast<uint16_t*>(data_));
  } else {
    pack(reinterpret_cast<float*>(data_));
  }
}

PackedLinear::PackedLinear(const QuantizedWeight& weight, const at::Tensor& bias, int out_segments,
                           Arena& arena, Team& team, std::span<const int> rows)
    : out_segments_(out_segments),
      out_size_(static_cast<int>(weight.values.size(0)) / out_segments),
      in_segments_(static_cast<int>(weight.scale.size(1))),
      in_size_(static_cast<int>(weight.values.size(1)) / in_segments_),
      panels_(ceil_div(out_size_, kPanel)),
      segment_pairs_(ceil_div(in_size_, kQuad)),
      int8_(true) {
  const int total = out_segments_ * panels_;
  data_ = static_cast<std::byte*>(arena.take(static_cast<size_t>(first_element(out_segments_, 0))));
  bias_.assign(static_cast<size_t>(total) * kPanel, 0.0f);
  scales_.assign(static_cast<size_t>(total) * in_segments_ * kPanel, 0.0f);
  offsets_.assign(scales_.size(), 0);
  if (weight.smooth.defined()) {
    const at::Tensor factors = weight.smooth.to(at::kFloat).reciprocal().contiguous();
    factors_.assign(factors.data_ptr<float>(), factors.data_ptr<float>() + factors.numel());
  }
  const at::Tensor values = weight.values.contiguous(), scales = weight.scale.to(at::kFloat).contiguous(),
                   biases = bias.to(at::kFloat).contiguous();
  team.run(total, [&](int index, int) {
    const int segment = index / panels_, panel = index % panels_, first = panel * kPanel,
              width = std::min(kPanel, out_size_ - first);
    const int8_t* from[kPanel];
    for (int c = 0; c < width; ++c) {
      const int out = segment * out_size_ + first + c, row = rows.empty() ? out : rows[out];
      bias_[static_cast<size_t>(index) * kPanel + c] = biases.data_ptr<float>()[row];
      from[c] = values.data_ptr<int8_t>() + int64_t{row} * in_segments_ * in_size_;
      for (int s = 0; s < in_segments_; ++s) {
        const size_t at = (static_cast<size_t>(index) * in_segments_ + s) * kPanel + c;
        scales_[at] = scales.data_ptr<float>()[int64_t{row} * in_segments_ + s];
        const int8_t* part = from[c] + int64_t{s} * in_size_;
        offsets_[at] = -kInt8Zero * std::accumulate(part, part + in_size_, 0);
      }
    }
    pack_panel(reinterpret_cast<int8_t*>(data_) + first_element(segment, panel), kPanel, kQuad, from, width,
               in_segments_, in_size_, padded_in_size());
  });
}

int64_t PackedLinear::first_element(int segment, int index) const {
  return (int64_t{segment} * padded_out_size() + index * kPanel) * in_segments_ * padded_in_size();
}

void PackedLinear::add_panels(int segment, int column, Panels& panels) const {
  for (int p = 0; p < panels_; ++p) {
    const int first = p * kPanel;
    const size_t index = static_cast<size_t>(segment) * panels_ + p;
    (is_narrow(p) ? panels.narrow : panels.whole)
        .push_back({data_ + first_element(segment, p) * (int8_   ? 1
                                                         : bf16_ ? 2
                                                                 : 4),
                    bias_.data() + index * kPanel, column + first, std::min(kPanel, out_size_ - first),
                    int8_ ? scales_.data() + index * in_segments_ * kPanel : nullptr,
                    int8_ ? offsets_.data() + index * in_segments_ * kPanel : nullptr});
  }
}

}  // namespace dydit::cpu
