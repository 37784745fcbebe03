// Flags of train and finetune.
#pragma once

#include <string>

#include "data_flags.h"
#include "dydit/pipeline/request.h"
#include "dydit/train/trainer.h"

namespace dydit {

struct TrainFlags {
  std::string model;  // to start from; empty: none
  CheckpointOptions checkpoint;
  DataFlags data;
  std::string distill = "none", teacher, loss = "l2";
  std::string results_dir = "results", flip = "on", timesteps = "stratified", loss_weights = "on",
              adapter = "none", lora_mix = "A", align = "none", align_encoder, dtype = "auto", device = "cpu";
  AdapterConfig lora = {.experts = 4};  // as the flags say, read with an adapter
  TrainOptions options;
  RunOptions run;
  std::string resume;  // the run that --resume names, empty for the newest
  double epochs = 0;
  int threads = 1;
  int levels = 0;  // of patch sizes; 0: as the model has them
  std::string level_from;
  bool long_skips = false;
  int sample_steps = 50;
  float sample_cfg_scale = 4.0f;
  std::string sample_cache = "none";

  void add(Cli& cli);
  /// After parsing: flags that need others, and what --resume says.
  void check_needs(Cli& cli);
  /// The start with the adapters that are asked for, new ones where it has none: then what it was made of,
  /// `given`, is their base, its heads and channels in the order that --importance calls so. Throws
  /// UsageError where it has others.
  Checkpoint with_adapters(const Checkpoint& start, const Checkpoint& given, const std::string& order) const;
  /// Reads the images as `start` takes them. Throws UsageError when --image-size says otherwise.
  void fit_data_to(const Checkpoint& start);
  /// The model with the long skips and the levels of patch sizes that are asked for. Throws where it cannot
  /// have them.
  Checkpoint with_parts(Cli& cli, Checkpoint start) const;
  /// What a sample grid shows. Throws UsageError for a --sample-cache that does not fit.
  Request sample_request(const DiTConfig& config) const;
  /// Reads what --align encoder aligns to.
  void load_encoder(Cli& cli);
  /// Reads the teacher, where there is one.
  void load_teacher(Cli& cli);
  /// Turns device and dtype into options. Throws where there is no such device.
  void choose_device(int processes);
  /// Turns epochs and flip into options once the data is known.
  void resolve(const Dataset& dataset);
};

}  // namespace dydit
