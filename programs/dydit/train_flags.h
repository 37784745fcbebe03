// Flags of train and finetune.
#pragma once

#include <string>

#include "cli.h"
#include "dydit/data/dataset.h"
#include "dydit/pipeline/request.h"
#include "dydit/train/trainer.h"

namespace dydit {

struct TrainFlags {
  std::string data_path, results_dir = "results", flip = "on", dtype = "auto", device = "cpu";
  std::string match_classes = "name";
  DatasetOptions data;
  TrainOptions options;
  RunOptions run;
  std::string resume;  // the run that --resume names, empty for the newest
  double epochs = 0;
  int threads = 1;
  int sample_steps = 50;
  float sample_cfg_scale = 4.0f;
  std::string sample_cache = "none";

  void add(Cli& cli);
  /// After parsing: flags that need others, and what --resume says.
  void check_needs(Cli& cli);
  /// Images are read as the model takes them, with its labels. Throws UsageError when --image-size says
  /// otherwise.
  void fit_data_to(const Checkpoint& start);
  /// What a sample grid shows. Throws UsageError for a --sample-cache that does not fit.
  Request sample_request(const DiTConfig& config) const;
  /// Turns device and dtype into options. Throws where there is no such device.
  void choose_device(int processes);
  /// Turns epochs and flip into options once the data is known.
  void resolve(const Dataset& dataset);
};

}  // namespace dydit
