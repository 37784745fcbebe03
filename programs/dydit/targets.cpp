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

// Two descriptors of one file or pipe. Two of a terminal or of /dev/null do not disturb each other.
bool same_stream(int a, int b) {
  struct stat x {
  }, y{};
  if (a == b) return true;
  if (::fstat(a, &x) != 0 || ::fstat(b, &y) != 0) return false;
  return x.st_dev == y.st_dev && x.st_ino == y.st_ino && !S_ISCHR(x.st_mode);
}

// The path names the file that a descriptor is open on.
bool names_file_of(const std::string& path, int descriptor) {
  struct stat x {
  }, y{};
  return ::stat(path.c_str(), &x) == 0 && ::fstat(descriptor, &y) == 0 && S_ISREG(x.st_mode) &&
         x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

// Also of files that are not there yet.
bool same_file(const std::string& a, const std::string& b) {
  struct stat x {
  }, y{};
  if (::stat(a.c_str(), &x) == 0 && ::stat(b.c_str(), &y) == 0)
    return x.st_dev == y.st_dev && x.st_ino == y.st_ino && !S_ISCHR(x.st_mode);
  std::error_code error;
  const auto whole = [&](const std::string& path) {
    return fs::weakly_canonical(fs::absolute(path, error), error);
  };
  return whole(a) == whole(b);
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
      for (const auto& [stream, name] :
           {std::pair{STDOUT_FILENO, "results are"}, {STDERR_FILENO, "progress is"}}) {
        DYDIT_USAGE_CHECK(!names_file_of(path, stream), "{} {}: {} printed into that file; name another one",
                          flag, path, name);
      }
    }
    check_writable(path);
    before.push_back(&target);
  }
}

std::vector<fs::path> inputs_of(const Checkpoint& checkpoint, std::vector<fs::path> more) {
  more.push_back(checkpoint.path);
  for (const auto& file : checkpoint.files) more.push_back(file->path());
  return more;
}

}  // namespace dydit
