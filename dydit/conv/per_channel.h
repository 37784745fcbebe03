// What a convolutional network does to each channel by itself: depthwise convolutions and pooling, on float32
// maps.
#pragma once

#include <vector>

#include <ATen/core/Tensor.h>

#include "dydit/base/team.h"
#include "dydit/conv/conv.h"

namespace dydit::conv {

/// Pools count the taps that lie inside the map only.
struct PoolShape {
  Extent rows = {}, columns = {};
  int stride = 1;
  bool largest = false;  // else the mean
};

/// `to` has the output's size; its channels from `channel` on are written.
void pool(Team& team, const PoolShape& shape, const Map& from, Map& to, int channel = 0);

/// A kernel for each channel, and ReLU6.
class DepthwiseConv {
 public:
  /// weight (C, 1, rows, columns) and bias (C), in any type.
  DepthwiseConv(const at::Tensor& weight, const at::Tensor& bias, const Extent& rows, const Extent& columns,
                int stride);

  int out_height(int height) const { return shape_.out_height(height); }
  int out_width(int width) const { return shape_.out_width(width); }
  int64_t macs(int out_height, int out_width) const {
    return int64_t{out_height} * out_width * shape_.rows.taps * shape_.columns.taps * shape_.in;
  }
  /// `to` has the output's size.
  void run(Team& team, const Map& from, Map& to) const;

 private:
  ConvShape shape_;
  int columns_;  // channels, padded to vectors
  std::vector<float> weights_, bias_;
};

}  // namespace dydit::conv
