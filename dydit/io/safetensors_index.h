// Weights in several safetensors files: an index (NAME.safetensors.index.json) says which file holds which
// tensor.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "dydit/io/file.h"
#include "dydit/io/tensor_view.h"

namespace dydit {

/// The index's weight_map: tensor name -> file name. Throws Error (names `name`): no JSON, no weight_map, a
/// name listed twice, a file that is not beside the index, more than 2 MiB.
std::map<std::string, std::string> parse_safetensors_index(std::span<const std::byte> bytes,
                                                           const std::string& name);

struct ShardedSafetensors {
  std::map<std::string, std::string> metadata;  // of all files; where two differ, the first by name counts
  TensorViews tensors;
  std::vector<std::shared_ptr<const MappedFile>>
      files;           // in the order of their names; they keep the views alive
  std::string sha256;  // of the text "DIGEST  FILE\n" of index and files, as sha256sum prints it
};

/// True for a path that read_safetensors_shards takes: a folder, or a file whose name ends in .index.json.
bool is_safetensors_index(const std::filesystem::path& path);

/// Reads all files of an index. A folder stands for the one index in it. Throws Error: a file is missing, a
/// tensor lies in two files, in none, or is not in the index.
ShardedSafetensors read_safetensors_shards(const std::filesystem::path& path);

}  // namespace dydit
