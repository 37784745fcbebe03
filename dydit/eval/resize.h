// From an image's bytes to what a network of features sees. Each protocol has a rule of its own, and they
// give other numbers: results name theirs.
#pragma once

#include "dydit/base/enum_names.h"
#include "dydit/io/image.h"

namespace dydit {

enum class ResizeRule {
  Adm,  // TensorFlow 1's bilinear without antialias and without half-pixel centres; torch-fidelity's, too
  PytorchFid,  // torch's bilinear with half-pixel centres, without antialias
  CleanFid,    // Pillow's bicubic with antialias on float planes
  Lite0,       // Pillow's bicubic on bytes to 224 x 224
  Resnet,      // the same to 32 x 32
};
inline constexpr EnumNames<ResizeRule, 5> kResizeNames = {"resize",
                                                          {{"adm", ResizeRule::Adm},
                                                           {"pytorch-fid", ResizeRule::PytorchFid},
                                                           {"clean-fid", ResizeRule::CleanFid},
                                                           {"lite0", ResizeRule::Lite0},
                                                           {"resnet", ResizeRule::Resnet}}};

/// out (side, side, 3) <- the image, gray or RGB, scaled to the network's values.
void to_network(const Image& image, ResizeRule rule, int side, float* out);

/// out (side, side, 3) <- the resized image in 0..255, before it is scaled to the network's values.
void resize_float(const Image& image, ResizeRule rule, int side, float* out);

}  // namespace dydit
