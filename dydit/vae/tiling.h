// Images in tiles: as diffusers does it, to reproduce its pictures, and our own, for images whose maps do not
// fit into memory.
#pragma once

#include <ATen/core/Tensor.h>

#include "dydit/base/enum_names.h"
#include "dydit/vae/autoencoder.h"

namespace dydit {

/// None: whole. Diffusers: AutoencoderKL's enable_tiling, tiles of its sample_size, each by itself, seams
/// blended. Approximate: Autoencoder::decode_in_tiles.
enum class VaeTiling { None, Diffusers, Approximate };
inline constexpr EnumNames<VaeTiling, 3> kVaeTilingNames = {"tiling",
                                                            {{"none", VaeTiling::None},
                                                             {"diffusers", VaeTiling::Diffusers},
                                                             {"approximate", VaeTiling::Approximate}}};

/// Throws UsageError for Diffusers with a tiny autoencoder.
at::Tensor decode(const Autoencoder& autoencoder, const at::Tensor& z, VaeTiling tiling);
/// Of Approximate, too: encoders are done whole.
at::Tensor moments(const Autoencoder& autoencoder, const at::Tensor& images, VaeTiling tiling);

}  // namespace dydit
