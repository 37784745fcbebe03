// The recorded sets of latents, and packed ones with whatever an honest writer would not put there.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <string>

#include <nlohmann/json.hpp>

#include "dydit/io/bytes.h"
#include "dydit/io/latents_index.h"
#include "dydit/io/safetensors.h"
#include "tests/support/files.h"

namespace dydit::test {

inline std::filesystem::path latents_path(const std::string& layout) {
  return std::filesystem::path(DYDIT_TESTS_DIR) / "golden/latents" / layout;
}

/// A copy of a recorded set that a test may change.
class LatentCopy {
 public:
  explicit LatentCopy(const std::string& layout) {
    std::filesystem::copy(latents_path(layout), path(), std::filesystem::copy_options::recursive);
  }
  std::filesystem::path path() const { return folder_ / "set"; }
  std::filesystem::path operator/(const std::string& name) const { return path() / name; }

  void write(const std::string& name, const std::string& content) const {
    std::ofstream(path() / name, std::ios::binary) << content;
  }

  // Of a packed set:

  std::filesystem::path shard(int k) const { return path() / latent_shard_name(k, 3); }

  void edit_index(const std::function<void(nlohmann::json&)>& edit) const {
    auto index = nlohmann::json::parse(contents(path() / kLatentsIndexName));
    edit(index);
    write(kLatentsIndexName, index.dump());
  }

  /// Writes shard k with other metadata or tensors, and its new SHA-256 into the index.
  void edit_shard(int k, const std::function<void(std::map<std::string, std::string>& metadata,
                                                  TensorViews& tensors)>& edit) const {
    SafetensorsFile file = read_safetensors(shard(k));
    edit(file.metadata, file.tensors);
    write_safetensors(shard(k), file.tensors, file.metadata);
    edit_index([&](nlohmann::json& index) {
      index["files"][k]["sha256"] = sha256_hex(dydit::bytes_of(contents(shard(k))));
    });
  }

 private:
  TemporaryFolder folder_;
};

}  // namespace dydit::test
