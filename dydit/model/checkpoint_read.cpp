// From a path to names and views: which kind of file or folder, its sets of weights, what it says of itself.
#include <algorithm>

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include "dydit/io/diffusers.h"
#include "dydit/io/recognize.h"
#include "dydit/io/safetensors.h"
#include "dydit/io/safetensors_index.h"
#include "dydit/io/tar.h"
#include "dydit/io/text.h"
#include "dydit/io/torch_file.h"
#include "dydit/io/weight_folder.h"
#include "dydit/model/checkpoint_parts.h"

namespace dydit {
namespace {

namespace fs = std::filesystem;

constexpr const char* kWanted = "not a weight file; wanted safetensors or a torch file (.pt, .pth)";

void take_safetensors(RawCheckpoint& raw, TensorViews tensors, std::map<std::string, std::string> metadata) {
  raw.sets = make_weight_sets("", false, std::move(tensors));
  raw.metadata = std::move(metadata);
  const auto found = raw.metadata.find("config");
  if (found == raw.metadata.end()) return;
  raw.stated.where = "metadata 'config'";
  const std::optional<nlohmann::json> config = parse_metadata(found->second);
  if (config && config->is_object()) {
    raw.stated.config = *config;
    return;
  }
  const std::string said =
      fmt::format("metadata 'config' is not {}: {}",
                  config ? "a JSON object" : fmt::format("JSON of at most {} levels", kMetadataDepth),
                  printable(found->second, 60));
  check_format(raw);
  DYDIT_CHECK(!is_ours(raw), "{}: {}", raw.name, said);
  raw.notes.push_back(said + "; passed over, it is of another program");
}

RawCheckpoint read_shards(const fs::path& path) {
  ShardedSafetensors shards = read_safetensors_shards(path);
  RawCheckpoint raw;
  raw.name = path.string();
  raw.format = fmt::format("safetensors in {} files", shards.files.size());
  raw.sha256 = std::async(std::launch::deferred, [sha256 = shards.sha256] { return sha256; });
  raw.files = shards.files;
  raw.memory = std::make_shared<const decltype(shards.files)>(std::move(shards.files));
  take_safetensors(raw, std::move(shards.tensors), std::move(shards.metadata));
  return raw;
}

RawCheckpoint read_diffusers(const fs::path& path) {
  DiffusersDiT dit = read_diffusers_folder(path);
  RawCheckpoint raw;
  raw.name = path.string();
  raw.format = "diffusers folder";
  raw.sha256 = std::async(std::launch::deferred, [sha256 = dit.sha256] { return sha256; });
  raw.stated = {*dit.config, "config.json"};
  raw.class_names = std::move(dit.class_names);
  raw.notes = std::move(dit.notes);
  raw.files = std::move(dit.files);
  raw.memory = dit.memory;
  raw.sets = make_weight_sets("", false, std::move(dit.tensors));
  return raw;
}

void take_torch(RawCheckpoint& raw, TorchCheckpoint torch) {
  raw.metadata = std::move(torch.metadata);
  raw.stated = {std::move(*torch.config), torch.config_key};
  for (TorchWeights& found : torch.sets) {
    if (!found.fault.empty()) {
      WeightSet faulty;
      faulty.choice.key = found.key;
      faulty.choice.fault = found.fault;
      faulty.averaged = found.averaged;
      raw.sets.push_back(std::move(faulty));
      continue;
    }
    for (WeightSet& set : make_weight_sets(found.key, found.averaged, std::move(found.tensors))) {
      if (!found.counters.empty())
        set.notes.push_back(
            fmt::format("passed over {} entr{} that {} no tensor{} ({}{})", found.counters.size(),
                        found.counters.size() == 1 ? "y" : "ies", found.counters.size() == 1 ? "is" : "are",
                        found.counters.size() == 1 ? "" : "s", printable(found.counters[0], 60),
                        found.counters.size() == 1 ? "" : ", ..."));
      if (!found.matched.empty())
        set.notes.push_back(fmt::format(
            "its tensors have no names; they were given those of '{}', whose shapes are the same in "
            "the same order",
            printable(found.matched, 60)));
      raw.sets.push_back(std::move(set));
    }
  }
  // Dicts of tensors that are no model: an optimizer's, somebody's statistics.
  if (std::any_of(raw.sets.begin(), raw.sets.end(), holds_model)) {
    std::erase_if(raw.sets,
                  [&](const WeightSet& set) { return set.choice.fault.empty() && !holds_model(set); });
  }
  std::stable_sort(raw.sets.begin(), raw.sets.end(),
                   [](const WeightSet& a, const WeightSet& b) { return a.averaged > b.averaged; });
}

bool holds_index(const fs::path& folder) {
  const std::vector<std::string> names = names_in(folder);
  return std::any_of(names.begin(), names.end(),
                     [](const std::string& name) { return name.ends_with(".safetensors.index.json"); });
}

RawCheckpoint read_file(const fs::path& path) {
  const auto file = MappedFile::open(path);
  RawCheckpoint raw;
  try {
    raw = parse_raw(file->bytes(), path.string());
  } catch (const Error& error) {
    throw Error(error.what() + unfinished_download(path));
  }
  raw.files = {file};
  raw.memory = file;
  raw.sha256 = std::async(std::launch::async, [file] { return sha256_hex(file->bytes()); });
  return raw;
}

RawCheckpoint read_folder(const fs::path& path) {
  std::vector<std::string> notes;
  const fs::path folder = resolve_hub_cache(path, notes);
  const auto noted = [&](RawCheckpoint raw) {
    raw.notes.insert(raw.notes.begin(), notes.begin(), notes.end());
    return raw;
  };
  if (is_diffusers_folder(folder)) return noted(read_diffusers(folder));
  if (holds_index(folder)) return noted(read_shards(folder));
  const std::optional<Likeness> seen = recognize_folder(folder);
  const fs::path only = seen ? fs::path() : only_weight_file(folder);
  if (only.empty())
    refuse_folder(folder,
                  "not a folder of weights; wanted one of diffusers, of an index with its files, or with one "
                  "weight file");
  notes.push_back(
      fmt::format("read {}, the one weight file in the folder", printable(only.filename().string(), 60)));
  return noted(read_file(only));
}

}  // namespace

RawCheckpoint read_raw(const fs::path& path) {
  std::error_code unreadable;  // is told when it is opened
  if (fs::is_directory(path, unreadable)) return read_folder(path);
  if (is_safetensors_index(path)) return read_shards(path);
  return read_file(path);
}

RawCheckpoint parse_raw(std::span<const std::byte> bytes, const std::string& name) {
  RawCheckpoint raw;
  raw.name = name;
  const FileKind kind = sniff_file_kind(bytes);
  if (kind == FileKind::Safetensors) {
    SafetensorsFile file = parse_safetensors(bytes, name);
    raw.format = "safetensors";
    take_safetensors(raw, std::move(file.tensors), std::move(file.metadata));
  } else if (kind == FileKind::TorchZip || kind == FileKind::TorchLegacy) {
    if (!recognize_file(bytes, name)->is_torch) refuse_file(bytes, name, kWanted);
    raw.format = kind == FileKind::TorchZip ? "torch zip" : "torch legacy";
    take_torch(raw, parse_torch_checkpoint(bytes, name));
  } else if (is_tar(bytes)) {
    parse_torch_checkpoint(bytes, name);  // which says what it is
  } else {
    refuse_file(bytes, name, kWanted);
  }
  return raw;
}

}  // namespace dydit
