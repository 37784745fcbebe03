// Planar float to interleaved bytes.
#include "dydit/pipeline/pixels.h"

#include <algorithm>

namespace dydit {

Image to_image(const at::Tensor& sample) {
  const int channels = static_cast<int>(sample.size(0)), height = static_cast<int>(sample.size(1)),
            width = static_cast<int>(sample.size(2));
  Image image{height, width, channels, std::vector<uint8_t>(sample.numel())};
  const at::Tensor planar = sample.contiguous();
  const float* values = planar.data_ptr<float>();
  const size_t plane = static_cast<size_t>(height) * width;
  for (size_t i = 0; i < plane; ++i) {
    for (int c = 0; c < channels; ++c) {
      image.pixels[i * channels + c] =
          static_cast<uint8_t>(std::clamp(127.5f * values[c * plane + i] + 128.0f, 0.0f, 255.0f));
    }
  }
  return image;
}

}  // namespace dydit
