// The layers of an autoencoder, by their names in diffusers: one list, from which expected shapes,
// multiply-adds and the names that other programs give them are derived.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "dydit/vae/autoencoder.h"

namespace dydit {

struct VaeLayer {
  std::string name;             // "encoder.down_blocks.0.resnets.0.conv1"; a tiny one's "decoder.3.conv.2"
  std::vector<int64_t> weight;  // (out, in, height, width) of a convolution, (out, in), or (C) of a norm
  int level = 0;                // of what comes out: sides are halved (or will be doubled) so many times
  bool bias = true;             // (out)

  bool is_norm() const { return weight.size() == 1; }
  int64_t weight_values() const;
};

/// Encoder first, in the order of the computation; quant_conv and post_quant_conv at the ends of their
/// halves.
std::vector<VaeLayer> autoencoder_layers(const AutoencoderConfig& config);

enum class VaeHalf { Encoder, Decoder };

/// Of a layer or a tensor by its name.
VaeHalf half_of(std::string_view name);

/// How a file spells the names of layers.
enum class VaeNames {
  Diffusers,
  OldDiffusers,   // query, key, value, proj_attn
  Ldm,            // of CompVis; its up blocks are counted from full resolution
  DiffusersTiny,  // encoder.layers.N, decoder.layers.N
  Taesd           // encoder.N, decoder.N: positions
};

/// A file's spelling of one of our names, of an autoencoder of so many levels.
std::string spelled(VaeNames names, const std::string& name, int levels);

}  // namespace dydit
