// Where generated samples go: one PNG (a grid when several), numbered PNGs, npz, latents.
#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "dydit/io/npz.h"
#include "dydit/pipeline/generate.h"

namespace dydit {

struct OutputOptions {
  std::string out;       // FILE.png, a pattern with %d or %06d, or a folder (ends in / or exists)
  std::string npz;       // FILE.npz; empty: none
  std::string latents;   // FILE.safetensors; empty: none
  std::string cost_map;  // FILE.png of where the computation went; empty: none
};

/// Takes samples as they finish. Every target is tried for writing before sampling starts.
class Outputs {
 public:
  Outputs(const OutputOptions& options, const Checkpoint& checkpoint, const GenerateOptions& run);

  /// Writes what can be written now; remembers what belongs into one file. Returns the image's record.
  nlohmann::json add(const GeneratedSample& sample);
  /// Writes the predicted images beside their targets (x.png: x_step0010.png); the grid's grows with each
  /// batch.
  void add_preview(const Preview& preview);
  /// Writes grid, cost map, npz and latents of the samples added so far (none: nothing). Returns all files
  /// written.
  std::vector<std::string> finish();

 private:
  std::string png_path(int index) const;
  std::string preview_path(const std::string& path, int step) const;
  void write_cost_map();

  const Checkpoint& checkpoint_;
  nlohmann::json run_;
  GenerateOptions options_;
  std::string out_;          // empty: no PNG
  bool numbered_ = false;    // out_ is a pattern or a folder
  std::vector<Image> grid_;  // of the one PNG
  nlohmann::json records_ = nlohmann::json::array();
  struct PreviewGrid {
    std::vector<Image> images;
    nlohmann::json records = nlohmann::json::array();
  };
  std::map<int, PreviewGrid> preview_grids_;  // by step
  std::optional<NpzImageWriter> npz_;
  std::string npz_path_, latents_path_, cost_map_path_;
  std::vector<Image> map_images_;  // beside their maps; none when the model makes latents
  std::vector<at::Tensor> shares_;
  std::vector<at::Tensor> latents_;
  std::vector<std::string> files_;
};

}  // namespace dydit
