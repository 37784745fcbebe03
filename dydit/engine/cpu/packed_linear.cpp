#include "dydit/engine/cpu/packed_linear.h"

#include <ATen/ATen.h>

namespace dydit::cpu {
namespace {

int ceil_div(int a, int b) { return (a + b - 1) / b; }

// One output column of a panel; T is the stored type's bits.
template <typename T>
void pack_column(T* panel, int column, const T* row, int in_segments, int in_size, int segment_pairs) {
  constexpr int kWithinPair = sizeof(T) == 2 ? 2 : 1;  // bfloat16 pairs lie side by side
  for (int s = 0; s < in_segments; ++s, row += in_size) {
    for (int k = 0; k < in_size; ++k) {
      const int64_t pair = int64_t{s} * segment_pairs + k / 2;
      const int64_t within = kWithinPair == 2 ? 2 * column + k % 2 : (k % 2) * kPanel + column;
      panel[pair * 2 * kPanel + within] = row[k];
    }
  }
}

}  // namespace

PackedLinear::PackedLinear(const at::Tensor& weight, const at::Tensor& bias, int out_segments,
                           int in_segments, bool bf16, Arena& arena, Team& team, std::span<const int> rows)
    : out_segments_(out_segments),
      out_size_(static_cast<int>(weight.size(0)) / out_segments),
      in_segments_(in_segments),
      in_size_(static_cast<int>(weight.size(1)) / in_segments),
      panels_(ceil_div(out_size_, kPanel)),
      segment_pairs_(ceil_div(in_size_, 2)),
      bf16_(bf16) {
  const int total = out_segments_ * panels_, element = bf16 ? 2 : 4;
  const int64_t panel_elements = int64_t{in_segments_} * segment_pairs_ * 2 * kPanel;
  data_ = static_cast<std::byte*>(arena.take(static_cast<size_t>(total * panel_elements) * element));
  bias_.assign(static_cast<size_t>(total) * kPanel, 0.0f);
  const at::Tensor values = weight.to(bf16 ? at::kBFloat16 : at::kFloat).contiguous();
  const at::Tensor biases = bias.to(at::kFloat).contiguous();
  const int64_t in = weight.size(1);
  team.run(total, [&](int index, int) {
    for (int c = 0; c < kPanel; ++c) {
      const int within = index % panels_ * kPanel + c;
      if (within >= out_size_) return;
      const int out = index / panels_ * out_size_ + within, row = rows.empty() ? out : rows[out];
      bias_[static_cast<size_t>(index) * kPanel + c] = biases.data_ptr<float>()[row];
      if (bf16) {
        pack_column(reinterpret_cast<uint16_t*>(data_) + index * panel_elements, c,
                    static_cast<const uint16_t*>(values.data_ptr()) + row * in, in_segments_, in_size_,
                    segment_pairs_);
      } else {
        pack_column(reinterpret_cast<float*>(data_) + index * panel_elements, c,
                    values.data_ptr<float>() + row * in, in_segments_, in_size_, segment_pairs_);
      }
    }
  });
}

const std::byte* PackedLinear::panel(int segment, int index) const {
  const size_t bytes = static_cast<size_t>(in_segments_) * segment_pairs_ * 2 * kPanel * (bf16_ ? 2 : 4);
  return data_ + (static_cast<size_t>(segment) * panels_ + index) * bytes;
}

void PackedLinear::add_panels(int segment, int column, std::vector<Panel>& panels) const {
  for (int p = 0; p < panels_; ++p) {
    const int first = p * kPanel, left = out_size_ - first;
    panels.push_back({panel(segment, p), bias_.data() + (static_cast<size_t>(segment) * panels_ + p) * kPanel,
                      column + first, left < kPanel ? left : kPanel});
  }
}

}  // namespace dydit::cpu
