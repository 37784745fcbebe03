// See the header.
#include "targets.h"

#include <optional>
#include <unistd.h>

#include <sys/stat.h>

#include "dydit/base/error.h"
#include "dydit/io/file.h"
#include "streams.h"

namespace dydit {
namespace {

namespace fs = std::filesystem;

// What a path leads to, or a descriptor is open on; nothing where there is none.
using FileState = std::optional<struct stat>;
FileState state_of(const std::string& path) {
  struct stat state {};
  return ::stat(path.c_str(), &state) == 0 ? FileState(state) : std::nullopt;
}
FileState state_of(int descriptor) {
  struct stat state {};
  return ::fstat(descriptor, &state) == 0 ? FileState(state) : std::nullopt;
}

// One file or pipe. Two of a terminal or of /dev/null do not disturb each other.
bool is_same(const FileState& x, const FileState& y) {
  return x && y && x->st_dev == y->st_dev && x->st_ino == y->st_ino && !S_ISCHR(x->st_mode);
}

bool same_stream(int a, int b) { return a == b || is_same(state_of(a), state_of(b)); }

// Also of files that are not there yet.
bool same_file(const std::string& a, const std::string& b) {
  const FileState x = state_of(a), y = state_of(b);
  return x && y ? is_same(x, y) : place_of(a) == place_of(b);
}

void check_stream(const Cli& cli, const Target& target, int descriptor) {
  const auto& [flag, path] = target;
  DYDIT_USAGE_CHECK(!stream_was_closed(descriptor), "{} {}: is closed; open it or name a file", flag, path);
  DYDIT_USAGE_CHECK(!same_stream(descriptor, STDERR_FILENO),
                    "{} {}: what the program says goes there, too; name a file or another stream", flag,
                    path);
  if (!same_stream(descriptor, STDOUT_FILENO)) return;
  DYDIT_USAGE_CHECK(!cli.json, "{} {}: --json prints its object there; name a file", flag, path);
  print_results_on_stderr();
}

}  // namespace

void check_targets(const Cli& cli, const std::vector<Target>& targets, std::vector<fs::path> inputs) {
  const CLI::Option* const config = cli.app.get_config_ptr();
  if (config != nullptr && config->count() > 0) inputs.emplace_back(config->as<std::string>());
  std::vector<const Target*> before;
  for (const Target& target : targets) {
    const auto& [flag, path] = target;
    if (path.empty()) continue;
    check_not_input(path, inputs);
    for (const Target* other : before) {
      DYDIT_USAGE_CHECK(!same_file(path, other->path), "{} {}: {} writes that file, too; name another one",
                        flag, path, other->flag);
    }
    if (const std::optional<int> descriptor = own_descriptor(path)) {
      check_stream(cli, target, *descriptor);
    } else {
      const FileState file = state_of(path);
      for (const auto& [stream, name] :
           {std::pair{STDOUT_FILENO, "results are"}, {STDERR_FILENO, "progress is"}}) {
        DYDIT_USAGE_CHECK(!file || !S_ISREG(file->st_mode) || !is_same(file, state_of(stream)),
                          "{} {}: {} printed into that file; name another one", flag, path, name);
      }
    }
    check_writable(path);
    before.push_back(&target);
  }
}

fs::path place_of(const std::string& path) {
  std::error_code error;
  const fs::path place = fs::weakly_canonical(fs::absolute(path), error);
  return error ? fs::absolute(path).lexically_normal() : place;
}

std::vector<fs::path> inputs_of(const Checkpoint& checkpoint, std::vector<fs::path> more) {
  more.push_back(checkpoint.path);
  for (const auto& file : checkpoint.files) more.push_back(file->path());
  return more;
}

}  // namespace dydit
