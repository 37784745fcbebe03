#include "dydit/io/latents_index.h"

#include <algorithm>
#include <cmath>

#include <nlohmann/json.hpp>

#include "dydit/base/error.h"
#include "dydit/base/numbers.h"
#include "dydit/io/bytes.h"
#include "dydit/io/json.h"
#include "dydit/io/text.h"

namespace dydit {
namespace {

using nlohmann::json;

constexpr size_t kMaxIndexBytes = 2 << 20;  // a tree of JSON takes some twenty bytes for each of the text
constexpr int kMostFiles = 8192;            // the parser walks through a list once for each object in it
constexpr int kIndexDepth = 3, kListDepth = 1;
constexpr int64_t kMostImages = int64_t{1} << 40;
constexpr std::string_view kPrefix = "latents-", kMiddle = "-of-", kSuffix = ".safetensors";
constexpr const char* kWayOut = "Pack the images again with dydit latents.";

// What one shard alone says.
bool is_own_key(const std::string& key) { return key == "shard" || key == "first_index"; }
// What may be known only when all shards are there.
bool is_late_key(const std::string& key) { return key == "latents_mean" || key == "latents_std"; }

using Texts = std::map<std::string, std::string>;

const std::string& text_of(const Texts& texts, const char* key, const std::string& name) {
  const auto found = texts.find(key);
  DYDIT_CHECK(found != texts.end(), "{}: its metadata has no {}. {}", name, quote(key), kWayOut);
  return found->second;
}

int64_t whole_of(const Texts& texts, const char* key, int64_t low, int64_t high, const std::string& name) {
  const std::string& text = text_of(texts, key, name);
  const auto number = parse_number<int64_t>(text);
  DYDIT_CHECK(number && *number >= low && *number <= high, "{}: {} is {}, {} to {} is wanted. {}", name, key,
              quote(text), low, high, kWayOut);
  return *number;
}

double real_of(const Texts& texts, const char* key, const std::string& name) {
  const std::string& text = text_of(texts, key, name);
  const auto number = parse_number<double>(text);
  DYDIT_CHECK(number && std::isfinite(*number), "{}: {} is {}, a number is wanted. {}", name, key,
              quote(text), kWayOut);
  return *number;
}

std::vector<double> reals_of(const json& list, const std::string& what) {
  DYDIT_CHECK(list.is_array(), "{} is no list of numbers", what);
  std::vector<double> numbers;
  for (const json& number : list) {
    DYDIT_CHECK(number.is_number() && std::isfinite(number.get<double>()), "{} holds {}; numbers are wanted",
                what, shown(number));
    numbers.push_back(number.get<double>());
  }
  return numbers;
}

// A list that a text of the metadata holds; empty where there is no such text.
json list_in(const Texts& texts, const char* key, const std::string& name) {
  const auto found = texts.find(key);
  if (found == texts.end()) return json::array();
  const auto list = parse_json(found->second, kListDepth);
  DYDIT_CHECK(list && list->is_array(), "{}: {} is {}, a list in JSON is wanted. {}", name, key,
              quote(found->second), kWayOut);
  return *list;
}

void read_scale(LatentsIndex& index, const std::string& name) {
  index.scaling = real_of(index.metadata, "scaling_factor", name);
  index.shift = real_of(index.metadata, "shift_factor", name);
  DYDIT_CHECK(index.scaling != 0, "{}: scaling_factor is 0, with which all latents would be. {}", name,
              kWayOut);
  index.mean = reals_of(list_in(index.metadata, "latents_mean", name), name + ": latents_mean");
  index.std = reals_of(list_in(index.metadata, "latents_std", name), name + ": latents_std");
  DYDIT_CHECK(index.mean.size() == index.std.size(),
              "{}: latents_mean has {} values and latents_std {}; they belong together. {}", name,
              index.mean.size(), index.std.size(), kWayOut);
  for (const double std : index.std)
    DYDIT_CHECK(std > 0, "{}: latents_std holds {}, numbers above 0 are wanted. {}", name, std, kWayOut);
}

json parse_root(std::string_view text, const std::string& name) {
  // Counted before objects take memory; texts hold few braces.
  DYDIT_CHECK(std::count(text.begin(), text.end(), '{') <= kMostFiles + 1,
              "{}: lists more than {} files; take larger shards", name, kMostFiles);
  return read_json(text, kIndexDepth, name);
}

LatentsIndex::File read_file(const json& entry, const std::string& name) {
  const auto text = [&](const char* key) {
    const auto found = entry.is_object() ? entry.find(key) : entry.end();
    return found != entry.end() && found->is_string() ? found->get<std::string>() : std::string();
  };
  LatentsIndex::File file{text("file"), 0, text("sha256")};
  if (entry.is_object() && entry.contains("images") && entry["images"].is_number_integer())
    file.images = entry["images"].get<int64_t>();
  DYDIT_CHECK(!file.name.empty() && !file.sha256.empty() && file.images > 0 && file.images <= kMostImages,
              "{}: files holds {}; file, images and sha256 of each are wanted. {}", name, shown(entry, 100),
              kWayOut);
  DYDIT_CHECK(shards_of_name(file.name), "{}: {} is no name of a shard, {} is one. {}", name,
              quote(file.name), latent_shard_name(0, 1), kWayOut);
  return file;
}

void read_files(LatentsIndex& index, const json& root, const std::string& name) {
  const auto files = root.find("files");
  DYDIT_CHECK(files != root.end() && files->is_array() && !files->empty(), "{}: has no list files. {}", name,
              kWayOut);
  int64_t images = 0;
  for (const json& entry : *files) {
    index.files.push_back(read_file(entry, name));
    images += index.files.back().images;  // at most 2^40 of at most 2^21 files
  }
  const int64_t shards = whole_of(index.metadata, "shards", 1, kMostImages, name);
  DYDIT_CHECK(static_cast<size_t>(shards) == index.files.size(), "{}: lists {} files of {} shards. {}", name,
              index.files.size(), shards, kWayOut);
  DYDIT_CHECK(images == index.images, "{}: its files hold {} images, {} are said. {}", name, images,
              index.images, kWayOut);
}

void check_metadata(const Texts& texts, const LatentsIndex& index, const std::string& name) {
  for (const auto& [key, value] : texts) {
    if (is_own_key(key)) continue;
    const auto other = index.metadata.find(key);
    DYDIT_CHECK(other != index.metadata.end() && other->second == value,
                "{}: its {} is {}, but {} says {}; they are of two sets", name, printable(key), quote(value),
                kLatentsIndexName, other == index.metadata.end() ? "nothing" : quote(other->second));
  }
  for (const auto& [key, value] : index.metadata) {
    DYDIT_CHECK(texts.contains(key) || is_late_key(key), "{}: its metadata has no {}. {}", name, quote(key),
                kWayOut);
  }
}

const TensorView& tensor_of(const SafetensorsFile& file, const char* key, const std::string& name) {
  const auto found = file.tensors.find(key);
  DYDIT_CHECK(found != file.tensors.end(), "{}: has no tensor {}. {}", name, quote(key), kWayOut);
  return found->second;
}

bool is_float(Dtype dtype) { return dtype == Dtype::F16 || dtype == Dtype::BF16 || dtype == Dtype::F32; }

}  // namespace

std::string latent_shard_name(int64_t shard, int64_t shards) {
  return fmt::format("{}{:05}{}{:05}{}", kPrefix, shard, kMiddle, shards, kSuffix);
}

std::optional<int64_t> shards_of_name(std::string_view file_name) {
  if (!file_name.starts_with(kPrefix) || !file_name.ends_with(kSuffix)) return std::nullopt;
  const size_t middle = file_name.find(kMiddle, kPrefix.size());
  if (middle == file_name.npos) return std::nullopt;
  const size_t second = middle + kMiddle.size(), end = file_name.size() - kSuffix.size();
  if (second > end || !parse_number<uint32_t>(file_name.substr(kPrefix.size(), middle - kPrefix.size())))
    return std::nullopt;
  return parse_number<uint32_t>(file_name.substr(second, end - second));
}

LatentsIndex parse_latents_index(std::span<const std::byte> bytes, const std::string& name) {
  DYDIT_CHECK(bytes.size() <= kMaxIndexBytes, "{}: an index of {} bytes; at most {} are read", name,
              bytes.size(), kMaxIndexBytes);
  const json root = parse_root(dydit::text_of(bytes), name);
  DYDIT_CHECK(root.is_object() && root.contains("dydit_latents"),
              "{}: is not the index of a set of latents: a JSON object with dydit_latents is wanted", name);
  LatentsIndex index;
  for (const auto& [key, value] : root.items()) {
    if (value.is_string()) index.metadata[key] = value.get<std::string>();
  }
  const std::string& version = text_of(index.metadata, "dydit_latents", name);
  DYDIT_CHECK(version == std::to_string(kLatentsVersion),
              "{}: latents of version {}, but this program reads {}; use a newer dydit", name, quote(version),
              kLatentsVersion);
  index.images = whole_of(index.metadata, "images", 1, kMostImages, name);
  index.flips = static_cast<int>(whole_of(index.metadata, "flips", 1, 2, name));
  read_scale(index, name);
  for (const json& class_name : list_in(index.metadata, "class_names", name)) {
    DYDIT_CHECK(class_name.is_string(), "{}: class_names holds {}; texts are wanted. {}", name,
                shown(class_name), kWayOut);
    index.class_names.push_back(class_name.get<std::string>());
  }
  if (root.contains("channel_mean"))
    index.channel_mean = reals_of(root["channel_mean"], name + ": channel_mean");
  if (root.contains("channel_std")) index.channel_std = reals_of(root["channel_std"], name + ": channel_std");
  read_files(index, root, name);
  return index;
}

LatentShard parse_latent_shard(const SafetensorsFile& file, const LatentsIndex& index, size_t shard,
                               const std::string& name) {
  check_metadata(file.metadata, index, name);
  int64_t first = 0;
  for (size_t k = 0; k < shard; ++k) first += index.files[k].images;
  const auto is_there = [&](const char* key, int64_t wanted) {
    const int64_t number = whole_of(file.metadata, key, 0, kMostImages, name);
    DYDIT_CHECK(number == wanted, "{}: its {} is {}, wanted {}: it stands in the place of another. {}", name,
                key, number, wanted, kWayOut);
  };
  is_there("shard", static_cast<int64_t>(shard));
  is_there("first_index", first);
  for (const auto& [key, view] : file.tensors) {
    DYDIT_CHECK(key == "mean" || key == "logvar" || key == "labels",
                "{}: tensor {} is not known; mean, logvar and labels are", name, quote(key));
  }
  LatentShard result{tensor_of(file, "mean", name), std::nullopt, tensor_of(file, "labels", name)};
  const int64_t images = index.files[shard].images;
  const std::vector<int64_t>& shape = result.mean.shape;
  DYDIT_CHECK(is_float(result.mean.dtype) && shape.size() == 5 && shape[0] == images &&
                  shape[1] == index.flips && result.mean.numel() > 0,
              "{}: mean is {} {}; ({}, {}, C, h, w) of F16, BF16 or F32 is wanted. {}", name,
              dtype_name(result.mean.dtype), shape_text(shape), images, index.flips, kWayOut);
  const int64_t channels = shape[2];
  DYDIT_CHECK(index.mean.empty() || index.mean.size() == static_cast<size_t>(channels),
              "{}: latents of {} channels, but latents_mean has {} values. {}", name, channels,
              index.mean.size(), kWayOut);
  if (file.tensors.contains("logvar")) {
    result.logvar = tensor_of(file, "logvar", name);
    DYDIT_CHECK(result.logvar->dtype == result.mean.dtype && result.logvar->shape == shape,
                "{}: logvar is {} {}, mean {} {}; the same is wanted. {}", name,
                dtype_name(result.logvar->dtype), shape_text(result.logvar->shape),
                dtype_name(result.mean.dtype), shape_text(shape), kWayOut);
  }
  DYDIT_CHECK(result.labels.dtype == Dtype::I64 && result.labels.shape == std::vector<int64_t>{images},
              "{}: labels are {} {}; I64 ({}) is wanted. {}", name, dtype_name(result.labels.dtype),
              shape_text(result.labels.shape), images, kWayOut);
  return result;
}

}  // namespace dydit
