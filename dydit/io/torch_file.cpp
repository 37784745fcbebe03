// A torch checkpoint: a zip file whose member NAME/data.pkl says which tensors there are and whose members
// NAME/data/KEY are their storages, or a legacy stream of both. Only the chosen weights and the config are
// looked at closely.
#include "dydit/io/torch_file.h"

#include <map>
#include <optional>
#include <utility>

#include <nlohmann/json.hpp>

#include "dydit/base/error.h"
#include "dydit/io/bytes.h"
#include "dydit/io/pickle.h"
#include "dydit/io/tar.h"
#include "dydit/io/text.h"
#include "dydit/io/torch_sets.h"
#include "dydit/io/torch_tensor.h"
#include "dydit/io/zip.h"

namespace dydit {
namespace {

using Json = nlohmann::json;

// Shared lists may make a config that is huge when written out; ours has some hundred bytes.
constexpr size_t kMaxConfigCost = 1 << 22;
constexpr int kMaxConfigDepth = 64;

// 0x1950a86a20f9469cfc6c, as a pickle has it.
constexpr std::string_view kLegacyMagic("\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19", 10);
constexpr int64_t kLegacyProtocol = 1001;
constexpr size_t kMaxStorages = 1 << 16;
constexpr const char* kFetchAgain = "Was the download cut short? Fetch or save the file again.";

// Storages as members NAME/data/KEY of an archive.
class ArchiveStorages final : public TorchStorages {
 public:
  ArchiveStorages(const ZipArchive& archive, std::string folder, const std::string& file)
      : archive_(archive), folder_(std::move(folder)), file_(file) {}

  std::span<const std::byte> find(const TorchStorageId& id, const std::string& label) const override {
    constexpr const char* kWayOut = "The file is damaged; fetch or save it again.";
    const std::string member = folder_ + "data/" + std::string(id.key);
    const auto bytes = archive_.find(member);
    DYDIT_CHECK(bytes, "{}: {} is stored in member {}, which is missing. {}", file_, label, quote(member),
                kWayOut);
    DYDIT_CHECK(static_cast<uint64_t>(id.numel) <= bytes->size() / dtype_size(id.dtype),
                "{}: {}: its storage of {} {} elements does not fit member {} of {} bytes. {}", file_, label,
                id.numel, dtype_name(id.dtype), quote(member), bytes->size(), kWayOut);
    return *bytes;
  }

 private:
  const ZipArchive& archive_;
  std::string folder_;
  const std::string& file_;
};

// torch.save before 1.6 (torch/serialization.py, _legacy_load): a stream of pickles (magic number, protocol,
// system, object, keys) and then the bytes of the storages in the order of the keys. The length of a storage
// in bytes depends on its type, which only the persistent ids tell; so those of the whole object are
// collected first.
class LegacyStream final : public TorchStorages {
 public:
  LegacyStream(std::span<const std::byte> bytes, const std::string& file) : rest_(bytes), file_(file) {
    const Pickle magic = take_pickle();
    DYDIT_CHECK(
        magic[magic.root].kind == PickleKind::BigInt && magic[magic.root].text() == kLegacyMagic,
        "{}: a pickle, but not one of torch.save (its magic number is missing). Save the weights with "
        "torch.save.",
        file_);
    const Pickle protocol = take_pickle();
    DYDIT_CHECK(
        protocol[protocol.root].kind == PickleKind::Int && protocol[protocol.root].integer == kLegacyProtocol,
        "{}: a legacy torch file of another protocol than {}; load it in PyTorch and torch.save it again",
        file_, kLegacyProtocol);
    check_system(take_pickle());
    object = take_pickle();
    collect_ids();
    take_storages(take_pickle());
  }

  std::span<const std::byte> find(const TorchStorageId& id, const std::string& label) const override {
    const auto known = storages_.find(id.key);
    DYDIT_CHECK(known != storages_.end() && known->second.found,
                "{}: {} lies in storage {}, which is missing. {}", file_, label, quote(id.key), kFetchAgain);
    return known->second.bytes;
  }

  Pickle object;

 private:
  struct Storage {
    TorchStorageId id;
    std::span<const std::byte> bytes;
    bool found = false;
  };

  Pickle take_pickle() {
    DYDIT_CHECK(!rest_.empty(), "{}: a torch file of the legacy format that ends too early. {}", file_,
                kFetchAgain);
    Pickle pickle = parse_pickle(rest_, file_);
    rest_ = rest_.subspan(pickle.size);
    return pickle;
  }

  void check_system(const Pickle& system) const {
    DYDIT_CHECK(system[system.root].kind == PickleKind::Dict,
                "{}: a legacy torch file whose third pickle is a {}, not the dict of the system. {}", file_,
                system.describe(system.root), kFetchAgain);
    const PickleIndex little = system.find(system.root, "little_endian");
    DYDIT_CHECK(
        little == kNoPickleIndex || system[little].kind != PickleKind::Bool || system[little].integer != 0,
        "{}: was saved on a big-endian machine; save it on a little-endian one", file_);
  }

  void collect_ids() {
    for (PickleIndex index = 0; index < object.values.size(); ++index) {
      const PickleValue& value = object[index];
      if (value.kind != PickleKind::Persistent) continue;
      // A whole model also refers to its source text; that is nobody's storage.
      const PickleValue& id = object[value.argument];
      if (id.kind != PickleKind::Tuple || id.item_count == 0 ||
          object[object.items[id.first_item].value].text() != "storage") {
        continue;
      }
      const TorchStorageId storage = read_storage_id(object, index, "a storage", file_);
      const auto [place, added] = storages_.try_emplace(storage.key, Storage{storage, {}, false});
      const TorchStorageId& known = place->second.id;
      DYDIT_CHECK(added || (known.dtype == storage.dtype && known.numel == storage.numel),
                  "{}: storage {} is {} elements of {} in one place and {} of {} in another. {}", file_,
                  quote(storage.key), known.numel, dtype_name(known.dtype), storage.numel,
                  dtype_name(storage.dtype), kFetchAgain);
      DYDIT_CHECK(storages_.size() <= kMaxStorages, "{}: has more than {} storages; save the weights alone",
                  file_, kMaxStorages);
    }
  }

  void take_storages(const Pickle& keys) {
    DYDIT_CHECK(keys[keys.root].kind == PickleKind::List && keys[keys.root].item_count <= kMaxStorages,
                "{}: a legacy torch file whose fifth pickle is a {} of {}, not the list of its storages. {}",
                file_, keys.describe(keys.root), keys[keys.root].item_count, kFetchAgain);
    for (const PickleIndex index : keys.items_of(keys.root)) {
      const PickleValue& key = keys[index];
      const auto known = key.kind == PickleKind::String ? storages_.find(key.text()) : storages_.end();
      DYDIT_CHECK(known != storages_.end() && !known->second.found,
                  "{}: lists storage {}, which no tensor uses or which was listed before. {}", file_,
                  key.kind == PickleKind::String ? quote(key.text()) : keys.describe(index), kFetchAgain);
      Storage& storage = known->second;
      DYDIT_CHECK(rest_.size() >= sizeof(uint64_t), "{}: ends before storage {}. {}", file_,
                  quote(key.text()), kFetchAgain);
      const auto numel = load_little<uint64_t>(rest_.data());
      rest_ = rest_.subspan(sizeof(uint64_t));
      DYDIT_CHECK(numel == static_cast<uint64_t>(storage.id.numel),
                  "{}: storage {} has {} elements, but its tensors say {}. {}", file_, quote(key.text()),
                  numel, storage.id.numel, kFetchAgain);
      const size_t size = dtype_size(storage.id.dtype);
      DYDIT_CHECK(numel <= rest_.size() / size, "{}: storage {} of {} {} elements passes its end. {}", file_,
                  quote(key.text()), numel, dtype_name(storage.id.dtype), kFetchAgain);
      storage.bytes = rest_.first(numel * size);
      storage.found = true;
      rest_ = rest_.subspan(numel * size);
    }
  }

  std::span<const std::byte> rest_;
  const std::string& file_;
  std::map<std::string_view, Storage> storages_;  // by key
};

// Plain values as JSON. Values that JSON has no form for are left out of objects and null in lists.
class ConfigReader {
 public:
  ConfigReader(const Pickle& pickle, const std::string& file) : pickle_(pickle), file_(file) {}

  std::optional<Json> read(PickleIndex index, int depth = 0) {
    const PickleValue& value = pickle_[index];
    DYDIT_CHECK(depth < kMaxConfigDepth, "{}: its cfg or args is nested deeper than {}; save plain options",
                file_, kMaxConfigDepth);
    charge(1);
    switch (value.kind) {
      case PickleKind::None:
        return Json();
      case PickleKind::Bool:
        return Json(value.integer != 0);
      case PickleKind::Int:
        return Json(value.integer);
      case PickleKind::Float:
        return Json(value.real);
      case PickleKind::String:
        return read_text(value.text());
      case PickleKind::List:
      case PickleKind::Tuple:
        return read_list(index, depth);
      case PickleKind::Dict:
        return read_object(index, depth);
      case PickleKind::Object:
        return read_instance(index, depth);
      default:
        return std::nullopt;
    }
  }

 private:
  // Called before memory is taken, with what a node or text about takes.
  void charge(size_t nodes, size_t text = 0) {
    constexpr size_t kNodeCost = 64;
    cost_ += nodes * kNodeCost + text;
    DYDIT_CHECK(cost_ <= kMaxConfigCost, "{}: its cfg or args is larger than {} bytes; save plain options",
                file_, kMaxConfigCost);
  }

  std::optional<Json> read_text(std::string_view text) {
    charge(0, text.size());
    if (!is_utf8(text)) return std::nullopt;
    return Json(std::string(text));
  }

  Json read_list(PickleIndex index, int depth) {
    charge(pickle_[index].item_count);
    Json list = Json::array();
    for (PickleIndex item : pickle_.items_of(index)) list.push_back(read(item, depth + 1).value_or(Json()));
    return list;
  }

  Json read_object(PickleIndex index, int depth) {
    charge(pickle_[index].item_count);
    Json object = Json::object();
    const std::vector<PickleIndex> items = pickle_.items_of(index);
    for (size_t i = 0; i + 1 < items.size(); i += 2) {
      const PickleValue& key = pickle_[items[i]];
      if (key.kind != PickleKind::String) continue;
      charge(0, key.text().size());
      if (!is_utf8(key.text())) continue;
      if (std::optional<Json> value = read(items[i + 1], depth + 1))
        object[std::string(key.text())] = *std::move(value);
    }
    return object;
  }

  // argparse.Namespace keeps its options in the state, subclasses of dict in their items.
  std::optional<Json> read_instance(PickleIndex index, int depth) {
    const PickleValue& value = pickle_[index];
    if (value.item_count > 0) return read_object(index, depth);
    if (value.state == kNoPickleIndex || pickle_[value.state].kind != PickleKind::Dict) return std::nullopt;
    return read_object(value.state, depth);
  }

  const Pickle& pickle_;
  const std::string& file_;
  size_t cost_ = 0;
};

// The first of the places for options that is a dict, and its key.
std::pair<Json, std::string> read_config(const Pickle& pickle, const std::string& file) {
  for (const char* key : {"cfg", "args", "config"}) {
    const PickleIndex found = pickle.find(pickle.root, key);
    if (found == kNoPickleIndex) continue;
    std::optional<Json> config = ConfigReader(pickle, file).read(found);
    if (config && config->is_object()) return {*std::move(config), key};
  }
  return {Json::object(), ""};
}

// What write_torch_file keeps beside the weights: text to text. Anything else under that name is somebody
// else's.
std::map<std::string, std::string> read_metadata(const Pickle& pickle, const std::string& file) {
  std::map<std::string, std::string> metadata;
  const PickleIndex found = pickle.find(pickle.root, "metadata");
  if (found == kNoPickleIndex || pickle[found].kind != PickleKind::Dict) return metadata;
  size_t cost = 0;
  const std::vector<PickleIndex> items = pickle.items_of(found);
  for (size_t i = 0; i + 1 < items.size(); i += 2) {
    const PickleValue &key = pickle[items[i]], &value = pickle[items[i + 1]];
    if (key.kind != PickleKind::String || value.kind != PickleKind::String) continue;
    cost += 128 + key.text().size() + value.text().size();  // texts may be shared
    DYDIT_CHECK(cost <= kMaxConfigCost, "{}: its metadata is larger than {} bytes; save plain texts", file,
                kMaxConfigCost);
    if (is_utf8(key.text()) && is_utf8(value.text()))
      metadata.insert_or_assign(std::string(key.text()), std::string(value.text()));
  }
  return metadata;
}

TorchCheckpoint make_checkpoint(const Pickle& pickle, const TorchStorages& storages,
                                const std::string& name) {
  TorchCheckpoint result;
  result.sets = read_torch_sets(pickle, storages, name);
  auto [config, key] = read_config(pickle, name);
  result.config = std::make_shared<Json>(std::move(config));
  result.config_key = std::move(key);
  result.metadata = read_metadata(pickle, name);
  return result;
}

TorchCheckpoint parse_archive(std::span<const std::byte> bytes, const std::string& name) {
  const ZipArchive archive(bytes, name);
  constexpr std::string_view kPickle = "data.pkl";
  std::string folder(archive.find_suffix("/data.pkl"));  // of its members, "NAME/"
  DYDIT_CHECK(
      !folder.empty(),
      "{}: a zip file without a data.pkl; a .pt file of torch.save is wanted. If the weights lie in it, "
      "unzip it.",
      name);
  folder.resize(folder.size() - kPickle.size());
  DYDIT_CHECK(
      archive.find_suffix("/constants.pkl").empty(),
      "{}: is a TorchScript archive (torch.jit.save), not a file of torch.save; load it in PyTorch and "
      "torch.save its state_dict()",
      name);
  const auto order = archive.find(folder + "byteorder");
  DYDIT_CHECK(!order || text_of(*order) == "little",
              "{}: byte order is {}; little is wanted. Save it on a little-endian machine.", name,
              quote(text_of(*order)));
  // The zip's checksums are not compared: torch can be told not to write them.
  const Pickle pickle = parse_pickle(*archive.find(folder + "data.pkl"), name);
  return make_checkpoint(pickle, ArchiveStorages(archive, folder, name), name);
}

}  // namespace

TorchCheckpoint parse_torch_checkpoint(std::span<const std::byte> bytes, const std::string& name) {
  const FileKind kind = sniff_file_kind(bytes);
  if (kind == FileKind::TorchZip) return parse_archive(bytes, name);
  if (kind == FileKind::TorchLegacy) {
    const LegacyStream stream(bytes, name);
    return make_checkpoint(stream.object, stream, name);
  }
  DYDIT_CHECK(
      !is_tar(bytes),
      "{}: is a tar archive; torch files of that form (before 2018) are not read: load it in PyTorch and "
      "torch.save it again",
      name);
  throw Error(
      fmt::format("{}: is not a torch file (no zip file with a folder in it and no pickle); a .pt file of "
                  "torch.save is wanted.",
                  name));
}

TorchCheckpoint read_torch_checkpoint(const std::filesystem::path& path) {
  std::shared_ptr<const MappedFile> file = MappedFile::open(path);
  TorchCheckpoint result = parse_torch_checkpoint(file->bytes(), path.string());
  result.file = std::move(file);
  return result;
}

}  // namespace dydit
