// Control groups nest, and each may have a limit: the smallest counts. What the mounted tree shows is looked
// at; in a container that is its own group at the top.
#include "dydit/base/machine.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <optional>
#include <sched.h>
#include <set>
#include <sstream>
#include <vector>

#include <sys/resource.h>

#include "dydit/base/error.h"
#include "dydit/base/numbers.h"

namespace dydit {
namespace {

namespace fs = std::filesystem;

constexpr double kNone = std::numeric_limits<double>::infinity();  // no limit

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);) parts.push_back(part);
  return parts;
}

bool contains(const std::vector<std::string>& parts, const std::string& part) {
  return std::find(parts.begin(), parts.end(), part) != parts.end();
}

// The numbers of a file's first line; infinite for "max", none where there is no such file.
std::vector<double> numbers_of(const fs::path& file) {
  std::ifstream stream(file);
  std::vector<double> numbers;
  std::string line;
  std::getline(stream, line);
  for (const std::string& word : split(line, ' ')) {
    if (word == "max") {
      numbers.push_back(kNone);
    } else if (const auto number = parse_number<int64_t>(word)) {
      numbers.push_back(static_cast<double>(*number));
    }
  }
  return numbers;
}

std::optional<double> number_of(const fs::path& file) {
  const std::vector<double> numbers = numbers_of(file);
  return numbers.size() == 1 ? std::optional(numbers[0]) : std::nullopt;
}

// This process's path in the hierarchy of `controller` (version 1; empty: version 2), as proc/self/cgroup
// says.
std::optional<std::string> group_path(const fs::path& root, const std::string& controller) {
  std::ifstream groups(root / "proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {  // 4:cpu,cpuacct:/path
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string names = line.substr(first + 1, second - first - 1);
    if (controller.empty() ? names.empty() : contains(split(names, ','), controller))
      return line.substr(second + 1);
  }
  return std::nullopt;
}

// The folders of this process's group and of those above it that the mounted tree shows, the own one first.
std::vector<fs::path> group_folders(const fs::path& root, const std::string& controller) {
  const std::optional<std::string> path = group_path(root, controller);
  std::ifstream mounts(root / "proc/self/mountinfo");
  for (std::string line; path && std::getline(mounts, line);) {
    // ID parent device root point options [optional ...] - type source options
    const size_t dash = line.find(" - ");
    if (dash == std::string::npos) continue;
    const std::vector<std::string> before = split(line.substr(0, dash), ' '),
                                   after = split(line.substr(dash + 3), ' ');
    if (before.size() < 5 || after.size() < 3) continue;
    const bool wanted = controller.empty()
                            ? after[0] == "cgroup2"
                            : after[0] == "cgroup" && contains(split(after[2], ','), controller);
    if (!wanted) continue;
    const fs::path top = root / fs::path(before[4]).relative_path();
    // Below the top: the path without what lies above the mounted part; a path elsewhere is not shown.
    fs::path below = fs::path(*path).lexically_relative(before[3]);
    if (below.empty() || below.begin()->string() == ".." || below == ".") below.clear();
    std::vector<fs::path> folders;
    for (; !below.empty(); below = below.parent_path()) folders.push_back(top / below);
    folders.push_back(top);
    return folders;
  }
  return {};
}

// Processors' worth of time that the control groups give.
double cpu_quota(const fs::path& root) {
  double quota = kNone;
  for (const fs::path& folder : group_folders(root, "")) {
    const std::vector<double> max = numbers_of(folder / "cpu.max");  // of each period, both in microseconds
    if (max.size() == 2 && max[0] > 0 && max[1] > 0) quota = std::min(quota, max[0] / max[1]);
  }
  for (const fs::path& folder : group_folders(root, "cpu")) {
    const double of = number_of(folder / "cpu.cfs_quota_us").value_or(-1),
                 period = number_of(folder / "cpu.cfs_period_us").value_or(0);
    if (of > 0 && period > 0) quota = std::min(quota, of / period);
  }
  return quota;
}

// A line of proc/meminfo in bytes.
double memory_info(const fs::path& root, const std::string& name) {
  std::ifstream info(root / "proc/meminfo");
  for (std::string line; std::getline(info, line);) {
    if (line.starts_with(name + ":")) return std::strtod(line.c_str() + name.size() + 1, nullptr) * 1024;
  }
  return 0;
}

// What the control groups allow, memory and swap.
double group_memory(const fs::path& root, double swap) {
  double least = kNone;
  for (const fs::path& folder : group_folders(root, "")) {
    const double own_swap = number_of(folder / "memory.swap.max").value_or(kNone);
    least = std::min(least, number_of(folder / "memory.max").value_or(kNone) + std::min(swap, own_swap));
  }
  for (const fs::path& folder : group_folders(root, "memory")) {
    const double memory = number_of(folder / "memory.limit_in_bytes").value_or(kNone);
    const double both = number_of(folder / "memory.memsw.limit_in_bytes").value_or(kNone);
    least = std::min({least, memory + swap, both});
  }
  return least;
}

double process_limit(__rlimit_resource resource) {
  rlimit limit{};
  if (getrlimit(resource, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return kNone;
  return static_cast<double>(limit.rlim_cur);
}

}  // namespace

int physical_cores() {
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return 1;
  std::set<std::string> cores;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed)) continue;
    // Hyper-threads of one core list the same siblings.
    std::ifstream file(fmt::format("/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list", cpu));
    std::string siblings;
    if (!std::getline(file, siblings)) siblings = std::to_string(cpu);
    cores.insert(siblings);
  }
  return std::max(1, static_cast<int>(cores.size()));
}

int default_threads(const fs::path& root) {
  const double quota = std::max(1.0, std::ceil(cpu_quota(root)));
  return static_cast<int>(std::min<double>(physical_cores(), quota));
}

MemoryLimit memory_limit(const fs::path& root) {
  const double swap = memory_info(root, "SwapTotal"), whole = memory_info(root, "MemTotal") + swap;
  double least = whole > 0 ? whole : kNone;
  std::string by = "this machine has";
  const auto take = [&](double limit, const char* name) {
    if (limit >= least) return;
    least = limit;
    by = name;
  };
  take(group_memory(root, swap), "its control group allows");
  take(process_limit(RLIMIT_AS), "ulimit -v allows");
  take(process_limit(RLIMIT_DATA), "ulimit -d allows");
  constexpr double kMost = 0x1p62;
  return {static_cast<int64_t>(std::min(least, kMost)), by};
}

void check_memory(double bytes, std::string_view what, std::string_view way_out) {
  const MemoryLimit limit = memory_limit();
  DYDIT_CHECK(bytes <= static_cast<double>(limit.bytes), "{}: needs at least {} of memory, {} {}; {}", what,
              memory_text(bytes), limit.by, memory_text(static_cast<double>(limit.bytes)), way_out);
}

std::string memory_text(double bytes) {
  const char* unit = bytes < 999.5e6 ? "MB" : bytes < 999.5e9 ? "GB" : "TB";
  const double value = bytes / (unit[0] == 'M' ? 1e6 : unit[0] == 'G' ? 1e9 : 1e12);
  return value < 99.95 ? fmt::format("{:.3g} {}", value, unit) : fmt::format("{:.0f} {}", value, unit);
}

}  // namespace dydit
