// The same autoencoders on LibTorch's operators, for a GPU; on the CPU they are what its tests hold them to.
#pragma once

#include <memory>

#include "dydit/vae/autoencoder.h"

namespace dydit::vae {

/// `options.device` is set, and the file has what is asked for.
std::unique_ptr<const Autoencoder> make_torch_autoencoder(const AutoencoderFile& file,
                                                          const AutoencoderOptions& options);

}  // namespace dydit::vae
