// What this process may use of the machine: cores and memory, as far as its control groups and limits let it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace dydit {

/// Physical cores that this process may run on.
int physical_cores();

/// The threads of a run that names none: the physical cores, or fewer where a control group (version 1 or 2;
/// its own or one above it) gives less processor time, rounded up. OMP_NUM_THREADS is not looked at:
/// launchers set it to 1 unasked. `root` holds proc/ and sys/.
int default_threads(const std::filesystem::path& root = "/");

struct MemoryLimit {
  int64_t bytes = 0;  // swap included
  std::string by;     // "this machine has", "its control group allows", "ulimit -v allows"
};

/// The most memory that this process can get: what the machine has, the smallest limit of its control groups
/// (version 1 or 2), or its own limit of address space or data. `root` holds proc/ and sys/.
MemoryLimit memory_limit(const std::filesystem::path& root = "/");

/// Throws Error when `bytes`, a lower bound of what `what` takes, are more than memory_limit(): one line with
/// both numbers and `way_out`, e.g. "take a smaller --batch".
void check_memory(double bytes, std::string_view what, std::string_view way_out);

/// "312 GB", "1.5 GB", "64 MB": three digits, powers of 1000.
std::string memory_text(double bytes);

}  // namespace dydit
