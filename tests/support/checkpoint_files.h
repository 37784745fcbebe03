// Checkpoints put together for tests, right or wrong: any weights and metadata as safetensors or as a torch
// archive.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "dydit/io/safetensors.h"
#include "dydit/model/checkpoint.h"
#include "tests/support/files.h"
#include "tests/support/pickle_builder.h"

namespace dydit::test {

using Metadata = std::map<std::string, std::string>;

/// Writes any weights and metadata, right or wrong, and loads them.
inline Checkpoint load(const Weights& weights, const Metadata& metadata = {},
                       const CheckpointOptions& options = {}) {
  TemporaryFolder folder;
  TensorViews views;
  for (const auto& [name, tensor] : weights) views[name] = to_view(tensor);
  write_safetensors(folder / "m.safetensors", views, metadata);
  return load_checkpoint(folder / "m.safetensors", options);
}

/// Tensors and their storages on the way into a torch archive.
class TorchBuilder {
 public:
  /// An OrderedDict of the weights, each name behind `prefix`; `more` are further keys and values.
  std::string state_dict(const Weights& weights, const std::string& prefix = "",
                         const std::vector<std::string>& more = {}) {
    std::vector<std::string> items;
    for (const auto& [name, tensor] : weights) {
      items.push_back(pickle::text(prefix + name));
      items.push_back(add(tensor));
    }
    items.insert(items.end(), more.begin(), more.end());
    return pickle::ordered_dict(items);
  }

  /// The tensors in the order of their names, without them.
  std::string list(const Weights& weights) {
    std::vector<std::string> items;
    for (const auto& [name, tensor] : weights) items.push_back(add(tensor));
    return pickle::list(items);
  }

  std::string add(const at::Tensor& tensor) {
    pickle::TensorSpec spec;
    spec.sizes = tensor.sizes().vec();
    spec.strides = tensor.strides().vec();
    spec.numel = tensor.numel();
    spec.key = std::to_string(members_.size());
    members_.push_back({"m/data/" + spec.key,
                        {static_cast<const char*>(tensor.data_ptr()), static_cast<size_t>(tensor.nbytes())}});
    return pickle::tensor(spec);
  }

  /// The file whose root is the dict of these keys and values.
  std::string build(const std::vector<std::string>& items) {
    std::vector<ZipMember> members = members_;
    members.push_back({"m/data.pkl", pickle::pickle_of(pickle::dict(items))});
    members.push_back({"m/byteorder", "little"});
    members.push_back({"m/version", "3\n"});
    return build_zip(members);
  }

 private:
  std::vector<ZipMember> members_;
};

/// A torch archive of the weights with `args` beside them.
inline std::string torch_archive(const Weights& weights, const std::string& args) {
  TorchBuilder file;
  return file.build({pickle::text("ema"), file.state_dict(weights), pickle::text("args"), args});
}

/// The weights, copied: `bytes` need not outlive them.
inline Checkpoint parse(const std::string& bytes, const CheckpointOptions& options = {}) {
  Checkpoint checkpoint = parse_checkpoint(bytes_of(bytes), "m.pt", options);
  for (auto& [name, tensor] : checkpoint.weights) tensor = tensor.clone();
  return checkpoint;
}

}  // namespace dydit::test
