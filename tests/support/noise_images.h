// A data set for tests of training.
#pragma once

#include <span>
#include <vector>

#include <fmt/format.h>

#include "dydit/base/noise.h"
#include "dydit/data/dataset.h"

namespace dydit::test {

/// 12 RGB images of 8x8 pixels of noise, the same ones in every run.
class NoiseImages final : public Dataset {
 public:
  explicit NoiseImages(int classes = 4) {
    side_ = 8;
    channels_ = 3;
    for (int i = 0; i < classes; ++i) class_names_.push_back(fmt::format("class{}", i));
  }
  int64_t size() const override { return 12; }
  int label(int64_t index) const override { return static_cast<int>(index % class_names_.size()); }
  void read(int64_t index, std::span<uint8_t> out) const override {
    std::vector<float> values(out.size());
    fill_uniform(values, /*seed=*/8, index, 0);
    for (size_t i = 0; i < out.size(); ++i) out[i] = static_cast<uint8_t>(values[i] * 255);
  }
};

}  // namespace dydit::test
