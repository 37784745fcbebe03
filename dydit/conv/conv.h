// A convolution over a map, cut into blocks of its output. One thread takes a block all the way: its patch of
// the input, normalised and activated; the tiles' products; bias, residual and moments. Blocks are the same
// for any number of threads, and moments are merged in their order, so that bits do not depend on threads.
#pragma once

#include <algorithm>
#include <vector>

#include <ATen/core/Tensor.h>

#include "dydit/base/team.h"
#include "dydit/conv/conv_kernels.h"
#include "dydit/conv/map.h"
#include "dydit/engine/cpu/packed_linear.h"

namespace dydit::conv {

/// Along one axis: taps, and zeros before the first and after the last pixel.
struct Extent {
  int taps = 3, before = 1, after = 1;
};
inline constexpr Extent kOneTap = {1, 0, 0};

struct ConvShape {
  int in = 0, out = 0, stride = 1;
  Extent rows = {}, columns = {};
  bool upsample = false;  // nearest x2 first

  int out_height(int height) const { return out_side(height, rows); }
  int out_width(int width) const { return out_side(width, columns); }
  bool is_pixelwise() const { return rows.taps == 1 && columns.taps == 1 && stride == 1 && !upsample; }

 private:
  int out_side(int in_side, const Extent& extent) const {
    return upsample ? 2 * in_side : (in_side + extent.before + extent.after - extent.taps + stride) / stride;
  }
};

/// A norm over groups of channels: (x - mean) / sqrt(variance + eps) weight + bias.
struct GroupNorm {
  int groups = 0;  // none: no norm
  double eps = 0;
  std::vector<float> weight, bias;  // (C)
};

/// What one convolution does beside its sums.
struct ConvUse {
  const GroupNorm* norm = nullptr;  // of its input, whose moments are there
  Activation before = Activation::None, after = Activation::None;
  bool add = false;  // to what the output holds
  int groups = 0;    // moments of the output are wanted for so many groups (0: none)
  int channel = 0;   // of the output, the first that is written
};

class Conv {
 public:
  Conv() = default;
  /// weight (out, in, rows, columns) or, of one pixel, (out, in), in any type; bias (out) or undefined.
  /// bf16: weights are rounded to bfloat16, and products are of bfloat16 values where the processor has such;
  /// else all is float32. The packed weights lie in `arena`.
  Conv(const at::Tensor& weight, const at::Tensor& bias, const ConvShape& shape, bool bf16, cpu::Arena& arena,
       Team& team);

  const ConvShape& shape() const { return shape_; }
  /// Multiply-adds of one image that are done in fact.
  int64_t executed_macs(int out_height, int out_width) const;
  /// Of each thread.
  size_t scratch_bytes() const;

  /// `to` has the output's size; it may be `from` where the shape is pixelwise. scratch: one a thread.
  void run(Team& team, std::vector<cpu::Buffer>& scratch, const Map& from, Map& to, const ConvUse& use) const;

 private:
  struct Block;
  struct Room;  // of a thread
  struct Grid;  // of blocks
  Grid grid(const Map& from, const Map& to) const;
  Block block(int index, const Grid& grid) const;
  Room room(const cpu::Buffer& scratch) const;
  template <typename A>
  void run_block(const Block& block, const Room& room, const Grid& grid, const Map& from, const Map& to,
                 const ConvUse& use, const std::vector<float>& scales) const;
  template <typename A>
  void fill_patch(A* patch, const Block& block, const Grid& grid, const Map& from, const ConvUse& use,
                  const std::vector<float>& scales) const;
  template <typename A>
  void gather(A* rows, const A* patch, const Block& block) const;
  template <typename A>
  void multiply(const A* rows, int64_t row, const Room& room, int tiles) const;

  ConvShape shape_;
  Tiling tiling_ = Tiling::Direct;
  bool bf16_ = false;
  int row_ = 0, columns_ = 0;  // elements of a product's row, padded to pairs; outputs padded to panels
  cpu::PackedLinear packed_;
  std::vector<std::vector<cpu::Panel>> panels_;  // of every product
  std::vector<float> bias_;                      // (columns)
};

}  // namespace dydit::conv
