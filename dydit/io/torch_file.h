// Torch files (.pt, .pth; zip files, and the pickle streams of torch before 1.6) read as data: the pickle
// inside is interpreted by a machine that knows tensors and plain types; every other global becomes an opaque
// value and nothing is ever called.
#pragma once

#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "dydit/io/file.h"
#include "dydit/io/tensor_view.h"

namespace dydit {

/// One dict (or list) of tensors in a torch file.
struct TorchWeights {
  std::string key;                 // "ema", "model", "state.model"; empty when the file is a bare state dict
  bool averaged = false;           // by its key
  TensorViews tensors;             // views into the file; strided as saved
  std::vector<std::string> names;  // of the tensors, in the order of the file
  std::vector<std::string> counters;  // entries that are no tensors and were passed over: epoch, _metadata
  std::string matched;  // of a list without names: the key of the set whose names were given to it
  std::string fault;    // why it cannot be read, a whole message; empty: it can
};

struct TorchCheckpoint {
  std::vector<TorchWeights> sets;          // averages first, then by the fame of their keys; at least one
  std::shared_ptr<nlohmann::json> config;  // plain values of `cfg`, `args` or `config`, the first that is a
                                           // dict; an empty object without
  std::string config_key;                  // which of them
  std::map<std::string, std::string> metadata;  // texts of `metadata`, where write_torch_file puts them
  std::shared_ptr<const MappedFile> file;       // keeps the views alive; null after parse_torch_checkpoint
};

/// Reads {model, ema, opt, args, cfg, ...} or a bare state dict: every dict of tensors in the file, or one
/// level below, is a set. Opaque values are fine outside the weights; inside them they are the set's fault,
/// which names the global.
TorchCheckpoint read_torch_checkpoint(const std::filesystem::path& path);
TorchCheckpoint parse_torch_checkpoint(std::span<const std::byte> bytes, const std::string& name);

/// The preferred set. Throws its fault.
const TorchWeights& preferred_weights(const TorchCheckpoint& checkpoint);

/// A word of the key or prefix says that these are averages: ema, model_ema, ema_params, shadow_params.
bool is_average_key(std::string_view key);
/// The last part of the name is that of a counter beside weights: step, n_averaged, num_batches_tracked.
bool is_counter_name(std::string_view name);

}  // namespace dydit
