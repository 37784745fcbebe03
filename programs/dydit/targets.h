// The files that a verb is going to write, looked at before its work begins.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "cli.h"
#include "dydit/model/checkpoint.h"

namespace dydit {

struct Target {
  std::string flag;  // that names it, for messages
  std::string path;  // empty: not wanted
};

/// Throws UsageError when a target is an input (the --config file is one), or two targets are one file, or
/// one is where results or progress are printed; Error when one cannot be written. Leaves nothing behind. A
/// target that leads to stdout has it to itself: results are printed on stderr from then on.
void check_targets(const Cli& cli, const std::vector<Target>& targets,
                   std::vector<std::filesystem::path> inputs);

/// Where a target lies, however it is spelt and through links.
std::filesystem::path place_of(const std::string& path);

/// What a checkpoint was read from, and `more`.
std::vector<std::filesystem::path> inputs_of(const Checkpoint& checkpoint,
                                             std::vector<std::filesystem::path> more = {});

}  // namespace dydit
