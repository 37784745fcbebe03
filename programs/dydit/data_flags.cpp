// See the header.
#include "data_flags.h"

namespace dydit {

void DataFlags::add(Cli& cli, const std::string& before, const std::string& split) {
  cli.add_text("--data-path,--data_path", path,
               before + "ROOT/CLASS/*.png|jpg, a .tar, .tar.gz or .zip of it, CIFAR-10 binary files, or npz")
      ->required();
  cli.add_text("--split", options.split, "Folder of the data above the class folders, e.g. " + split);
  cli.add_choice("--match-classes", match_classes, kMatchNames.names(),
                 "How classes of the data find those of the model; number: a folder's name is the label");
}

void DataFlags::fit_to(const Checkpoint& model) {
  options.side = model.config.input_size;
  options.channels = model.config.in_channels;
  options.model = {model.class_names, model.config.num_classes, kMatchNames.at(match_classes)};
}

std::unique_ptr<Dataset> DataFlags::load(int threads) {
  options.threads = threads;
  return Dataset::load(path, options);
}

std::string left_out_text(const Dataset& dataset, bool verbose) {
  std::string text = dataset.left_out().summary();
  if (verbose && dataset.left_out().hidden > 0) {
    text += fmt::format("{}{} hidden", text.empty() ? "" : ", ", dataset.left_out().hidden);
  }
  return text.empty() ? text : "; left out: " + text;
}

void tell_notes(const Dataset& dataset, Console& console) {
  for (const std::string& line : dataset.notes()) console.info(line);
  for (const std::string& line : dataset.warnings()) console.warning(line);
}

}  // namespace dydit
