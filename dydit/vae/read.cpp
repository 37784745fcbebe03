// From a path to tensors and a configuration: a folder of diffusers, one of TAESD's two files, two files with
// a comma between, one file, or weights by recipe.
#include <algorithm>
#include <array>
#include <utility>

#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "dydit/base/error.h"
#include "dydit/io/bytes.h"
#include "dydit/io/json.h"
#include "dydit/io/recognize.h"
#include "dydit/io/safetensors.h"
#include "dydit/io/safetensors_index.h"
#include "dydit/io/text.h"
#include "dydit/io/torch_file.h"
#include "dydit/io/weight_folder.h"
#include "dydit/vae/config.h"
#include "dydit/vae/read_parts.h"
#include "dydit/vae/recipe.h"

namespace dydit {
namespace {

namespace fs = std::filesystem;

constexpr const char* kConfig = kDiffusersFiles[0];
constexpr const char* kWanted =
    "not an autoencoder's weights; wanted safetensors or a torch file (.pt, .pth, .ckpt, .bin)";

void check_no_config(const AutoencoderReadOptions& options, const fs::path& path, std::string_view own) {
  DYDIT_USAGE_CHECK(options.config.empty(), "{}: has a configuration of its own ({}); leave --vae-config out",
                    path.string(), own);
}

void take_config(RawAutoencoder& raw, std::string_view text, const std::string& name) {
  raw.config = parse_autoencoder_config(text, name, raw.notes);
  raw.config_name = name;
}

void take_config(RawAutoencoder& raw, const fs::path& path) {
  take_config(raw, text_of(MappedFile::open(path)->bytes()), path.string());
}

bool holds_autoencoder(const TensorViews& tensors, const std::string& name) {
  return taesd_half(tensors) || names_below(tensors, prefix_of(tensors), name);
}

// The first set that holds an autoencoder, averages first; of none the one that says what it is.
TensorViews choose_set(TorchCheckpoint torch, const std::string& name, std::vector<std::string>& notes) {
  for (TorchWeights& set : torch.sets) {
    if (!set.fault.empty() || !holds_autoencoder(set.tensors, name)) continue;
    if (torch.sets.size() > 1)
      notes.push_back(
          fmt::format("took the weights '{}' of {} sets", printable(set.key, 60), torch.sets.size()));
    return std::move(set.tensors);
  }
  return preferred_weights(torch).tensors;
}

// TAESD's names are positions, alike in both halves.
void add_half(TensorViews& into, TensorViews tensors, VaeHalf half) {
  const std::string prefix = half == VaeHalf::Encoder ? "encoder." : "decoder.";
  for (auto& [name, view] : tensors) into.emplace(prefix + name, std::move(view));
}

RawAutoencoder parse_bytes(std::span<const std::byte> bytes, const std::string& name) {
  RawAutoencoder raw;
  raw.name = name;
  const FileKind kind = sniff_file_kind(bytes);
  TensorViews tensors;
  if (kind == FileKind::Safetensors) {
    raw.container = "safetensors";
    tensors = parse_safetensors(bytes, name).tensors;
  } else if (kind == FileKind::TorchZip || kind == FileKind::TorchLegacy) {
    if (!recognize_file(bytes, name)->is_torch) refuse_file(bytes, name, kWanted);
    raw.container = kind == FileKind::TorchZip ? "torch zip" : "torch legacy";
    tensors = choose_set(parse_torch_checkpoint(bytes, name), name, raw.notes);
  } else {
    refuse_file(bytes, name, kWanted);
  }
  if (const std::optional<VaeHalf> half = taesd_half(tensors)) {
    add_half(raw.tensors, std::move(tensors), *half);
  } else {
    raw.tensors = std::move(tensors);
  }
  return raw;
}

RawAutoencoder read_bytes(const fs::path& path) {
  const auto file = MappedFile::open(path);
  RawAutoencoder raw;
  try {
    raw = parse_bytes(file->bytes(), path.string());
  } catch (const Error& error) {
    throw Error(error.what() + unfinished_download(path));
  }
  raw.files = {file};
  raw.memory = file;
  raw.sha256 = std::async(std::launch::async, [file] { return sha256_hex(file->bytes()); });
  return raw;
}

// A file that lies in a folder of diffusers is what the folder says.
RawAutoencoder read_file(const fs::path& path) {
  RawAutoencoder raw = read_bytes(path);
  const fs::path beside = path.parent_path() / kConfig;
  if (path.filename().string().starts_with("diffusion_pytorch_model.") && is_there(beside)) {
    take_config(raw, beside);
    raw.notes.push_back(fmt::format("read {} beside it", kConfig));
  }
  return raw;
}

// An encoder and a decoder, in either order.
RawAutoencoder read_pair(const std::array<fs::path, 2>& paths, const std::string& name) {
  RawAutoencoder raw;
  raw.name = name;
  raw.container = "two files";
  std::string digests;
  for (const fs::path& path : paths) {
    RawAutoencoder half = read_bytes(path);
    const bool tiny = names_below(half.tensors, "", name) == VaeNames::Taesd;
    DYDIT_CHECK(
        tiny,
        "{}: is no half of a tiny autoencoder of TAESD's layout; two files hold an encoder and a decoder",
        path.string());
    for (auto& [key, view] : half.tensors) {
      DYDIT_CHECK(raw.tensors.emplace(key, view).second,
                  "{}: both files hold {}; one of an encoder and one of a decoder are wanted", name, key);
    }
    digests += fmt::format("{}  {}\n", half.sha256.get(), path.filename().string());
    raw.files.push_back(half.files[0]);
  }
  raw.memory = std::make_shared<const decltype(raw.files)>(raw.files);
  raw.sha256 = std::async(std::launch::deferred, [digests] { return sha256_hex(bytes_of(digests)); });
  return raw;
}

// Weight files whose names say that they are halves.
std::vector<fs::path> halves_in(const fs::path& folder) {
  std::vector<fs::path> halves;
  for (const std::string& name : names_in(folder)) {
    const std::string stem = lower_case(fs::path(name).stem().string());
    if (is_weight_name(name) && (stem.ends_with("encoder") || stem.ends_with("decoder")))
      halves.push_back(folder / name);
  }
  return halves;
}

RawAutoencoder read_diffusers(const fs::path& folder) {
  RawAutoencoder raw;
  raw.name = folder.string();
  raw.container = "diffusers folder";
  take_config(raw, folder / kConfig);
  FolderWeights weights = read_diffusers_weights(folder);
  raw.tensors = std::move(weights.tensors);
  raw.notes.insert(raw.notes.end(), weights.notes.begin(), weights.notes.end());
  raw.sha256 = std::async(std::launch::deferred, [sha256 = weights.sha256] { return sha256; });
  raw.files = std::move(weights.files);
  raw.memory = std::make_shared<const decltype(raw.files)>(raw.files);
  return raw;
}

// A pipeline has its autoencoder in vae.
fs::path autoencoder_in(const fs::path& folder) {
  return is_there(folder / "vae" / kConfig) ? folder / "vae" : folder;
}

RawAutoencoder read_folder(const fs::path& path) {
  std::vector<std::string> notes;
  const fs::path folder = autoencoder_in(resolve_hub_cache(path, notes));
  const auto noted = [&](RawAutoencoder raw) {
    raw.notes.insert(raw.notes.begin(), notes.begin(), notes.end());
    return raw;
  };
  if (is_there(folder / kConfig)) return noted(read_diffusers(folder));
  DYDIT_CHECK(
      !is_there(folder / kDiffusersPipeline),
      "{}: is a pipeline of diffusers without an autoencoder (vae/{}); fetch it, too, or name another",
      folder.string(), kConfig);
  const std::vector<fs::path> halves = halves_in(folder);
  if (halves.size() > 2) {
    std::vector<std::string> names;
    for (const fs::path& half : halves) names.push_back(printable(half.filename().string(), 60));
    throw Error(
        fmt::format("{}: holds halves of several autoencoders ({}); name two of them with a comma "
                    "between: ENCODER,DECODER",
                    folder.string(), fmt::join(names, ", ")));
  }
  for (const fs::path& half : halves)
    notes.push_back(fmt::format("read {}", printable(half.filename().string(), 60)));
  if (halves.size() == 2) return noted(read_pair({halves[0], halves[1]}, folder.string()));
  const fs::path only = halves.empty() ? only_weight_file(folder) : halves[0];
  if (only.empty())
    refuse_folder(folder,
                  "not an autoencoder's folder; wanted one of diffusers, one with an encoder's and a "
                  "decoder's file, or with one weight file");
  if (halves.empty())
    notes.push_back(
        fmt::format("read {}, the one weight file in the folder", printable(only.filename().string(), 60)));
  return noted(read_file(only));
}

// "ENCODER,DECODER", where no file is called so.
std::optional<std::array<fs::path, 2>> pair_of(const fs::path& path) {
  const std::string text = path.string();
  const size_t comma = text.find(',');
  if (is_there(path) || comma == text.npos) return std::nullopt;
  return std::array{fs::path(text.substr(0, comma)), fs::path(text.substr(comma + 1))};
}

RawAutoencoder read_path(const fs::path& path) {
  std::error_code unreadable;  // is told when it is opened
  if (fs::is_directory(path, unreadable)) return read_folder(path);
  if (const auto pair = pair_of(path)) return read_pair(*pair, path.string());
  return read_file(path);
}

}  // namespace

RawAutoencoder read_raw_autoencoder(const fs::path& path, const AutoencoderReadOptions& options) {
  RawAutoencoder raw = read_path(path);
  if (raw.config) check_no_config(options, path, raw.config_name);
  if (!options.config.empty()) take_config(raw, options.config);
  const auto& [name, text] = options.stated;
  if (!raw.config && !text.empty()) {
    take_config(raw, text, name);
    raw.notes.push_back(fmt::format("comes without a configuration; took that of {}", name));
  }
  return raw;
}

AutoencoderFile load_autoencoder(const fs::path& path, const AutoencoderReadOptions& options) {
  if (const std::optional<AutoencoderFile> made = autoencoder_by_recipe(path.string())) {
    check_no_config(options, path, "its recipe");
    return *made;
  }
  AutoencoderFile file = understand_autoencoder(read_raw_autoencoder(path, options));
  file.path = path;
  return file;
}

AutoencoderFile parse_autoencoder(std::span<const std::byte> bytes, const std::string& name) {
  RawAutoencoder raw = parse_bytes(bytes, name);
  raw.sha256 = std::async(std::launch::deferred, [bytes] { return sha256_hex(bytes); });
  return understand_autoencoder(std::move(raw));
}

bool is_autoencoder(const fs::path& path) {
  if (is_recipe(path.string())) return true;
  std::error_code unreadable;
  try {
    std::vector<std::string> notes;
    if (!fs::is_directory(path, unreadable)) {
      if (pair_of(path)) return holds_autoencoder(read_path(path).tensors, path.string());
      const auto file = MappedFile::open(path);
      const TensorViews tensors = parse_bytes(file->bytes(), path.string()).tensors;
      return !tensors.contains("x_embedder.proj.weight") && holds_autoencoder(tensors, path.string());
    }
    const fs::path top = resolve_hub_cache(path, notes), folder = autoencoder_in(top);
    if (is_there(top / "transformer")) return false;
    if (!is_there(folder / kConfig)) return holds_autoencoder(read_path(path).tensors, path.string());
    const nlohmann::json config =
        read_json(text_of(MappedFile::open(folder / kConfig)->bytes()), /*max_depth=*/8, path.string());
    const auto kind = config.find("_class_name");
    return kind != config.end() && kind->is_string() &&
           kind->get_ref<const std::string&>().starts_with("Autoencoder");
  } catch (const Error&) {
    return false;  // whoever reads it says why
  }
}

}  // namespace dydit
