// Which layout a folder has, and what the layouts' readers share.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <utility>

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include "dydit/base/error.h"
#include "dydit/data/latents.h"
#include "dydit/io/bytes.h"
#include "dydit/io/latents_index.h"
#include "dydit/io/recognize.h"
#include "dydit/io/safetensors.h"

namespace dydit {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxClasses = 65536;

bool is_folder(const fs::path& path) {
  std::error_code unreadable;  // is none for us
  return fs::is_directory(path, unreadable);
}
bool is_file(const fs::path& path) {
  std::error_code unreadable;
  return fs::is_regular_file(path, unreadable);
}

bool has_packed_files(const fs::path& path) {
  if (is_file(path / kLatentsIndexName)) return true;
  const auto names = names_in(path);
  return std::any_of(names.begin(), names.end(), [](const auto& name) { return shards_of_name(name); });
}

// By the first file, since all of them are alike.
bool has_lightningdit_files(const fs::path& path) {
  for (const std::string& name : names_in(path)) {
    if (!name.ends_with(".safetensors")) continue;
    try {
      const SafetensorsFile file = read_safetensors(path / name);
      return file.tensors.contains("latents") && file.tensors.contains("labels");
    } catch (const Error&) {  // another reader says why
      return false;
    }
  }
  return false;
}

// By the first file of the first folder that has one.
bool has_mar_files(const fs::path& path) {
  for (const std::string& folder : names_in(path)) {
    if (!is_folder(path / folder)) continue;
    for (const std::string& name : names_in(path / folder, 1)) return name.ends_with(".npz");
  }
  return false;
}

template <typename T>
void widen(const std::byte* numbers, std::span<float> out) {
  for (size_t i = 0; i < out.size(); ++i) {
    T value;
    std::memcpy(&value, numbers + i * sizeof(T), sizeof(T));
    out[i] = static_cast<float>(value);
  }
}

}  // namespace

std::optional<LatentLayout> latent_layout(const fs::path& path) {
  if (!is_folder(path)) return std::nullopt;
  if (has_packed_files(path)) return LatentLayout::Packed;
  if (feature_folders(path)) return LatentLayout::FastDit;
  if (repa_folder(path)) return LatentLayout::Repa;
  if (has_lightningdit_files(path)) return LatentLayout::LightningDit;
  if (has_mar_files(path)) return LatentLayout::Mar;
  return std::nullopt;
}

LatentSource open_latents(const fs::path& path, const LatentReadOptions& options) {
  switch (latent_layout(path).value()) {
    case LatentLayout::Packed:
      return open_packed(path, options);
    case LatentLayout::FastDit:
      return open_fastdit(path, options);
    case LatentLayout::Repa:
      return open_repa(path, options);
    case LatentLayout::Mar:
      return open_mar(path, options);
    default:
      return open_lightningdit(path, options);
  }
}

void read_floats(const std::byte* numbers, Dtype dtype, std::span<float> out) {
  if (dtype == Dtype::F16) return widen<c10::Half>(numbers, out);
  if (dtype == Dtype::BF16) return widen<c10::BFloat16>(numbers, out);
  if (dtype == Dtype::F64) return widen<double>(numbers, out);
  widen<float>(numbers, out);
}

void to_std(std::span<float> logvar) {
  for (float& value : logvar) value = std::exp(0.5f * std::clamp(value, kLowestLogvar, kHighestLogvar));
}

int checked_label(int64_t label, const std::string& name) {
  DYDIT_CHECK(label != -1, "{}: has no label (-1); training wants one of every image", name);
  DYDIT_CHECK(label >= 0 && label < kMaxClasses, "{}: its label {} is out of range, wanted 0 to {}", name,
              label, kMaxClasses - 1);
  return static_cast<int>(label);
}

void set_numbered(LatentSource& source, std::vector<int> labels) {
  source.labels = std::move(labels);
  source.classes = numbered_classes(1 + *std::max_element(source.labels.begin(), source.labels.end()));
}

}  // namespace dydit
