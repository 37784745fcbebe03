// See the header.
#include "data_flags.h"

namespace dydit {

void add_match_classes(Cli& cli, std::string& rule) {
  cli.add_choice("--match-classes", rule, {"name", "position", "number"},
                 "How classes of the data find those of the model; number: a folder's name is the label");
}

MatchRule match_rule(const std::string& name) {
  return name == "position" ? MatchRule::Position : name == "number" ? MatchRule::Number : MatchRule::Name;
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
