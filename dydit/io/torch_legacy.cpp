// torch/serialization.py, _legacy_load. The length of a storage in bytes depends on its type, which only the
// persistent ids tell; so those of the whole object are collected first.
#include "dydit/io/torch_legacy.h"

#include "dydit/base/error.h"
#include "dydit/io/bytes.h"
#include "dydit/io/text.h"

namespace dydit {
namespace {

// 0x1950a86a20f9469cfc6c, as a pickle has it.
constexpr std::string_view kMagic("\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19", 10);
constexpr int64_t kProtocol = 1001;
constexpr size_t kMaxStorages = 1 << 16;
constexpr const char* kWayOut = "Was the download cut short? Fetch or save the file again.";

bool is_integer(const PickleValue& value, int64_t wanted) {
  return value.kind == PickleKind::Int && value.integer == wanted;
}

}  // namespace

TorchLegacyStream::TorchLegacyStream(std::span<const std::byte> bytes, const std::string& file)
    : rest_(bytes), file_(file) {
  const Pickle magic = take_pickle();
  DYDIT_CHECK(magic[magic.root].kind == PickleKind::BigInt && magic[magic.root].text() == kMagic,
              "{}: a pickle, but not one of torch.save (its magic number is missing). Save the weights with "
              "torch.save.",
              file_);
  const Pickle protocol = take_pickle();
  DYDIT_CHECK(
      is_integer(protocol[protocol.root], kProtocol),
      "{}: a legacy torch file of another protocol than {}; load it in PyTorch and torch.save it again",
      file_, kProtocol);
  check_system(take_pickle());
  object_ = take_pickle();
  collect_ids();
  take_storages(take_pickle());
}

Pickle TorchLegacyStream::take_pickle() {
  DYDIT_CHECK(!rest_.empty(), "{}: a torch file of the legacy format that ends too early. {}", file_,
              kWayOut);
  Pickle pickle = parse_pickle(rest_, file_);
  rest_ = rest_.subspan(pickle.size);
  return pickle;
}

void TorchLegacyStream::check_system(const Pickle& system) const {
  DYDIT_CHECK(system[system.root].kind == PickleKind::Dict,
              "{}: a legacy torch file whose third pickle is a {}, not the dict of the system. {}", file_,
              system.describe(system.root), kWayOut);
  const PickleIndex little = system.find(system.root, "little_endian");
  DYDIT_CHECK(
      little == kNoPickleIndex || system[little].kind != PickleKind::Bool || system[little].integer != 0,
      "{}: was saved on a big-endian machine; save it on a little-endian one", file_);
}

void TorchLegacyStream::collect_ids() {
  for (PickleIndex index = 0; index < object_.values.size(); ++index) {
    const PickleValue& value = object_[index];
    if (value.kind != PickleKind::Persistent) continue;
    // A whole model also refers to its source text; that is nobody's storage.
    const PickleValue& id = object_[value.argument];
    if (id.kind != PickleKind::Tuple || id.item_count == 0 ||
        object_[object_.items[id.first_item].value].text() != "storage") {
      continue;
    }
    const TorchStorageId storage = read_storage_id(object_, index, "a storage", file_);
    const auto [place, added] = storages_.try_emplace(storage.key, Storage{storage, {}, false});
    const TorchStorageId& known = place->second.id;
    DYDIT_CHECK(added || (known.dtype == storage.dtype && known.numel == storage.numel),
                "{}: storage {} is {} elements of {} in one place and {} of {} in another. {}", file_,
                quote(storage.key), known.numel, dtype_name(known.dtype), storage.numel,
                dtype_name(storage.dtype), kWayOut);
    DYDIT_CHECK(storages_.size() <= kMaxStorages, "{}: has more than {} storages; save the weights alone",
                file_, kMaxStorages);
  }
}

void TorchLegacyStream::take_storages(const Pickle& keys) {
  DYDIT_CHECK(keys[keys.root].kind == PickleKind::List && keys[keys.root].item_count <= kMaxStorages,
              "{}: a legacy torch file whose fifth pickle is a {} of {}, not the list of its storages. {}",
              file_, keys.describe(keys.root), keys[keys.root].item_count, kWayOut);
  for (const PickleIndex index : keys.items_of(keys.root)) {
    const PickleValue& key = keys[index];
    const auto known = key.kind == PickleKind::String ? storages_.find(key.text()) : storages_.end();
    DYDIT_CHECK(known != storages_.end() && !known->second.found,
                "{}: lists storage {}, which no tensor uses or which was listed before. {}", file_,
                key.kind == PickleKind::String ? quote(key.text()) : keys.describe(index), kWayOut);
    Storage& storage = known->second;
    DYDIT_CHECK(rest_.size() >= sizeof(uint64_t), "{}: ends before storage {}. {}", file_, quote(key.text()),
                kWayOut);
    const auto numel = load_little<uint64_t>(rest_.data());
    rest_ = rest_.subspan(sizeof(uint64_t));
    DYDIT_CHECK(numel == static_cast<uint64_t>(storage.id.numel),
                "{}: storage {} has {} elements, but its tensors say {}. {}", file_, quote(key.text()), numel,
                storage.id.numel, kWayOut);
    const size_t size = dtype_size(storage.id.dtype);
    DYDIT_CHECK(numel <= rest_.size() / size, "{}: storage {} of {} {} elements passes its end. {}", file_,
                quote(key.text()), numel, dtype_name(storage.id.dtype), kWayOut);
    storage.bytes = rest_.first(numel * size);
    storage.found = true;
    rest_ = rest_.subspan(numel * size);
  }
}

std::span<const std::byte> TorchLegacyStream::find(const TorchStorageId& id, const std::string& label) const {
  const auto known = storages_.find(id.key);
  DYDIT_CHECK(known != storages_.end() && known->second.found,
              "{}: {} lies in storage {}, which is missing. {}", file_, label, quote(id.key), kWayOut);
  return known->second.bytes;
}

}  // namespace dydit
