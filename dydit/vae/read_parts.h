// What load_autoencoder is made of: a file, pair or folder as it was read, and what its names say.
#pragma once

#include <filesystem>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "dydit/io/tensor_view.h"
#include "dydit/vae/layers.h"

namespace dydit {

struct RawAutoencoder {
  std::string name;       // for messages
  std::string container;  // "safetensors", "torch zip", "diffusers folder", "two files"
  TensorViews tensors;    // as they are named there; of TAESD's files behind "encoder." and "decoder."
  std::optional<AutoencoderConfig> config;
  std::string config_name;  // of the file that it was read from
  std::vector<std::string> notes;
  std::shared_future<std::string> sha256;  // computed while the tensors are checked
  std::vector<std::shared_ptr<const MappedFile>> files;
  std::shared_ptr<const void> memory;  // keeps the views alive
};

// read.cpp
RawAutoencoder read_raw_autoencoder(const std::filesystem::path& path, const AutoencoderReadOptions& options);

// names.cpp
/// What stands before the names of an autoencoder within a larger model.
std::string_view prefix_of(const TensorViews& tensors);
/// How the names below `prefix` are spelt; nothing where they are no autoencoder's. Throws Error (names
/// `file`) for both spellings of attention.
std::optional<VaeNames> names_below(const TensorViews& tensors, std::string_view prefix,
                                    const std::string& file);
/// Of one of TAESD's files, whose names are positions: which half it is.
std::optional<VaeHalf> taesd_half(const TensorViews& tensors);
/// Throws Error: what the tensors are, since they are no autoencoder that is known.
[[noreturn]] void refuse_tensors(const TensorViews& tensors, const std::string& file);

// weights.cpp
/// Understands the names, infers what no configuration says, checks every tensor.
AutoencoderFile understand_autoencoder(RawAutoencoder raw);

}  // namespace dydit
