// A linear layer's weights in the panels of kernels.h.
#pragma once

#include <span>
#include <vector>

#include <ATen/core/Tensor.h>

#include "dydit/base/team.h"
#include "dydit/engine/cpu/int8.h"
#include "dydit/engine/cpu/kernels.h"
#include "dydit/engine/cpu/memory.h"
#include "dydit/model/quantization.h"

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
  /// (empty: row o). Stored in `arena`, which must live longer, in bfloat16 when `bf16`, else in float32, in
  /// the order that the kernels of the activations' type take: bfloat16 when `bf16_rows`. narrow: whether
  /// these take narrow panels.
  PackedLinear(const at::Tensor& weight, const at::Tensor& bias, int out_segments, int in_segments, bool bf16,
               bool bf16_rows, bool narrow, Arena& arena, Team& team, std::span<const int> rows = {});

  /// Weights of 8-bit integers, quantised by the input segments.
  PackedLinear(const QuantizedWeight& weight, const at::Tensor& bias, int out_segments, Arena& arena,
               Team& team, std::span<const int> rows = {});

  /// Appends the panels of output segment `segment`, whose columns go to `column` and on.
  void add_panels(int segment, int column, Panels& panels) const;

  int out_segments() const { return out_segments_; }
  int out_size() const { return out_size_; }
  /// Pairs of inputs of a segment, quads of 8-bit ones.
  int segment_pairs() const { return segment_pairs_; }
  /// Inputs of a segment, padding included.
  int padded_in_size() const { return segment_pairs_ * (int8_ ? kQuad : 2); }
  /// Panels of an output segment.
  int segment_panels() const { return panels_; }
  bool int8() const { return int8_; }
  /// (in) what 8-bit rows are multiplied with before they are rounded; null: 1.
  const float* factors() const { return factors_.empty() ? nullptr : factors_.data(); }
  /// Columns that the panels of one output segment multiply, padding included.
  int padded_out_size() const { return panels_ * kPanel - (narrow_ ? kPanel - kNarrowPanel : 0); }
  bool bf16() const { return bf16_; }
  /// Floats of as many panels as a register tile takes.
  size_t tile_floats() const {
    return size_t{kTilePanels} * kPanel * 2 * static_cast<size_t>(segment_pairs_) * in_segments_;
  }

 private:
  bool is_narrow(int index) const { return narrow_ && index == panels_ - 1; }
  int64_t first_element(int segment, int index) const;  // of a panel

  int out_segments_ = 0, out_size_ = 0, in_segments_ = 0, in_size_ = 0;
  int panels_ = 0, segment_pairs_ = 0;                 // of one segment
  bool bf16_ = false, int8_ = false, narrow_ = false;  // narrow: the last panel of every segment
  std::byte* data_ = nullptr;
  std::vector<float> bias_;
  std::vector<float> scales_, factors_;  // of 8-bit weights; (panels, in_segments, 16)
  std::vector<int32_t> offsets_;         // likewise
};

}  // namespace dydit::cpu
