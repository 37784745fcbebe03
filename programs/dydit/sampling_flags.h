// Flags of every verb that samples a model: how many steps, which sampler, guidance, what is computed
// together.
#pragma once

#include <string>

#include "cli.h"
#include "dydit/model/checkpoint.h"
#include "dydit/pipeline/generate.h"
#include "model_flags.h"

namespace dydit {

struct SamplingFlags {
  std::string sampler = "auto", cfg_channels = "auto", mode, timesteps;
  std::string form = "auto", last_step = "mean";
  double last_size = 0;  // 0: the sampler's own

  /// --steps, --sampler and what belongs to it, --cfg-scale, --cfg-channels, --mode and --batch, into
  /// `options`.
  void add(Cli& cli, GenerateOptions& options, int least_steps = 1);
  /// --timesteps, instead of --steps.
  void add_timesteps(Cli& cli);
  /// What can be said of them without a model. Called after parsing.
  void check(Cli& cli, const GenerateOptions& options) const;
  /// Turns what was typed into options, those of `model` too, with the checkpoint at hand. A static DiT's
  /// mode is static.
  void resolve(Cli& cli, const Checkpoint& checkpoint, const ModelFlags& model,
               GenerateOptions& options) const;

 private:
  bool has_timesteps_ = false;  // the verb takes them
};

}  // namespace dydit
