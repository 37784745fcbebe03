// Which folder a training run works in: RESULTS/000-NAME for a new one, an old one for --resume.
#pragma once

#include <filesystem>
#include <string>

#include <nlohmann/json.hpp>

#include "dydit/train/communicator.h"
#include "dydit/train/state.h"

namespace dydit {

/// RESULTS/NUMBER-NAME with the next number, made by the first of the processes. Throws Error where it cannot
/// be made.
std::filesystem::path make_run_folder(const std::string& results_dir, const std::string& name,
                                      Communicator& processes);

/// The run to continue: `which` (a run's folder name in RESULTS, its number, or a path), or when that is
/// empty the newest in RESULTS that has a checkpoint of the same `identity` (run_identity); newer ones are
/// told with the reason. Throws UsageError where there is no such run, Error that names the reason where none
/// fits.
std::filesystem::path find_run_folder(const std::string& results_dir, const std::string& which,
                                      const nlohmann::json& identity, const TellFn& tell);

}  // namespace dydit
