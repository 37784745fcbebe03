// Torch zip files out: {"ema": state dict, "cfg": ..., "metadata": ...}, which torch.load(weights_only=True)
// reads.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <string>

#include <nlohmann/json_fwd.hpp>

#include "dydit/io/tensor_view.h"

namespace dydit {

/// Writes tensors (contiguous views only) under "ema", each with a storage of its own, `config` (a JSON
/// object of plain values) under "cfg" and `metadata` under "metadata"; with a null config the state dict
/// alone. before_commit: see write_safetensors. Throws Error.
void write_torch_file(const std::filesystem::path& path, const TensorViews& tensors,
                      const nlohmann::json& config, const std::map<std::string, std::string>& metadata,
                      const std::function<void()>& before_commit = {});

}  // namespace dydit
