// Where generated samples go: one PNG (a grid when several), numbered PNGs, npz, latents.
#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "cli.h"
#include "dydit/io/npz.h"
#include "dydit/pipeline/generate.h"
#include "targets.h"

namespace dydit {

struct OutputOptions {
  std::string out;       // FILE.png, a pattern with %d or %06d, or a folder (ends in / or exists)
  std::string npz;       // FILE.npz; empty: none
  std::string latents;   // FILE.safetensors; empty: none
  std::string cost_map;  // FILE.png of where the computation went; empty: none
};

/// Takes samples as they finish. Every target is looked at before sampling starts (check_targets).
class Outputs {
 public:
  /// `record` is the run's (run_record). Throws UsageError when a target cannot hold what is asked for, and
  /// what check_targets throws.
  Outputs(const Cli& cli, const OutputOptions& options, const Checkpoint& checkpoint,
          const GenerateOptions& run, const nlohmann::json& record,
          const std::vector<std::filesystem::path>& inputs);

  /// Writes what can be written now; remembers what belongs into one file. Returns the image's record.
  nlohmann::json add(const GeneratedSample& sample);
  /// Writes the predicted images beside their targets (x.png: x_step0010.png); the grid's grows with each
  /// batch.
  void add_preview(const Preview& preview);
  /// Writes grid, cost map, npz and latents of the samples added so far (none: nothing). One that fails does
  /// not keep the others from being written; the first failure is thrown in the end.
  void finish();
  /// All that is written so far.
  const std::vector<std::string>& files() const { return files_; }

 private:
  void choose_out(const OutputOptions& options);
  void check_grid(int cell_width, int cell_height, const std::string& flag, const std::string& way_out) const;
  std::vector<Target> targets() const;
  bool is_numbered_target(const std::filesystem::path& place) const;
  std::string png_path(int index) const;
  std::string preview_path(const std::string& path, int step) const;
  void write_grid();
  void write_cost_map();
  void write_npz();
  void write_latents();

  const Checkpoint& checkpoint_;
  nlohmann::json run_;
  GenerateOptions options_;
  std::string out_;        // empty: no PNG
  bool numbered_ = false;  // out_ is a pattern or a folder: a PNG an image
  std::string before_number_, after_number_;
  int number_width_ = 0;
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
  at::Tensor latents_;  // (num_images, in_channels, side, side), the first records_.size() of them made
  std::vector<std::string> files_;
};

}  // namespace dydit
