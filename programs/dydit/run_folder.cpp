// A run is known by the number that its folder's name begins with.
#include "run_folder.h"

#include <algorithm>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <system_error>

#include "dydit/base/error.h"
#include "dydit/base/numbers.h"
#include "dydit/io/text.h"

namespace dydit {
namespace {

namespace fs = std::filesystem;

struct Run {
  int64_t number;
  fs::path folder;
  auto operator<=>(const Run&) const = default;
};

// Ascending by number.
std::vector<Run> existing_runs(const fs::path& results) {
  std::vector<Run> runs;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(results, error)) {
    const std::string name = entry.path().filename().string();
    const size_t mark = name.find('-');
    if (mark == name.npos || !entry.is_directory(error)) continue;
    if (const auto number = parse_number<int64_t>(name.substr(0, mark)))
      runs.push_back({*number, entry.path()});
  }
  std::sort(runs.begin(), runs.end());
  return runs;
}

std::string names_of(const std::vector<Run>& runs) {
  constexpr size_t kMost = 5;
  std::vector<std::string> names;
  for (size_t i = runs.size() - std::min(runs.size(), kMost); i < runs.size(); ++i)
    names.push_back(printable(runs[i].folder.filename().string()));
  return fmt::format("{}{}", runs.size() > kMost ? "..., " : "", fmt::join(names, ", "));
}

fs::path named_run(const std::string& results_dir, const std::string& which) {
  const std::vector<Run> runs = existing_runs(results_dir);
  std::vector<fs::path> found;
  if (const auto number = parse_number<int64_t>(which)) {
    for (const Run& run : runs) {
      if (run.number == *number) found.push_back(run.folder);
    }
  } else {
    for (const fs::path& folder : {fs::path(results_dir) / which, fs::path(which)}) {
      std::error_code ignored;
      if (found.empty() && fs::is_directory(folder, ignored)) found.push_back(folder);
    }
  }
  DYDIT_USAGE_CHECK(!found.empty(), "--resume {}: no such run; {} {}", quote(which), results_dir,
                    runs.empty() ? "holds no run" : "holds " + names_of(runs));
  DYDIT_USAGE_CHECK(found.size() == 1, "--resume {}: {} runs have this number; give the name of one ({})",
                    which, found.size(), names_of(runs));
  return found[0];
}

}  // namespace

fs::path make_run_folder(const std::string& results_dir, const std::string& name, Communicator& processes) {
  const std::vector<Run> runs = existing_runs(results_dir);
  const fs::path run =
      fs::path(results_dir) / fmt::format("{:03}-{}", runs.empty() ? 0 : runs.back().number + 1, name);
  processes.barrier();  // nobody makes the folder before all have looked
  if (processes.rank() == 0) {
    std::error_code error;
    fs::create_directories(run / "checkpoints", error);
    DYDIT_CHECK(!error, "{}: cannot make this folder: {}", run.string(), error.message());
  }
  processes.barrier();
  return run;
}

fs::path find_run_folder(const std::string& results_dir, const std::string& which,
                         const nlohmann::json& identity, const TellFn& tell) {
  if (!which.empty()) {
    const fs::path run = named_run(results_dir, which);
    if (const auto reason = why_not_resumed(run, identity)) throw Error(*reason);
    return run;
  }
  const std::vector<Run> runs = existing_runs(results_dir);
  DYDIT_USAGE_CHECK(!runs.empty(), "--resume: {} holds no run", results_dir);
  std::vector<std::string> reasons;
  for (auto run = runs.rbegin(); run != runs.rend(); ++run) {
    const auto reason = why_not_resumed(run->folder, identity);
    if (reason) {
      reasons.push_back(*reason);
      continue;
    }
    for (const std::string& newer : reasons) tell("passed over: " + newer);
    return run->folder;
  }
  throw Error(reasons.size() == 1 ? reasons[0]
                                  : fmt::format("{} (the {} runs before it do not fit either)", reasons[0],
                                                reasons.size() - 1));
}

}  // namespace dydit
