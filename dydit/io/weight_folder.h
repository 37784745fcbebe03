// Folders that weights lie in: the hub's cache, those of diffusers, those with one weight file.
#pragma once

#include <array>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "dydit/io/file.h"
#include "dydit/io/tensor_view.h"

namespace dydit {

/// config.json and the weights beside it, as diffusers calls them and write_diffusers_folder writes them.
inline constexpr std::array kDiffusersFiles = {"config.json", "diffusion_pytorch_model.safetensors"};
/// Of a pipeline.
inline constexpr const char* kDiffusersPipeline = "model_index.json";

/// False, too, for what cannot be looked at.
bool is_there(const std::filesystem::path& path);

/// models--ORG--NAME of the hub's cache keeps its files in snapshots/COMMIT: that folder, with a note. Any
/// other path is itself. Throws Error where there is another number of snapshots than one.
std::filesystem::path resolve_hub_cache(const std::filesystem::path& path, std::vector<std::string>& notes);

/// The folder's one weight file; empty when there is another number of them.
std::filesystem::path only_weight_file(const std::filesystem::path& folder);

/// Whether the folder holds weights under diffusers' name, a variant or not.
bool has_diffusers_weights(const std::filesystem::path& folder);

struct FolderWeights {
  TensorViews tensors;                                   // as they are named there
  std::vector<std::string> notes;                        // which variant was taken
  std::string sha256;                                    // as of a file or of several
  std::vector<std::shared_ptr<const MappedFile>> files;  // keep the views alive
};

/// diffusion_pytorch_model in safetensors (one file or several) or .bin: without a variant in its name, or
/// else the only variant (fp16). Throws Error where there is none, or more than one variant alone.
FolderWeights read_diffusers_weights(const std::filesystem::path& folder);

}  // namespace dydit
