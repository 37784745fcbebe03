// Tensors of a torch pickle: which storage, and which part of it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dydit/io/pickle.h"
#include "dydit/io/tensor_view.h"

namespace dydit {

/// What a persistent id says: ("storage", torch.FloatStorage, KEY, device, numel), and in legacy files
/// perhaps a view (key of the view, offset, numel) of that storage, or None.
struct TorchStorageId {
  std::string_view key;
  Dtype dtype = Dtype::F32;
  int64_t numel = 0;
  int64_t view_offset = 0, view_numel = 0;  // in elements; the whole storage without a view
};

/// Reads a Persistent value. `label` is how messages call what is stored there. Throws Error.
TorchStorageId read_storage_id(const Pickle& pickle, PickleIndex index, const std::string& label,
                               const std::string& file);

/// torch's name of a storage of each Dtype.
inline constexpr std::array kTorchStorageNames = {
    "DoubleStorage", "FloatStorage", "HalfStorage", "BFloat16Storage", "LongStorage",
    "IntStorage",    "ShortStorage", "CharStorage", "ByteStorage",     "BoolStorage"};

/// Where the bytes of storages lie: members of an archive or the end of a stream.
class TorchStorages {
 public:
  virtual ~TorchStorages() = default;
  /// At least numel elements. Throws Error when there is no such storage or it is smaller.
  virtual std::span<const std::byte> find(const TorchStorageId& id, const std::string& label) const = 0;
};

/// Turns a Tensor value into a view of its storage, bounds checked. `label` is how messages call it:
/// ema["x"].
TensorView read_torch_tensor(const Pickle& pickle, const TorchStorages& storages, PickleIndex index,
                             const std::string& label, const std::string& file);

}  // namespace dydit
