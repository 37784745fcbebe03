// Flags of train, finetune and evaluate that say which images, and what is told of them.
#pragma once

#include <memory>
#include <string>

#include "cli.h"
#include "dydit/data/dataset.h"
#include "dydit/model/checkpoint.h"

namespace dydit {

/// Help of --data-path.
inline constexpr const char* kImagesHelp =
    "ROOT/CLASS/*.png|jpg, a .tar, .tar.gz or .zip of it, CIFAR-10 binary files, or npz";

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
/// A model that is trained on latents remembers whose they are and how it saw them: the notes of a
/// checkpoint. Warns where the model remembers others.
void note_latents(const Dataset& dataset, Checkpoint& start, Console& console);
/// The data set's notes and warnings, a line each.
void tell_notes(const Dataset& dataset, Console& console);

}  // namespace dydit
