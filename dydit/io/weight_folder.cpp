#include "dydit/io/weight_folder.h"

#include <algorithm>
#include <string_view>

#include <fmt/ranges.h>

#include "dydit/base/error.h"
#include "dydit/io/recognize.h"
#include "dydit/io/safetensors.h"
#include "dydit/io/safetensors_index.h"
#include "dydit/io/text.h"
#include "dydit/io/torch_file.h"

namespace dydit {
namespace {

namespace fs = std::filesystem;

constexpr const char* kWeights = kDiffusersFiles[1];
constexpr const char* kIndex = "diffusion_pytorch_model.safetensors.index.json";
constexpr const char* kTorchWeights = "diffusion_pytorch_model.bin";

// The file of weights in a folder: without a variant in its name, or else of the only variant. Empty without.
std::string find_weights(const fs::path& folder) {
  for (const char* name : {kWeights, kIndex, kTorchWeights}) {
    if (is_there(folder / name)) return name;
  }
  constexpr std::string_view kStem = "diffusion_pytorch_model.";
  std::vector<std::string>
      variants;  // diffusion_pytorch_model.fp16.safetensors, ...safetensors.index.fp16.json
  for (const std::string& name : names_in(folder)) {
    if (!name.starts_with(kStem) || name.find("-of-") != name.npos) continue;
    if (name.ends_with(".safetensors") || name.ends_with(".json") || name.ends_with(".bin"))
      variants.push_back(name);
  }
  DYDIT_CHECK(variants.size() <= 1,
              "{}: holds variants of the weights alone, {} of them ({}, {}); take the others out",
              folder.string(), variants.size(), quote(variants[0]), quote(variants[1]));
  return variants.empty() ? "" : variants[0];
}

}  // namespace

bool is_there(const fs::path& path) {
  std::error_code unreadable;
  return fs::exists(path, unreadable);
}

fs::path resolve_hub_cache(const fs::path& path, std::vector<std::string>& notes) {
  std::error_code unreadable;
  if (!fs::is_directory(path / "snapshots", unreadable)) return path;
  std::vector<std::string> commits = names_in(path / "snapshots");
  DYDIT_CHECK(!commits.empty(),
              "{}: is a folder of the hub's cache without a snapshot; fetch the model again", path.string());
  if (commits.size() > 1) {
    for (std::string& commit : commits) commit = printable(commit, 60);
    throw Error(fmt::format("{}: is a folder of the hub's cache with {} snapshots; name one: snapshots/{}",
                            path.string(), commits.size(), fmt::join(commits, ", snapshots/")));
  }
  notes.push_back(fmt::format("read snapshots/{}", printable(commits[0], 60)));
  return path / "snapshots" / commits[0];
}

fs::path only_weight_file(const fs::path& folder) {
  fs::path found;
  for (const std::string& name : names_in(folder)) {
    if (!is_weight_name(name)) continue;
    if (!found.empty()) return {};
    found = folder / name;
  }
  return found;
}

bool has_diffusers_weights(const fs::path& folder) { return !find_weights(folder).empty(); }

FolderWeights read_diffusers_weights(const fs::path& folder) {
  const std::string name = find_weights(folder);
  DYDIT_CHECK(!name.empty(), "{}: has neither {} nor {}, {}; fetch the weights, too", folder.string(),
              kWeights, kIndex, kTorchWeights);
  FolderWeights result;
  if (name != kWeights && name != kIndex && name != kTorchWeights)
    result.notes.push_back(fmt::format("read the variant {}", printable(name)));
  const auto take = [&](TensorViews tensors, std::shared_ptr<const MappedFile> file) {
    result.tensors = std::move(tensors);
    result.sha256 = sha256_hex(file->bytes());
    result.files = {std::move(file)};
  };
  if (name.ends_with(".safetensors")) {
    SafetensorsFile file = read_safetensors(folder / name);
    take(std::move(file.tensors), std::move(file.file));
  } else if (name.ends_with(".json")) {
    ShardedSafetensors shards = read_safetensors_shards(folder / name);
    result.tensors = std::move(shards.tensors);
    result.sha256 = shards.sha256;
    result.files = std::move(shards.files);
  } else {
    TorchCheckpoint file = read_torch_checkpoint(folder / name);
    take(preferred_weights(file).tensors, std::move(file.file));
  }
  return result;
}

}  // namespace dydit
