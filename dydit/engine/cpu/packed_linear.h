// A linear layer's weights in the panels of kernels.h.
#pragma once

#include <span>
#include <vector>

#include <ATen/core/Tensor.h>

#include "dydit/base/level.h"
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
/// runs of `in_size`; each run starts a new panel (pair, quad), so runs can be left out.
class PackedLinear {
 public:
  PackedLinear() = default;
  /// weight (out, in) in any type, bias (out). Output o of the packed layer is row `rows[o]` of the weights
  /// (empty: row o). Stored in `arena`, which must live longer, in the level's type of weights, float32 or
  /// bfloat16, in the order that kernels of its activations take. narrow: whether these take narrow panels.
  PackedLinear(const at::Tensor& weight, const at::Tensor& bias, int out_segments, int in_segments,
               const Level& level, bool narrow, Arena& arena, Team& team, std::span<const int> rows = {});
  /// The same of 8-bit weights, which are quantised by the input segments.
  PackedLinear(const QuantizedWeight& weight, const at::Tensor& bias, int out_segments, const Level& level,
               Arena& arena, Team& team, std::span<const int> rows = {});

  /// Appends the panels of output segment `segment`, whose columns go to `column` and on.
  void add_panels(int segment, int column, Panels& panels) const;

  const Level& level() const { return level_; }
  bool int8() const { return level_.weights == at::kChar; }
  bool bf16_activations() const { return level_.activations == at::kBFloat16; }
  /// Whether its weights must be expanded to the activations' float32.
  bool expands() const { return level_ == kLevelBf16Fma; }

  int out_segments() const { return out_segments_; }
  int out_size() const { return out_size_; }
  /// Panels of an output segment, and columns that they multiply, padding included.
  int segment_panels() const { return panels_; }
  int padded_out_size() const { return panels_ * kPanel - (narrow_ ? kPanel - kNarrowPanel : 0); }
  /// Pairs of inputs of a segment, quads of 8-bit ones; and inputs, padding included.
  int segment_pairs() const { return segment_pairs_; }
  int padded_in_size() const { return segment_pairs_ * inputs_of_pair(); }
  /// (in) what 8-bit rows are multiplied with before they are rounded; null: 1.
  const float* factors() const { return factors_.empty() ? nullptr : factors_.data(); }
  /// Floats of as many panels as a register tile takes.
  size_t tile_floats() const {
    return static_cast<size_t>(kTilePanels * kPanel) * padded_in_size() * in_segments_;
  }

 private:
  PackedLinear(const at::Tensor& weight, int out_segments, int in_segments, const Level& level);
  // Of T, the bits of a weight: values (out, in).
  template <typename T>
  void pack(const at::Tensor& values, const at::Tensor& bias, Arena& arena, Team& team,
            std::span<const int> rows);

  int inputs_of_pair() const { return int8() ? kQuad : 2; }
  bool is_narrow(int index) const { return narrow_ && index == panels_ - 1; }
  int64_t first_element(int segment, int index) const;  // of a panel

  Level level_ = kLevelF32;
  int out_segments_ = 0, out_size_ = 0, in_segments_ = 0, in_size_ = 0;
  int panels_ = 0, segment_pairs_ = 0;  // of one segment
  bool narrow_ = false;                 // the last panel of every segment
  std::byte* data_ = nullptr;
  std::vector<float> bias_;
  // Of 8-bit weights: (panels, in_segments, 16), and the factors.
  std::vector<float> scales_, factors_;
  std::vector<int32_t> offsets_;
};

}  // namespace dydit::cpu
