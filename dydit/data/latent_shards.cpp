// Latents in large safetensors files, mapped and read where they are asked for: our packed shards, and the
// files of LightningDiT.
#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "dydit/base/error.h"
#include "dydit/data/latents.h"
#include "dydit/data/parallel.h"
#include "dydit/io/bytes.h"
#include "dydit/io/latents_index.h"
#include "dydit/io/recognize.h"
#include "dydit/io/text.h"
#include "dydit/io/torch_file.h"

namespace dydit {
namespace {

namespace fs = std::filesystem;

constexpr const char* kLightningStats = "latents_stats.pt";

// Consecutive images of one file.
struct Part {
  int64_t first = 0, images = 0;
  Dtype dtype = Dtype::F32;
  size_t stride = 0;                            // bytes from an image's latent to the next image's
  std::array<const std::byte*, 2> mean = {};    // of the first image; [1]: of the mirrored one
  std::array<const std::byte*, 2> logvar = {};  // null: there is none
  std::shared_ptr<const MappedFile> file;
  std::string name;
};

struct Parts {
  std::vector<Part> parts;  // in the order of their images
  size_t values = 0;        // of one latent

  const Part& of(int64_t index) const {
    const auto after = std::upper_bound(parts.begin(), parts.end(), index,
                                        [](int64_t i, const Part& part) { return i < part.first; });
    return *(after - 1);
  }
  static const std::byte* at(const Part& part, const std::byte* first, int64_t index) {
    return first + static_cast<size_t>(index - part.first) * part.stride;
  }

  void operator()(int64_t index, bool mirrored, std::span<float> mean, std::span<float> std) const {
    const Part& part = of(index);
    read_floats(at(part, part.mean[mirrored], index), part.dtype, mean);
    if (part.logvar[mirrored] == nullptr) return;
    read_floats(at(part, part.logvar[mirrored], index), part.dtype, std);
    to_std(std);
  }

  std::string sha256(int64_t index) const {
    const Part& part = of(index);
    std::string bytes;
    for (const std::byte* const first : {part.mean[0], part.mean[1], part.logvar[0], part.logvar[1]}) {
      if (first != nullptr) bytes += text_of({at(part, first, index), values * dtype_size(part.dtype)});
    }
    return sha256_hex(bytes_of(bytes));
  }
};

void set_parts(LatentSource& source, Parts parts) {
  const auto shared = std::make_shared<const Parts>(std::move(parts));
  source.read = [shared](int64_t index, bool mirrored, std::span<float> mean, std::span<float> std) {
    (*shared)(index, mirrored, mean, std);
  };
  source.sha256 = [shared](int64_t index) { return shared->sha256(index); };
  source.name = [](int64_t index) { return fmt::format("image {}", index); };
}

// Channels and side of a latent, of the first file or as it has them.
void set_shape(LatentInfo& info, Dtype dtype, std::span<const int64_t> sizes, bool is_first,
               const std::string& name) {
  constexpr int64_t kMost = 1 << 14;
  DYDIT_CHECK(std::all_of(sizes.begin(), sizes.end(), [](int64_t n) { return n > 0 && n <= kMost; }) &&
                  sizes[1] == sizes[2],
              "{}: has latents of {}; (C, h, h) is wanted", name, shape_text(sizes));
  const int channels = static_cast<int>(sizes[0]), side = static_cast<int>(sizes[1]);
  if (is_first) {
    info.channels = channels;
    info.side = side;
    info.dtype = dtype;
  }
  DYDIT_CHECK(channels == info.channels && side == info.side && dtype == info.dtype,
              "{}: has latents of {}x{}x{} {}, the files before of {}x{}x{} {}; one size is wanted", name,
              channels, side, side, dtype_name(dtype), info.channels, info.side, info.side,
              dtype_name(info.dtype));
}

std::vector<int64_t> read_labels(const TensorView& labels) {
  std::vector<int64_t> numbers(static_cast<size_t>(labels.numel()));
  std::memcpy(numbers.data(), labels.data, numbers.size() * sizeof(int64_t));
  return numbers;
}

void add_labels(std::vector<int>& labels, const TensorView& view, const std::string& name) {
  for (const int64_t label : read_labels(view))
    labels.push_back(checked_label(label, fmt::format("{}: image {}", name, labels.size())));
}

// Whole shards, evenly spaced.
void check_hashes(const Parts& parts, const LatentsIndex& index, const LatentReadOptions& options) {
  uint64_t total = 0;
  for (const Part& part : parts.parts) total += part.file->bytes().size();
  const auto step = static_cast<int64_t>(total / std::max<uint64_t>(options.hashed_bytes, 1) + 1);
  const int64_t count = (static_cast<int64_t>(parts.parts.size()) + step - 1) / step;
  parallel_for(count, options.threads, [&](int64_t i) {
    const auto k = static_cast<size_t>(i * step);
    const std::string sha256 = sha256_hex(parts.parts[k].file->bytes());
    DYDIT_CHECK(
        sha256 == index.files[k].sha256,
        "{}: has the SHA-256 {}, {} says {}: it was changed or is of another set; copy it again or remove "
        "it and run dydit latents once more",
        parts.parts[k].name, sha256, kLatentsIndexName, printable(index.files[k].sha256));
  });
}

void check_finished(const fs::path& path) {
  std::error_code unreadable;
  if (fs::exists(path / kLatentsIndexName, unreadable)) return;
  const auto names = names_in(path);
  const auto shards =
      std::count_if(names.begin(), names.end(), [](const auto& n) { return shards_of_name(n); });
  throw Error(
      fmt::format("{}: is not finished: it has {} shards, but no {}; run dydit latents again, it goes on "
                  "where it stopped",
                  path.string(), shards, kLatentsIndexName));
}

LatentInfo info_of(const LatentsIndex& index) {
  LatentInfo info;
  info.layout = LatentLayout::Packed;
  info.flips = index.flips;
  info.scale = {index.scaling, index.shift, index.mean, index.std};
  const auto text = [&](const char* key) {
    const auto found = index.metadata.find(key);
    return found == index.metadata.end() ? std::string() : found->second;
  };
  info.vae_kind = text("vae_kind");
  info.vae_sha256 = text("vae_sha256");
  info.metadata = index.metadata;
  info.channel_mean = index.channel_mean;
  info.channel_std = index.channel_std;
  return info;
}

const TensorView& tensor_of(const SafetensorsFile& file, const char* key, const std::string& name) {
  const auto found = file.tensors.find(key);
  DYDIT_CHECK(found != file.tensors.end(),
              "{}: has no tensor {}; LightningDiT's files of latents have latents, "
              "latents_flip and labels",
              name, quote(key));
  return found->second;
}

// (1, C, 1, 1) float32.
std::vector<double> channel_values(const TensorViews& tensors, const char* key, int channels,
                                   const std::string& name) {
  const auto found = tensors.find(key);
  DYDIT_CHECK(found != tensors.end() && found->second.dtype == Dtype::F32 && is_contiguous(found->second) &&
                  found->second.numel() == channels,
              "{}: has no {} of {} float32 numbers, one a channel", name, quote(key), channels);
  std::vector<float> values(static_cast<size_t>(channels));
  read_floats(found->second.data, Dtype::F32, values);
  return {values.begin(), values.end()};
}

LatentScale lightning_scale(const fs::path& path, int channels) {
  const std::string name = path.string();
  std::error_code unreadable;
  DYDIT_CHECK(fs::exists(path, unreadable),
              "{}: is missing; LightningDiT's latents are normalised by the mean and std that lie in it",
              name);
  const TorchCheckpoint stats = read_torch_checkpoint(path);
  const TensorViews& tensors = preferred_weights(stats).tensors;
  LatentScale scale{1, 0, channel_values(tensors, "mean", channels, name),
                    channel_values(tensors, "std", channels, name)};
  for (const double std : scale.std)
    DYDIT_CHECK(std > 0, "{}: its std of a channel is {}; numbers above 0 are wanted", name, std);
  return scale;
}

}  // namespace

LatentSource open_packed(const fs::path& path, const LatentReadOptions& options) {
  check_finished(path);
  const fs::path index_path = path / kLatentsIndexName;
  const LatentsIndex index = parse_latents_index(MappedFile::open(index_path)->bytes(), index_path.string());
  LatentSource source;
  source.info = info_of(index);
  LatentInfo& info = source.info;
  Parts parts;
  for (size_t k = 0; k < index.files.size(); ++k) {
    const fs::path shard_path = path / index.files[k].name;
    const std::string name = shard_path.string();
    std::error_code unreadable;
    DYDIT_CHECK(fs::exists(shard_path, unreadable),
                "{}: is missing, but {} lists it; copy it again or run dydit latents once more", name,
                kLatentsIndexName);
    const SafetensorsFile file = read_safetensors(shard_path);
    const LatentShard shard = parse_latent_shard(file, index, k, name);
    set_shape(info, shard.mean.dtype, std::span(shard.mean.shape).subspan(2), k == 0, name);
    DYDIT_CHECK(k == 0 || info.spread == shard.logvar.has_value(),
                "{}: of the shards some have logvar and some do not", name);
    info.spread = shard.logvar.has_value();
    info.bytes += file.file->bytes().size();
    const size_t latent = static_cast<size_t>(info.values()) * dtype_size(info.dtype);
    Part part{.first = static_cast<int64_t>(source.labels.size()),
              .images = index.files[k].images,
              .dtype = info.dtype,
              .stride = latent * static_cast<size_t>(info.flips),
              .file = file.file,
              .name = name};
    for (int flip = 0; flip < info.flips; ++flip) {
      part.mean[flip] = shard.mean.data + flip * latent;
      if (shard.logvar) part.logvar[flip] = shard.logvar->data + flip * latent;
    }
    parts.parts.push_back(std::move(part));
    add_labels(source.labels, shard.labels, name);
  }
  parts.values = static_cast<size_t>(info.values());
  check_hashes(parts, index, options);
  set_parts(source, std::move(parts));
  if (index.class_names.empty()) {
    set_numbered(source, std::move(source.labels));
    return source;
  }
  source.classes = {index.class_names, /*named=*/true};
  for (const std::string& name : index.class_names)
    check_class_name(name, fmt::format("{}: class_names", index_path.string()));
  const int highest = *std::max_element(source.labels.begin(), source.labels.end());
  DYDIT_CHECK(highest < static_cast<int>(index.class_names.size()), "{}: label {} of {} classes",
              index_path.string(), highest, index.class_names.size());
  return source;
}

LatentSource open_lightningdit(const fs::path& path, const LatentReadOptions& options) {
  LatentSource source;
  LatentInfo& info = source.info;
  info.layout = LatentLayout::LightningDit;
  info.flips = 2;
  Parts parts;
  std::vector<int> labels;
  const Tree tree = Tree::of_folder(path);
  for (const TreeFile& entry : tree.root().files) {
    if (!entry.name().ends_with(".safetensors")) continue;
    const SafetensorsFile file = read_safetensors(entry.path);
    const TensorView &latents = tensor_of(file, "latents", entry.path),
                     &mirrored = tensor_of(file, "latents_flip", entry.path),
                     &classes = tensor_of(file, "labels", entry.path);
    const bool is_float =
        latents.dtype == Dtype::F32 || latents.dtype == Dtype::F16 || latents.dtype == Dtype::BF16;
    DYDIT_CHECK(is_float && latents.shape.size() == 4 && mirrored.dtype == latents.dtype &&
                    mirrored.shape == latents.shape,
                "{}: latents are {} {}, latents_flip {} {}; both (n, C, h, h) of F32, F16 or BF16 are wanted",
                entry.path, dtype_name(latents.dtype), shape_text(latents.shape), dtype_name(mirrored.dtype),
                shape_text(mirrored.shape));
    DYDIT_CHECK(classes.dtype == Dtype::I64 && classes.shape == std::vector<int64_t>{latents.shape[0]},
                "{}: labels are {} {}; I64 ({}) is wanted", entry.path, dtype_name(classes.dtype),
                shape_text(classes.shape), latents.shape[0]);
    set_shape(info, latents.dtype, std::span(latents.shape).subspan(1), parts.parts.empty(), entry.path);
    info.bytes += file.file->bytes().size();
    parts.values = static_cast<size_t>(info.values());
    parts.parts.push_back({.first = static_cast<int64_t>(labels.size()),
                           .images = latents.shape[0],
                           .dtype = info.dtype,
                           .stride = parts.values * dtype_size(info.dtype),
                           .mean = {latents.data, mirrored.data},
                           .file = file.file,
                           .name = entry.path});
    add_labels(labels, classes, entry.path);
  }
  DYDIT_CHECK(!labels.empty(), "{}: its files hold no latents", path.string());
  info.scale = lightning_scale(path / kLightningStats, info.channels);
  source.notes.push_back("latents  (z - mean) / std of latents_stats.pt, times 1");
  set_parts(source, std::move(parts));
  set_numbered(source, std::move(labels));
  return source;
}

}  // namespace dydit
