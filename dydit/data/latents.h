// Sets of latents as they lie on disk, ours and others': each layout has one function that opens it; where
// its values, spreads and factors stand is known there and nowhere else. docs/formats.md describes them.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dydit/base/enum_names.h"
#include "dydit/data/classes.h"
#include "dydit/data/latent_scale.h"
#include "dydit/data/tree.h"
#include "dydit/io/tensor_view.h"

namespace dydit {

enum class LatentLayout { Packed, FastDit, Repa, Mar, LightningDit };
inline constexpr EnumNames<LatentLayout, 5> kLatentLayoutNames = {
    "layout",
    {{"packed", LatentLayout::Packed},
     {"fast-DiT", LatentLayout::FastDit},
     {"REPA", LatentLayout::Repa},
     {"MAR", LatentLayout::Mar},
     {"LightningDiT", LatentLayout::LightningDit}}};

/// What a set of latents is.
struct LatentInfo {
  LatentLayout layout = LatentLayout::Packed;
  Dtype dtype = Dtype::F32;    // as stored
  int channels = 0, side = 0;  // of a square latent
  int flips = 1;               // 2: the mirrored image's is there, too
  bool spread = false;         // a distribution is stored, else one latent an image
  bool scaled = false;         // what is stored is what a model sees already
  LatentScale scale;
  std::string vae_kind, vae_sha256;               // empty: not told
  std::map<std::string, std::string> metadata;    // of a packed set, all that it says
  std::vector<double> channel_mean, channel_std;  // of a packed set, where it says so
  uint64_t bytes = 0;                             // of all latents, as stored

  int64_t values() const { return int64_t{channels} * side * side; }
};

struct LatentSource {
  LatentInfo info;
  std::vector<int> labels;  // (images), of `classes`
  DataClasses classes;
  std::vector<std::string> notes;  // lines to tell
  /// Reads one latent, (channels, side, side): its mean and, where there is a spread, its standard deviation.
  /// Any thread. Throws Error that names a file which has changed or gone.
  std::function<void(int64_t index, bool mirrored, std::span<float> mean, std::span<float> std)> read;
  /// What it is called in the set: its file, or its number.
  std::function<std::string(int64_t index)> name;
  /// SHA-256 of its latents as they are stored.
  std::function<std::string(int64_t index)> sha256;
};

struct LatentReadOptions {
  int threads = 1;
  /// Of packed shards: how many bytes of them are compared with their SHA-256 (whole shards, evenly spaced;
  /// one at least).
  uint64_t hashed_bytes = uint64_t{1} << 30;
};

/// The layout of a folder, by the names in it and the head of a file; nothing where it is no set of latents.
std::optional<LatentLayout> latent_layout(const std::filesystem::path& path);

/// Opens a set for which latent_layout() says something. Throws Error that names the file: no label, no
/// image, other sizes than the rest, a shard that is missing or was changed, a set that is not finished, ...
LatentSource open_latents(const std::filesystem::path& path, const LatentReadOptions& options);

// One function a layout: latent_shards.cpp and latent_folders.cpp.
LatentSource open_packed(const std::filesystem::path& path, const LatentReadOptions& options);
LatentSource open_lightningdit(const std::filesystem::path& path, const LatentReadOptions& options);
LatentSource open_fastdit(const std::filesystem::path& path, const LatentReadOptions& options);
LatentSource open_repa(const std::filesystem::path& path, const LatentReadOptions& options);
LatentSource open_mar(const std::filesystem::path& path, const LatentReadOptions& options);

/// The two folders of a fast-DiT set, of which the path is one or holds both; nothing where there are none.
struct FeatureFolders {
  std::filesystem::path features, labels;
};
std::optional<FeatureFolders> feature_folders(const std::filesystem::path& path);
/// The folder with dataset.json of a REPA set.
std::optional<std::filesystem::path> repa_folder(const std::filesystem::path& path);

/// `out.size()` numbers, which begin at any address, as float32: F16, BF16, F32 or F64.
void read_floats(const std::byte* numbers, Dtype dtype, std::span<float> out);
/// exp(logvar / 2), logvar cut to what is stored of it; in place.
void to_std(std::span<float> logvar);
/// Class numbers as they are labels: 0..65535. Throws Error that begins with `name`.
int checked_label(int64_t label, const std::string& name);
/// Labels that are numbers, and classes for all of them up to the highest.
void set_numbered(LatentSource& source, std::vector<int> labels);

}  // namespace dydit
