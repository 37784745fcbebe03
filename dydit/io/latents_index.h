// Sets of latents as they are packed here: latents.json, and beside it latents-K-of-N.safetensors with
// consecutive images each. Every shard says in its metadata what the index says, so that none is mistaken.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dydit/io/safetensors.h"
#include "dydit/io/tensor_view.h"

namespace dydit {

inline constexpr int kLatentsVersion = 1;
inline constexpr const char* kLatentsIndexName = "latents.json";
/// What is cut off of an autoencoder's logvar, before it is stored and when it is read.
inline constexpr float kLowestLogvar = -30, kHighestLogvar = 20;

/// "latents-00002-of-00157.safetensors"
std::string latent_shard_name(int64_t shard, int64_t shards);
/// N of such a name; nothing for other names.
std::optional<int64_t> shards_of_name(std::string_view file_name);

struct LatentsIndex {
  struct File {
    std::string name;
    int64_t images = 0;
    std::string sha256;
  };
  std::map<std::string, std::string> metadata;  // the texts, most of which every shard has as well
  int64_t images = 0;
  int flips = 1;  // 2: of every image and of the mirrored one
  double scaling = 1, shift = 0;
  std::vector<double> mean, std;         // latents_mean, latents_std: both empty or one value a channel
  std::vector<std::string> class_names;  // empty: classes are numbers
  std::vector<File> files;               // in the order of their images
  std::vector<double> channel_mean, channel_std;  // of the values, unscaled
};

/// Throws Error that begins with `name`: no such index, a newer one, numbers that are missing or cannot be
/// meant (a scaling factor of 0), files that do not hold all images, more than 8,192 files or 2 MiB.
LatentsIndex parse_latents_index(std::span<const std::byte> bytes, const std::string& name);

/// The tensors of one shard: n images, F flips, C channels.
struct LatentShard {
  TensorView mean;                   // (n, F, C, h, w) F16, BF16 or F32
  std::optional<TensorView> logvar;  // the same; nothing where the autoencoder is deterministic
  TensorView labels;                 // (n) I64, -1: none
};

/// Shard number `shard` of the index. Throws Error that begins with `name`: tensors that are missing, unknown
/// or of other shapes, metadata that is not the index's, a range of images that does not begin where the one
/// before ends.
LatentShard parse_latent_shard(const SafetensorsFile& file, const LatentsIndex& index, size_t shard,
                               const std::string& name);

}  // namespace dydit
