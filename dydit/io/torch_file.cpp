// A torch checkpoint: a zip file whose member NAME/data.pkl says which tensors there are and whose members
// NAME/data/KEY are their storages, or a legacy stream of both. Only the chosen weights and the config are
// looked at closely.
#include "dydit/io/torch_file.h"

#include <optional>
#include <utility>

#include <nlohmann/json.hpp>

#include "dydit/base/error.h"
#include "dydit/io/pickle.h"
#include "dydit/io/tar.h"
#include "dydit/io/text.h"
#include "dydit/io/torch_legacy.h"
#include "dydit/io/torch_sets.h"
#include "dydit/io/torch_tensor.h"
#include "dydit/io/zip.h"

namespace dydit {
namespace {

using Json = nlohmann::json;

// Shared lists may make a config that is huge when written out; ours has some hundred bytes.
constexpr size_t kMaxConfigCost = 1 << 22;
constexpr int kMaxConfigDepth = 64;

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

// The folder of the archive's members, "NAME/".
std::string find_folder(const ZipArchive& archive, const std::string& name) {
  constexpr std::string_view kPickle = "data.pkl";
  std::string folder(archive.find_suffix("/data.pkl"));
  DYDIT_CHECK(
      !folder.empty(),
      "{}: a zip file without a data.pkl; a .pt file of torch.save is wanted. If the weights lie in it, "
      "unzip it.",
      name);
  folder.resize(folder.size() - kPickle.size());
  return folder;
}

void check_byte_order(const ZipArchive& archive, const std::string& folder, const std::string& name) {
  const auto bytes = archive.find(folder + "byteorder");
  if (!bytes) return;
  const std::string_view order(reinterpret_cast<const char*>(bytes->data()), bytes->size());
  DYDIT_CHECK(order == "little",
              "{}: byte order is {}; little is wanted. Save it on a little-endian machine.", name,
              quote(order));
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
  const std::string folder = find_folder(archive, name);
  DYDIT_CHECK(
      archive.find_suffix("/constants.pkl").empty(),
      "{}: is a TorchScript archive (torch.jit.save), not a file of torch.save; load it in PyTorch and "
      "torch.save its state_dict()",
      name);
  check_byte_order(archive, folder, name);
  // The zip's checksums are not compared: torch can be told not to write them.
  const Pickle pickle = parse_pickle(*archive.find(folder + "data.pkl"), name);
  return make_checkpoint(pickle, ArchiveStorages(archive, folder, name), name);
}

}  // namespace

TorchCheckpoint parse_torch_checkpoint(std::span<const std::byte> bytes, const std::string& name) {
  const FileKind kind = sniff_file_kind(bytes);
  if (kind == FileKind::TorchZip) return parse_archive(bytes, name);
  if (kind == FileKind::TorchLegacy) {
    const TorchLegacyStream stream(bytes, name);
    return make_checkpoint(stream.object(), stream, name);
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
