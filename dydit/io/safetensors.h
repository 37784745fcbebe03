// safetensors: u64 little-endian header length, JSON header, tensor bytes. Bounds-checked on reading:
// header at most 100 MB, no duplicate names, no overlap, no hole, sizes that agree with shape and dtype.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>

#include "dydit/io/file.h"
#include "dydit/io/tensor_view.h"

namespace dydit {

struct SafetensorsFile {
  std::map<std::string, std::string> metadata;  // the header's __metadata__
  TensorViews tensors;                          // views into `file` (or into the parsed buffer)
  std::shared_ptr<const MappedFile> file;       // keeps the views alive; null after parse_safetensors
};

/// Maps `path` and parses it. Throws Error (names the file and the tensor).
SafetensorsFile read_safetensors(const std::filesystem::path& path);

/// Parses a buffer that outlives the result; `name` is used in messages.
SafetensorsFile parse_safetensors(std::span<const std::byte> bytes, const std::string& name);

/// Writes tensors (contiguous views only) and metadata; temporary name, then before_commit, which may throw
/// and leave the target as it was, then rename.
void write_safetensors(const std::filesystem::path& path, const TensorViews& tensors,
                       const std::map<std::string, std::string>& metadata,
                       Durability durability = Durability::Normal,
                       const std::function<void()>& before_commit = {});

}  // namespace dydit
