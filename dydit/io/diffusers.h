// A static DiT as diffusers keeps it: a folder with config.json and the weights under other names, query, key
// and value apart, and the embedders of timestep and label copied into every block.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "dydit/io/file.h"
#include "dydit/io/tensor_view.h"
#include "dydit/io/weight_folder.h"

namespace dydit {

struct DiffusersDiT {
  TensorViews tensors;  // under the original's names; without pos_embed, which is a formula
  std::shared_ptr<nlohmann::json> config;  // as the original names it, with "semantics": "diffusers"
  std::vector<std::string> class_names;    // of the pipeline's id2label; empty without
  std::vector<std::string> notes;          // lines for whoever reads it: which variant was taken
  std::string sha256;                      // of the weights, as of a file or of several
  std::vector<std::shared_ptr<const MappedFile>> files;  // of the weights
  std::shared_ptr<const void> memory;                    // keeps the views alive, the files among it
};

/// True for a folder with model_index.json (a pipeline) or transformer/config.json, or with config.json and
/// weights under diffusers' names (its transformer).
bool is_diffusers_folder(const std::filesystem::path& path);

/// Reads a pipeline's folder or its transformer's: DiTTransformer2DModel or, as it was called before,
/// Transformer2DModel with ada_norm_zero; weights in safetensors (one file or several) or .bin, those without
/// a variant first, else the only variant (fp16). Throws Error:
/// another class or setting, a file or tensor that is missing, blocks whose copies of the embedders differ.
DiffusersDiT read_diffusers_folder(const std::filesystem::path& path);

/// config.json of the transformer as the original names it, with "semantics": "diffusers". Throws Error
/// (names `name`): no JSON, another class, a setting or size that no DiT has, more than 1 MiB.
nlohmann::json parse_diffusers_config(std::span<const std::byte> bytes, const std::string& name);

/// The class names of model_index.json; empty unless there is one for each class.
std::vector<std::string> parse_id2label(std::span<const std::byte> bytes, int64_t num_classes,
                                        const std::string& name);

/// Writes the transformer's folder from contiguous views under the original's names (pos_embed is left out)
/// and the configuration as config_to_json names it. The folder is made where it is missing; config.json
/// comes last. before_commit: see write_safetensors.
void write_diffusers_folder(const std::filesystem::path& path, const TensorViews& tensors,
                            const nlohmann::json& config, const std::function<void()>& before_commit = {});

}  // namespace dydit
