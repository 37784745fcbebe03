// Latents as `generate --latents` writes them, or anybody: a tensor "latents", perhaps "labels" and a record.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>
#include <nlohmann/json.hpp>

#include "dydit/io/file.h"
#include "dydit/pipeline/decoder.h"

namespace dydit {

struct SavedLatents {
  at::Tensor latents;                               // (n, C, h, w) as stored
  std::vector<int64_t> labels;                      // -1: unknown
  nlohmann::json run = nlohmann::json::object();    // of the run that made them; empty: nobody said
  nlohmann::json images = nlohmann::json::array();  // of each of them; empty likewise
  std::string sha256;
  std::shared_ptr<const MappedFile> file;

  /// The notes of the model's training on latents, as the record repeats them. `path`: for messages.
  LatentOrigin origin(const std::string& path) const;
  /// What the file says of image i, or its number and class.
  nlohmann::json record(size_t i) const;
};

/// Throws Error for a file that holds no latents, or a record of a run that no dydit writes.
SavedLatents read_latents(const std::string& path);

}  // namespace dydit
