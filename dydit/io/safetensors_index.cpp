#include "dydit/io/safetensors_index.h"

#include <algorithm>
#include <set>

#include <nlohmann/json.hpp>

#include "dydit/base/error.h"
#include "dydit/io/bytes.h"
#include "dydit/io/safetensors.h"
#include "dydit/io/text.h"

namespace dydit {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr std::string_view kSuffix = ".safetensors.index.json";
constexpr size_t kMaxIndexBytes = 2 << 20;  // a tree of JSON takes some twenty bytes for each of the text
constexpr const char* kWayOut = "Fetch the index and its files again.";

fs::path find_index(const fs::path& path) {
  if (!fs::is_directory(path)) return path;
  std::vector<fs::path> found;
  for (const fs::directory_entry& entry : fs::directory_iterator(path)) {
    if (entry.path().filename().string().ends_with(kSuffix)) found.push_back(entry.path());
  }
  DYDIT_CHECK(found.size() == 1,
              "{}: is a folder with {} files that end in {}; one is wanted, or name the file", path.string(),
              found.size(), kSuffix);
  return found[0];
}

}  // namespace

std::map<std::string, std::string> parse_safetensors_index(std::span<const std::byte> bytes,
                                                           const std::string& name) {
  DYDIT_CHECK(bytes.size() <= kMaxIndexBytes, "{}: an index of {} bytes; at most {} are read", name,
              bytes.size(), kMaxIndexBytes);
  std::set<std::string> seen;
  const auto filter = [&](int depth, Json::parse_event_t event, Json& value) {
    if (event == Json::parse_event_t::key && depth == 2) {
      DYDIT_CHECK(seen.insert(value.get<std::string>()).second, "{}: lists {} twice. {}", name,
                  quote(value.get<std::string>()), kWayOut);
    }
    if (event == Json::parse_event_t::object_end && depth == 1) seen.clear();  // weight_map ends, or metadata
    return depth <= 2;  // nothing deeper is of interest
  };
  const Json index = Json::parse(text_of(bytes), filter, /*allow_exceptions=*/false);
  const auto map = index.is_object() ? index.find("weight_map") : index.end();
  DYDIT_CHECK(index.is_object() && map != index.end() && map->is_object(),
              "{}: is not the index of a safetensors model: a JSON object with weight_map is wanted", name);
  std::map<std::string, std::string> result;
  for (const auto& [tensor, file] : map->items()) {
    const std::string shard = file.is_string() ? file.get<std::string>() : "";
    DYDIT_CHECK(
        !shard.empty() && shard.find('/') == shard.npos && shard.find('\0') == shard.npos && shard != "..",
        "{}: tensor {} lies in {}; the name of a file beside the index is wanted", name, quote(tensor),
        file.is_string() ? quote(shard) : "no file");
    result[tensor] = shard;
  }
  DYDIT_CHECK(!result.empty(), "{}: its weight_map is empty. {}", name, kWayOut);
  return result;
}

bool is_safetensors_index(const fs::path& path) {
  std::error_code unreadable;  // is told when it is opened
  return path.string().ends_with(".index.json") || fs::is_directory(path, unreadable);
}

ShardedSafetensors read_safetensors_shards(const fs::path& path) {
  const fs::path index_path = find_index(path);
  const std::string index_name = index_path.string();
  const auto index_file = MappedFile::open(index_path);
  const auto index = parse_safetensors_index(index_file->bytes(), index_name);
  std::set<std::string> shards;
  for (const auto& [tensor, shard] : index) shards.insert(shard);

  ShardedSafetensors result;
  std::map<std::string, std::string> home;  // tensor -> the file that holds it
  std::string digests =
      fmt::format("{}  {}\n", sha256_hex(index_file->bytes()), index_path.filename().string());
  for (const std::string& shard : shards) {
    const fs::path shard_path = index_path.parent_path() / shard;
    DYDIT_CHECK(fs::exists(shard_path), "{}: {} is missing beside it; fetch that file, too", index_name,
                quote(shard));
    SafetensorsFile file = read_safetensors(shard_path);
    for (auto& [tensor, view] : file.tensors) {
      const auto [place, added] = home.emplace(tensor, shard);
      DYDIT_CHECK(added, "{}: tensor {} lies in two files, {} and {}. {}", index_name, quote(tensor),
                  quote(place->second), quote(shard), kWayOut);
      DYDIT_CHECK(index.contains(tensor), "{}: tensor {} of {} is not in the index. {}", index_name,
                  quote(tensor), quote(shard), kWayOut);
      result.tensors.emplace(tensor, std::move(view));
    }
    result.metadata.insert(file.metadata.begin(), file.metadata.end());
    digests += fmt::format("{}  {}\n", sha256_hex(file.file->bytes()), shard);
    result.files.push_back(std::move(file.file));
  }
  for (const auto& [tensor, shard] : index) {
    const auto found = home.find(tensor);
    DYDIT_CHECK(found != home.end() && found->second == shard,
                "{}: tensor {} is not in {}, where the index has it. {}", index_name, quote(tensor),
                quote(shard), kWayOut);
  }
  result.sha256 = sha256_hex(bytes_of(digests));
  return result;
}

}  // namespace dydit
