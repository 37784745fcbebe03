// A torch checkpoint: a zip file whose member NAME/data.pkl says which tensors there are and whose members
// NAME/data/KEY are their storages. Only the chosen weights and the config are looked at closely.
#include "dydit/io/torch_file.h"

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include <nlohmann/json.hpp>

#include "dydit/base/error.h"
#include "dydit/io/pickle.h"
#include "dydit/io/text.h"
#include "dydit/io/zip.h"

namespace dydit {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxTensors = 1 << 16;
// Shared lists may make a config that is huge when written out; ours has some hundred bytes.
constexpr size_t kMaxConfigCost = 1 << 22;
constexpr int kMaxConfigDepth = 64;
constexpr const char* kSaveStateDict = "Save plain tensors: torch.save({\"ema\": ema.state_dict()}, file).";

struct StorageType {
  const char* name;
  Dtype dtype;
};
constexpr std::array<StorageType, 10> kStorageTypes = {{{"FloatStorage", Dtype::F32},
                                                        {"DoubleStorage", Dtype::F64},
                                                        {"HalfStorage", Dtype::F16},
                                                        {"BFloat16Storage", Dtype::BF16},
                                                        {"LongStorage", Dtype::I64},
                                                        {"IntStorage", Dtype::I32},
                                                        {"ShortStorage", Dtype::I16},
                                                        {"CharStorage", Dtype::I8},
                                                        {"ByteStorage", Dtype::U8},
                                                        {"BoolStorage", Dtype::Bool}}};

struct Storage {
  Dtype dtype;
  int64_t numel;
  std::span<const std::byte> bytes;
};

// Turns the Tensor values of a pickle into views of the archive's storages.
class TensorReader {
 public:
  TensorReader(const Pickle& pickle, const ZipArchive& archive, std::string folder, const std::string& file)
      : pickle_(pickle), archive_(archive), folder_(std::move(folder)), file_(file) {}

  /// `label` is how messages call the tensor: ema["x"].
  TensorView read(PickleIndex index, const std::string& label) const {
    // storage, offset, size, stride, requires_grad, backward_hooks and perhaps metadata
    const std::vector<PickleIndex> parts = tuple(pickle_[index].argument, 4, 7, label);
    const Storage storage = read_storage(parts[0], label);
    const int64_t offset = integer(parts[1], label);
    TensorView view{storage.dtype, sizes(parts[2], label), sizes(parts[3], label), nullptr};
    DYDIT_CHECK(view.shape.size() == view.strides.size(), "{}: {} has {} sizes but {} strides. {}", file_,
                label, view.shape.size(), view.strides.size(), kWayOut);
    check_bounds(view, offset, storage.numel, label);
    // An empty tensor may begin anywhere; it is given the storage's start.
    const bool empty = std::find(view.shape.begin(), view.shape.end(), 0) != view.shape.end();
    view.data =
        storage.bytes.data() + (empty ? 0 : static_cast<uint64_t>(offset) * dtype_size(storage.dtype));
    return view;
  }

 private:
  static constexpr const char* kWayOut = "The file is damaged; fetch or save it again.";

  std::vector<PickleIndex> tuple(PickleIndex index, size_t least, size_t most,
                                 const std::string& label) const {
    const PickleValue& value = pickle_[index];
    const bool is_sequence = value.kind == PickleKind::Tuple || value.kind == PickleKind::List;
    DYDIT_CHECK(is_sequence && value.item_count >= least && value.item_count <= most,
                "{}: {}: a tuple of {} to {} values wanted, got a {} of {}. {}", file_, label, least, most,
                pickle_.describe(index), value.item_count, kWayOut);
    return pickle_.items_of(index);
  }

  int64_t integer(PickleIndex index, const std::string& label) const {
    const PickleValue& value = pickle_[index];
    DYDIT_CHECK(value.kind == PickleKind::Int,
                "{}: {}: a whole number wanted for its offset, sizes and strides, got "
                "a {}. {}",
                file_, label, pickle_.describe(index), kWayOut);
    DYDIT_CHECK(value.integer >= 0, "{}: {}: its offset, sizes and strides must not be negative, got {}. {}",
                file_, label, value.integer, kWayOut);
    return value.integer;
  }

  std::vector<int64_t> sizes(PickleIndex index, const std::string& label) const {
    std::vector<int64_t> result;
    for (PickleIndex item : tuple(index, 0, kMaxRank, label)) result.push_back(integer(item, label));
    return result;
  }

  // ("storage", torch.FloatStorage, KEY, device, numel)
  Storage read_storage(PickleIndex index, const std::string& label) const {
    DYDIT_CHECK(pickle_[index].kind == PickleKind::Persistent, "{}: {}: a storage wanted, got a {}. {}",
                file_, label, pickle_.describe(index), kWayOut);
    const std::vector<PickleIndex> id = tuple(pickle_[index].argument, 5, 5, label);
    const PickleValue& key = pickle_[id[2]];
    DYDIT_CHECK(pickle_[id[0]].text() == "storage" && key.kind == PickleKind::String,
                "{}: {}: its persistent id is not that of a storage. {}", file_, label, kWayOut);
    Storage storage{storage_dtype(id[1], label), integer(id[4], label), {}};
    const std::string member = folder_ + "data/" + std::string(key.text());
    const auto bytes = archive_.find(member);
    DYDIT_CHECK(bytes, "{}: {} is stored in member {}, which is missing. {}", file_, label, quote(member),
                kWayOut);
    DYDIT_CHECK(static_cast<uint64_t>(storage.numel) <= bytes->size() / dtype_size(storage.dtype),
                "{}: {}: its storage of {} {} elements does not fit member {} of {} bytes. {}", file_, label,
                storage.numel, dtype_name(storage.dtype), quote(member), bytes->size(), kWayOut);
    storage.bytes = *bytes;
    return storage;
  }

  Dtype storage_dtype(PickleIndex index, const std::string& label) const {
    for (const StorageType& type : kStorageTypes) {
      if (pickle_.is_global(index, "torch", type.name)) return type.dtype;
    }
    throw Error(fmt::format(
        "{}: {} is stored as {}, which is not known here. Convert it to float32 and save it again.", file_,
        label, pickle_.describe(index)));
  }

  void check_bounds(const TensorView& view, int64_t offset, int64_t numel, const std::string& label) const {
    const std::optional<int64_t> wanted = checked_numel(view.shape);
    // More elements than the storage has are possible with stride 0, but whoever copies them would run out of
    // memory; weights have no such views.
    DYDIT_CHECK(wanted && *wanted <= numel,
                "{}: {} of shape {} has more elements than its storage, which has {}. {}", file_, label,
                shape_text(view.shape), numel, kWayOut);
    if (*wanted == 0) return;
    int64_t last = offset;
    bool overflow = false;
    for (size_t i = 0; i < view.shape.size(); ++i) {
      int64_t reach = 0;
      overflow = overflow || __builtin_mul_overflow(view.shape[i] - 1, view.strides[i], &reach) ||
                 __builtin_add_overflow(last, reach, &last);
    }
    DYDIT_CHECK(
        !overflow && last < numel,
        "{}: {} of shape {}, strides {} from offset {} passes the end of its storage of {} elements. {}",
        file_, label, shape_text(view.shape), shape_text(view.strides), offset, numel, kWayOut);
  }

  const Pickle& pickle_;
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
      if (key.kind != PickleKind::String || !is_utf8(key.text())) continue;
      charge(0, key.text().size());
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

Json read_config(const Pickle& pickle, const std::string& file) {
  for (const char* key : {"cfg", "args"}) {
    const PickleIndex found = pickle.find(pickle.root, key);
    if (found == kNoPickleIndex) continue;
    const std::optional<Json> config = ConfigReader(pickle, file).read(found);
    if (config && config->is_object()) return *config;
  }
  return Json::object();
}

// The dict that holds the weights, and its key in the file; a bare state dict has none.
std::pair<PickleIndex, std::string> choose_weights(const Pickle& pickle, const std::string& file) {
  DYDIT_CHECK(pickle[pickle.root].kind == PickleKind::Dict, "{}: holds a {}, not a dict of tensors. {}", file,
              pickle.describe(pickle.root), kSaveStateDict);
  for (const char* key : {"ema", "model"}) {
    const PickleIndex found = pickle.find(pickle.root, key);
    if (found == kNoPickleIndex || pickle[found].kind == PickleKind::None) continue;
    DYDIT_CHECK(pickle[found].kind == PickleKind::Dict, "{}: {} is a {}, not a dict of tensors. {}", file,
                key, pickle.describe(found), kSaveStateDict);
    return {found, key};
  }
  return {pickle.root, ""};
}

TensorViews read_tensors(const Pickle& pickle, const TensorReader& reader, PickleIndex weights,
                         const std::string& weights_key, const std::string& file) {
  TensorViews tensors;
  const std::vector<PickleIndex> items = pickle.items_of(weights);
  DYDIT_CHECK(items.size() / 2 <= kMaxTensors, "{}: {} has {} entries; at most {} are read. {}", file,
              weights_key, items.size() / 2, kMaxTensors, kSaveStateDict);
  for (size_t i = 0; i + 1 < items.size(); i += 2) {
    const PickleValue& key = pickle[items[i]];
    DYDIT_CHECK(key.kind == PickleKind::String, "{}: {} has a {} as a key; names are wanted. {}", file,
                weights_key, pickle.describe(items[i]), kSaveStateDict);
    const std::string label = fmt::format("{}[{}]", weights_key, quote(key.text()));
    DYDIT_CHECK(pickle[items[i + 1]].kind == PickleKind::Tensor,
                "{}: {} is a {}, not a tensor; every entry of the "
                "weights must be one. {}",
                file, label, pickle.describe(items[i + 1]), kSaveStateDict);
    tensors.insert_or_assign(std::string(key.text()), reader.read(items[i + 1], label));
  }
  DYDIT_CHECK(!tensors.empty(), "{}: {} holds no tensors. {}", file, weights_key.empty() ? "it" : weights_key,
              kSaveStateDict);
  return tensors;
}

void check_is_torch_zip(std::span<const std::byte> bytes, const std::string& name) {
  const FileKind kind = sniff_file_kind(bytes);
  DYDIT_CHECK(
      kind != FileKind::TorchLegacy,
      "{}: is a torch file of the old format (before torch 1.6) or a bare pickle; load it in Python and save "
      "it again with torch.save.",
      name);
  DYDIT_CHECK(kind == FileKind::TorchZip,
              "{}: is not a torch file (no zip file with a folder in it); a .pt file of "
              "torch.save is wanted.",
              name);
}

// The folder of the archive's members, "NAME/".
std::string find_folder(const ZipArchive& archive, const std::string& name) {
  constexpr std::string_view kPickle = "data.pkl";
  std::string folder(archive.find_suffix("/data.pkl"));
  DYDIT_CHECK(!folder.empty(), "{}: a zip file without a data.pkl; a .pt file of torch.save is wanted.",
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

}  // namespace

TorchCheckpoint parse_torch_checkpoint(std::span<const std::byte> bytes, const std::string& name) {
  check_is_torch_zip(bytes, name);
  const ZipArchive archive(bytes, name);
  const std::string folder = find_folder(archive, name);
  check_byte_order(archive, folder, name);
  // The zip's checksums are not compared: torch can be told not to write them.
  const Pickle pickle = parse_pickle(*archive.find(folder + "data.pkl"), name);
  const auto [weights, weights_key] = choose_weights(pickle, name);
  const TensorReader reader(pickle, archive, folder, name);
  return {weights_key, read_tensors(pickle, reader, weights, weights_key, name),
          std::make_shared<Json>(read_config(pickle, name)), nullptr};
}

TorchCheckpoint read_torch_checkpoint(const std::filesystem::path& path) {
  std::shared_ptr<const MappedFile> file = MappedFile::open(path);
  TorchCheckpoint result = parse_torch_checkpoint(file->bytes(), path.string());
  result.file = std::move(file);
  return result;
}

}  // namespace dydit
