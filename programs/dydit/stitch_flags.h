// --stitch FILE:RATIO of verbs that make images: a small model that takes the noisy steps.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "cli.h"
#include "dydit/model/checkpoint.h"
#include "dydit/pipeline/generate.h"

namespace dydit {

struct StitchFlags {
  std::string text;                 // as typed; empty: none
  std::optional<Checkpoint> small;  // read by resolve()

  void add(Cli& cli);
  /// Reads the small model and puts it into `options`, once all else of them is known. It must outlive them.
  void resolve(Cli& cli, const Checkpoint& large, GenerateOptions& options);
  /// The small model's file; empty: none.
  std::string input() const { return small ? small->path.string() : ""; }
};

/// What of a run's stitch is told before anything is made: a line each.
std::vector<std::string> stitch_lines(const nlohmann::json& run);

}  // namespace dydit
