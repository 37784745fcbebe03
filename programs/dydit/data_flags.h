// Flags of train, finetune and evaluate that say which images, and what is told of them.
#pragma once

#include <memory>
#include <string>

#include "cli.h"
#include "dydit/data/dataset.h"
#include "dydit/model/checkpoint.h"

namespace dydit {

struct DataFlags {
  std::string path, match_classes = "name";
  DatasetOptions options;

  /// `before` begins the help of --data-path; `split` is an example of one.
  void add(Cli& cli, const std::string& before, const std::string& split);
  /// Images are read as the model takes them, with its labels.
  void fit_to(const Checkpoint& model);
  std::unique_ptr<Dataset> load(int threads);
};

/// The rest of the data line: "; left out: 7 .webp", or nothing.
std::string left_out_text(const Dataset& dataset, bool verbose);
/// The data set's notes and warnings, a line each.
void tell_notes(const Dataset& dataset, Console& console);

}  // namespace dydit
