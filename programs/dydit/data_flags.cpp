// See the header.
#include "data_flags.h"

namespace dydit {

void add_match_classes(Cli& cli, std::string& rule) {
  cli.add_choice("--match-classes", rule, kMatchNames.names(),
                 "How classes of the data find those of the model; number: a folder's name is the label");
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
