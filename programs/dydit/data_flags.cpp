// See the header.
#include "data_flags.h"

#include <nlohmann/json.hpp>

#include "dydit/data/latents.h"
#include "dydit/io/json.h"
#include "dydit/io/text.h"

namespace dydit {

void DataFlags::add(Cli& cli, const std::string& before, const std::string& split) {
  cli.add_text("--data-path,--data_path", path, before + kImagesHelp + ", or a folder of latents")
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

void note_latents(const Dataset& dataset, Checkpoint& start, Console& console) {
  const LatentInfo* const latents = dataset.latents();
  if (latents == nullptr) return;
  std::map<std::string, std::string> notes = {{kLatentScaleNote, json_text(scale_to_json(latents->scale))}};
  if (!latents->vae_sha256.empty()) notes[kVaeNote] = latents->vae_sha256;
  if (!latents->vae_kind.empty()) notes[kVaeKindNote] = latents->vae_kind;
  for (const auto& [key, value] : notes) {
    const auto known = start.notes.find(key);
    if (known != start.notes.end() && known->second != value)
      console.warning(fmt::format("the model was trained on other latents: its {} is {}, theirs {}", key,
                                  printable(known->second), printable(value)));
    start.notes[key] = value;
  }
}

void tell_notes(const Dataset& dataset, Console& console) {
  for (const std::string& line : dataset.notes()) console.info(line);
  for (const std::string& line : dataset.warnings()) console.warning(line);
}

}  // namespace dydit
