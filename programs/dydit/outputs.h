// Where samples go: what --out, --npz, --latents and --cost-map say, looked at before work starts.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "cli.h"
#include "dydit/pipeline/sink.h"
#include "targets.h"

namespace dydit {

struct OutputOptions {
  std::string out;       // FILE.png, a pattern with %d or %06d, or a folder (ends in / or exists)
  std::string npz;       // FILE.npz; empty: none
  std::string latents;   // FILE.safetensors; empty: none
  std::string cost_map;  // FILE.png of where the computation went; empty: none
};

/// What is made, as far as outputs depend on it.
struct OutputRun : SinkRun {
  std::string source;       // of the samples: the model's path, for messages
  int channels = 0;         // of a sample
  int num_tokens = 0;       // of a cost map
  size_t longest_name = 0;  // of a class
  int preview_every = 0, total_steps = 1;
};

/// The sinks of a run.
class Outputs {
 public:
  /// Throws UsageError when a target cannot hold what is asked for, and what check_targets throws.
  Outputs(const Cli& cli, const OutputOptions& options, const OutputRun& run,
          const std::vector<std::filesystem::path>& inputs);

  /// Gives the sample and its record to all sinks. Returns the record, with its file where there is one.
  nlohmann::json add(const GeneratedSample& sample, nlohmann::json record);
  /// `records`: index, class and class_name of each image.
  void add_preview(const Preview& preview, const nlohmann::json& records);
  /// Has all sinks write what they keep (no sample: nothing). One that fails does not keep the others from
  /// it; the first failure is thrown in the end.
  void finish();
  /// All that is written so far.
  std::vector<std::string> files() const;

 private:
  void choose_out(const std::string& given);
  void check_grid(int cell_width, int cell_height, const std::string& flag, const std::string& way_out) const;
  std::vector<Target> targets() const;
  bool is_numbered_target(const std::filesystem::path& place) const;

  OutputRun run_;
  OutputOptions options_;
  PngName out_;  // of --out; both empty without
  std::vector<std::unique_ptr<Sink>> sinks_;
  nlohmann::json records_ = nlohmann::json::array();
};

}  // namespace dydit
