// Torch files (.pt, .pth; zip files, and the pickle streams of torch before 1.6) read as data: the pickle
// inside is interpreted by a machine that knows tensors and plain types; every other global becomes an opaque
// value and nothing is ever called.
#pragma once

#include <map>
#include <memory>
#include <span>
#include <string>

#include <nlohmann/json_fwd.hpp>

#include "dydit/io/file.h"
#include "dydit/io/tensor_view.h"

namespace dydit {

struct TorchCheckpoint {
  std::string weights_key;  // "ema", "model" or "state_dict"; empty when the file is a bare state dict
  TensorViews tensors;      // views into `file`; strided as saved
  std::shared_ptr<nlohmann::json> config;  // plain values of `cfg` or else `args`; an empty object without
  std::map<std::string, std::string> metadata;  // texts of `metadata`, where write_torch_file puts them
  std::shared_ptr<const MappedFile> file;       // keeps the views alive; null after parse_torch_checkpoint
};

/// Reads {model, ema, opt, args, cfg, ...} (`ema` preferred, then `model`, then `state_dict`) or a bare state
/// dict. Opaque values are fine outside the chosen weights; inside them they are an Error that names the
/// global.
TorchCheckpoint read_torch_checkpoint(const std::filesystem::path& path);
TorchCheckpoint parse_torch_checkpoint(std::span<const std::byte> bytes, const std::string& name);

}  // namespace dydit
