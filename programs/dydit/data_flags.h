// What train, finetune and evaluate say of a data set, and how its classes find those of a model.
#pragma once

#include <string>

#include "cli.h"
#include "console.h"
#include "dydit/data/dataset.h"

namespace dydit {

/// --match-classes.
void add_match_classes(Cli& cli, std::string& rule);

/// The rest of the data line: "; left out: 7 .webp", or nothing.
std::string left_out_text(const Dataset& dataset, bool verbose);
/// The data set's notes and warnings, a line each.
void tell_notes(const Dataset& dataset, Console& console);

}  // namespace dydit
