// Flags of train and finetune.
#pragma once

#include <string>

#include "cli.h"
#include "dydit/base/isa.h"
#include "dydit/data/dataset.h"
#include "dydit/train/trainer.h"

namespace dydit {

struct TrainFlags {
  std::string data_path, results_dir = "results", flip = "on", dtype = "auto", device = "cpu";
  DatasetOptions data;
  TrainOptions options;
  RunOptions run;
  double epochs = 0;
  int threads = 1;
  int sample_steps = 50;
  float sample_cfg_scale = 4.0f;

  void add(Cli& cli);
  /// After parsing: flags that need others.
  void check_needs(Cli& cli) const;
  /// Images are read as `config` takes them. Throws UsageError when --image-size says otherwise.
  void take_size_of(const DiTConfig& config);
  /// Turns device and dtype into options. Throws where there is no such device.
  void choose_device(Isa isa, int processes);
  /// Turns epochs and flip into options once the data is known.
  void resolve(const Dataset& dataset);
};

/// RESULTS/000-NAME for a new run (made), or the newest run folder there for --resume.
std::filesystem::path choose_run_folder(const std::string& results_dir, const std::string& name, bool resume,
                                        Communicator& processes);

}  // namespace dydit
