// Flags that every verb with a model shares: which file, which engine, how it computes.
#pragma once

#include <string>

#include "cli.h"
#include "dydit/base/isa.h"
#include "dydit/engine/engine.h"
#include "dydit/model/checkpoint.h"

namespace dydit {

struct ModelFlags {
  std::string path;
  int num_heads = 0;
  std::string dtype = "auto", engine = "auto", device = "cpu";
  int threads = 1;

  /// `default_dtype` and `default_engine` differ between verbs.
  void add(Cli& cli, const std::string& default_dtype = "auto", const std::string& default_engine = "auto");
  Checkpoint load() const { return load_checkpoint(path, {.num_heads = num_heads}); }
  /// bfloat16 for auto where the processor multiplies it natively.
  at::ScalarType resolve_dtype(Isa isa) const;
  EngineKind resolve_engine() const;
};

/// --model and --num-heads alone.
void add_model_path(Cli& cli, std::string& path, int& num_heads);

}  // namespace dydit
