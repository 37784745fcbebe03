// torch.save before 1.6: a stream of pickles (magic number, protocol, system, object, keys) and then the
// bytes of the storages in the order of the keys.
#pragma once

#include <cstddef>
#include <map>
#include <span>
#include <string>
#include <string_view>

#include "dydit/io/pickle.h"
#include "dydit/io/torch_tensor.h"

namespace dydit {

/// The saved object and its storages. The bytes and `file`, which messages use, outlive it.
class TorchLegacyStream final : public TorchStorages {
 public:
  /// Throws Error: not such a stream, another protocol, big-endian, damaged or cut short.
  TorchLegacyStream(std::span<const std::byte> bytes, const std::string& file);

  const Pickle& object() const { return object_; }
  std::span<const std::byte> find(const TorchStorageId& id, const std::string& label) const override;

 private:
  struct Storage {
    TorchStorageId id;
    std::span<const std::byte> bytes;
    bool found = false;
  };

  Pickle take_pickle();
  void check_system(const Pickle& system) const;
  void collect_ids();
  void take_storages(const Pickle& keys);

  std::span<const std::byte> rest_;
  const std::string& file_;
  Pickle object_;
  std::map<std::string_view, Storage> storages_;  // by key
};

}  // namespace dydit
