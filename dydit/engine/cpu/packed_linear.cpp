#include "dydit/engine/cpu/packed_linear.h"

#include <algorithm>
#include <numeric>

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

PackedLinear::PackedLinear(const at::Tensor& weight, int out_segments, int in_segments, const Level& level)
    : level_(level),
      out_segments_(out_segments),
      out_size_(static_cast<int>(weight.size(0)) / out_segments),
      in_segments_(in_segments),
      in_size_(static_cast<int>(weight.size(1)) / in_segments),
      panels_(ceil_div(out_size_, kPanel)),
      segment_pairs_(ceil_div(in_size_, inputs_of_pair())) {}

PackedLinear::PackedLinear(const at::Tensor& weight, const at::Tensor& bias, int out_segments,
                           int in_segments, const Level& level, bool narrow, Arena& arena, Team& team,
                           std::span<const int> rows)
    : PackedLinear(weight, out_segments, in_segments, level) {
  // A line of a narrow panel for bfloat16 activations is two pairs, which a segment may not share with the
  // next.
  narrow_ = narrow && ends_narrow(out_size_) && (!bf16_activations() || segment_pairs_ % 2 == 0);
  const at::Tensor values = weight.to(level.weights).contiguous();
  level.weights == at::kBFloat16 ? pack<uint16_t>(values, bias, arena, team, rows)
                                 : pack<float>(values, bias, arena, team, rows);
}

PackedLinear::PackedLinear(const QuantizedWeight& weight, const at::Tensor& bias, int out_segments,
                           const Level& level, Arena& arena, Team& team, std::span<const int> rows)
    : PackedLinear(weight.values, out_segments, static_cast<int>(weight.scale.size(1)), level) {
  const at::Tensor values = weight.values.contiguous(), scales = weight.scale.to(at::kFloat).contiguous();
  pack<int8_t>(values, bias, arena, team, rows);
  scales_.assign(bias_.size() * in_segments_, 0.0f);
  offsets_.assign(scales_.size(), 0);
  for (int out = 0; out < out_segments_ * out_size_; ++out) {
    const int64_t row = rows.empty() ? out : rows[out];
    const size_t panel = out / out_size_ * panels_ + out % out_size_ / kPanel;
    for (int s = 0; s < in_segments_; ++s) {
      const size_t at = (panel * in_segments_ + s) * kPanel + out % out_size_ % kPanel;
      scales_[at] = scales.data_ptr<float>()[row * in_segments_ + s];
      const int8_t* part = values.data_ptr<int8_t>() + (row * in_segments_ + s) * in_size_;
      offsets_[at] = -kInt8Zero * std::accumulate(part, part + in_size_, 0);
    }
  }
  if (!weight.smooth.defined()) return;
  const at::Tensor factors = weight.smooth.to(at::kFloat).reciprocal().contiguous();
  factors_.assign(factors.data_ptr<float>(), factors.data_ptr<float>() + factors.numel());
}

template <typename T>
void PackedLinear::pack(const at::Tensor& values, const at::Tensor& bias, Arena& arena, Team& team,
                        std::span<const int> rows) {
  const int total = out_segments_ * panels_, row_bytes = int8() ? 1 : bf16_activations() ? 2 : 4;
  data_ =
      static_cast<std::byte*>(arena.take(static_cast<size_t>(first_element(out_segments_, 0)) * sizeof(T)));
  bias_.assign(static_cast<size_t>(total) * kPanel, 0.0f);
  const at::Tensor biases = bias.to(at::kFloat).contiguous();
  const int64_t in = values.size(1);
  team.run(total, [&](int index, int) {
    const int segment = index / panels_, panel = index % panels_, first = panel * kPanel,
              width = std::min(kPanel, out_size_ - first);
    const T* from[kPanel];
    for (int c = 0; c < width; ++c) {
      const int out = segment * out_size_ + first + c, row = rows.empty() ? out : rows[out];
      bias_[static_cast<size_t>(index) * kPanel + c] = biases.data_ptr<float>()[row];
      from[c] = static_cast<const T*>(values.data_ptr()) + row * in;
    }
    const int columns = is_narrow(panel) ? kNarrowPanel : kPanel, inputs = 64 / (columns * row_bytes);
    pack_panel(reinterpret_cast<T*>(data_) + first_element(segment, panel), columns, inputs, from, width,
               in_segments_, in_size_, padded_in_size());
  });
}

int64_t PackedLinear::first_element(int segment, int index) const {
  return (int64_t{segment} * padded_out_size() + index * kPanel) * in_segments_ * padded_in_size();
}

void PackedLinear::add_panels(int segment, int column, Panels& panels) const {
  const auto element = static_cast<int64_t>(c10::elementSize(level_.weights));
  for (int p = 0; p < panels_; ++p) {
    const int first = p * kPanel;
    const size_t index = static_cast<size_t>(segment) * panels_ + p, scales = index * in_segments_ * kPanel;
    (is_narrow(p) ? panels.narrow : panels.whole)
        .push_back({data_ + first_element(segment, p) * element, bias_.data() + index * kPanel,
                    column + first, std::min(kPanel, out_size_ - first),
                    int8() ? scales_.data() + scales : nullptr, int8() ? offsets_.data() + scales : nullptr});
  }
}

}  // namespace dydit::cpu
