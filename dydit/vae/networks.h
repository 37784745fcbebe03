// The encoders and decoders of the two kinds of autoencoders as lists of steps.
#pragma once

#include "dydit/base/team.h"
#include "dydit/engine/cpu/memory.h"
#include "dydit/vae/autoencoder.h"
#include "dydit/vae/network.h"

namespace dydit::vae {

struct Precision {
  bool bf16_maps = false;      // what lies in memory between two steps
  bool bf16_products = false;  // of bfloat16 values; else of float32 ones
};

/// The half of `file`, which has it; its packed weights lie in `arena`. An encoder maps pixels in the
/// network's own range to moments, a decoder latents (a tiny one's clamped) to pixels.
Network make_encoder(const AutoencoderFile& file, const Precision& precision, cpu::Arena& arena, Team& team);
Network make_decoder(const AutoencoderFile& file, const Precision& precision, cpu::Arena& arena, Team& team);

}  // namespace dydit::vae
