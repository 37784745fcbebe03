// A linear layer's weights in the panels of kernels.h.
#pragma once

#include <span>
#include <vector>

#include <ATen/core/Tensor.h>

#include "dydit/base/team.h"
#include "dydit/engine/cpu/kernels.h"
#include "dydit/engine/cpu/memory.h"

namespace dydit::cpu {

inline int ceil_div(int a, int b) { return (a + b - 1) / b; }
inline int even(int n) { return (n + 1) / 2 * 2; }

/// Panels that are multiplied together; a register tile takes either kind.
struct Panels {
  std::vector<Panel> whole, narrow;

  void clear() {
    whole.clear();
    narrow.clear();
  }
};

/// Outputs are `out_segments` runs of `out_size` (a head's q, k and v; a channel group), inputs `in_segments`
/// runs of `in_size`; each run starts a new panel (pair), so runs can be left out.
class PackedLinear {
 public:
  PackedLinear() = default;
  /// weight (out, in) in any type, bias (out). Output o of the packed layer is row `rows[o]` of the weights
  /// (empty: row o). Stored in `arena`, which must live longer, in bfloat16 when `bf16`, else in float32.
  /// narrow: whether the kernel that multiplies them takes narrow panels.
  PackedLinear(const at::Tensor& weight, const at::Tensor& bias, int out_segments, int in_segments, bool bf16,
               bool narrow, Arena& arena, Team& team, std::span<const int> rows = {});

  /// Appends the panels of output segment `segment`, whose columns go to `column` and on.
  void add_panels(int segment, int column, Panels& panels) const;

  int out_segments() const { return out_segments_; }
  int out_size() const { return out_size_; }
  int segment_pairs() const { return segment_pairs_; }
  /// Columns that the panels of one output segment multiply, padding included.
  int padded_out_size() const { return panels_ * kPanel - (narrow_ ? kPanel - kNarrowPanel : 0); }
  bool bf16() const { return bf16_; }

 private:
  bool is_narrow(int index) const { return narrow_ && index == panels_ - 1; }
  int64_t first_element(int segment, int index) const;  // of a panel

  int out_segments_ = 0, out_size_ = 0, in_segments_ = 0, in_size_ = 0;
  int panels_ = 0, segment_pairs_ = 0;  // of one segment
  bool bf16_ = false, narrow_ = false;  // narrow: the last panel of every segment
  std::byte* data_ = nullptr;
  std::vector<float> bias_;
};

}  // namespace dydit::cpu
