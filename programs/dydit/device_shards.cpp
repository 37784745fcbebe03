// See the header. Processes and not threads: a GPU's runtime, once it is started, is the process's.
#include "device_shards.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <signal.h>
#include <spawn.h>
#include <thread>
#include <unistd.h>

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <sys/wait.h>

#include "dydit/base/error.h"
#include "dydit/base/numbers.h"
#include "dydit/io/text.h"
#include "saved_latents.h"

namespace dydit {
namespace {

namespace fs = std::filesystem;

constexpr auto kLook = std::chrono::milliseconds(50);  // from one look at the processes to the next

// A folder for what the processes write, gone with it.
class WorkFolder {
 public:
  WorkFolder() {
    std::string name = (fs::temp_directory_path() / "dydit-devices-XXXXXX").string();
    DYDIT_CHECK(mkdtemp(name.data()) != nullptr, "{}: cannot make a folder for the devices' images", name);
    path_ = name;
  }
  ~WorkFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  WorkFolder(const WorkFolder&) = delete;
  WorkFolder& operator=(const WorkFolder&) = delete;

  std::string of(size_t shard, const char* ending) const {
    return (path_ / fmt::format("{}{}", shard, ending)).string();
  }

 private:
  fs::path path_;
};

// Variables that would send a device's process to our outputs, or have it start others.
bool is_ours_alone(std::string_view variable) {
  for (const std::string_view name :
       {"DEVICES", "DEVICE", "SHARD", "OUT", "NPZ", "LATENTS", "QUIET", "VERBOSE", "JSON", "CONFIG",
        "PREVIEW_EVERY", "COST_MAP", "VAE", "VAE_CONFIG", "VAE_DTYPE", "VAE_TILING", "PREVIEW_VAE"}) {
    if (variable.starts_with(fmt::format("DYDIT_{}=", name))) return true;
  }
  return false;
}

// A process that is ended with this.
class Process {
 public:
  Process(const Args& args, const std::string& errors) {
    std::vector<std::string> words = {"dydit"};
    words.insert(words.end(), args.begin(), args.end());
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
    posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, errors.c_str(), O_WRONLY | O_CREAT, 0600);
    std::vector<char*> variables;
    for (char** variable = environ; *variable != nullptr; ++variable) {
      if (!is_ours_alone(*variable)) variables.push_back(*variable);
    }
    variables.push_back(nullptr);
    posix_spawnattr_t attributes;  // a group of its own: a terminal interrupts this process alone
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP);
    const int failed =
        posix_spawn(&pid_, "/proc/self/exe", &actions, &attributes, argv.data(), variables.data());
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
    if (failed != 0) pid_ = -1;
    DYDIT_CHECK(failed == 0, "cannot start a process for a device: {}", std::string(std::strerror(failed)));
  }
  ~Process() {
    if (pid_ < 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  /// Asks it to stop in good order: it writes what it has finished.
  void interrupt() const {
    if (pid_ >= 0) kill(pid_, SIGINT);
  }
  bool runs() const { return pid_ >= 0; }
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  // Its exit status once it has ended, 128 and the signal where one ended it.
  std::optional<int> ended() {
    int status = 0;
    const pid_t found = waitpid(pid_, &status, WNOHANG);
    if (found == 0 || (found < 0 && errno == EINTR)) return std::nullopt;
    pid_ = -1;
    if (found < 0) return -1;  // somebody else has waited for it: nobody knows
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }

 private:
  pid_t pid_ = -1;
};

std::string last_line(const std::string& path) {
  std::ifstream file(path);
  std::string last;
  for (std::string line; std::getline(file, line);) {
    if (!line.empty()) last = line;
  }
  constexpr std::string_view kPrefix = "dydit: error: ";
  return last.starts_with(kPrefix) ? last.substr(kPrefix.size()) : last;
}

GeneratedSample sample_of(const SavedLatents& saved, size_t i, int index) {
  const nlohmann::json record = saved.record(i);
  const auto macs = [&](const char* key) {
    return static_cast<int64_t>(std::llround(record.value(key, 0.0) * 1e9));
  };
  GeneratedSample sample;
  sample.index = index;
  sample.label = static_cast<int>(saved.labels[i]);
  sample.sample = saved.latents[static_cast<int64_t>(i)].clone();
  sample.seconds = record.value("seconds", 0.0);
  sample.work = {macs("required_gmacs"), macs("executed_gmacs")};
  return sample;
}

}  // namespace

std::vector<std::string> parse_devices(const std::string& text) {
  std::vector<std::string> devices;
  for (const std::string_view part : comma_parts(text)) {
    const std::string_view index = part.starts_with("cuda:") ? part.substr(5) : part;
    const bool number = parse_number<int>(index).value_or(-1) >= 0;
    DYDIT_USAGE_CHECK(number || part == "cpu", "expected devices with commas between, e.g. 0,1; got {}",
                      quote(text));
    devices.push_back(number ? fmt::format("cuda:{}", index) : std::string(part));
  }
  return devices;
}

void generate_on_devices(const Args& args, const std::vector<std::string>& devices, int num_images,
                         const GenerateCallbacks& callbacks) {
  const WorkFolder folder;
  const size_t N = std::min(devices.size(), static_cast<size_t>(num_images));
  std::vector<std::unique_ptr<Process>> running;
  for (size_t k = 0; k < N; ++k) {
    Args own = {"generate"};
    own.insert(own.end(), args.begin(), args.end());
    for (const std::string& word :
         {std::string("--device"), devices[k], std::string("--shard"), fmt::format("{}/{}", k, N),
          std::string("--latents"), folder.of(k, ".safetensors"), std::string("-q")})
      own.push_back(word);
    running.push_back(std::make_unique<Process>(own, folder.of(k, ".txt")));
  }
  std::exception_ptr failure;
  long done = 0;
  const auto stop_all = [&](std::exception_ptr why) {
    if (failure) return;
    failure = std::move(why);
    for (const auto& process : running) process->interrupt();
  };
  while (std::any_of(running.begin(), running.end(), [](const auto& process) { return process->runs(); })) {
    if (callbacks.cancel && *callbacks.cancel) stop_all(std::make_exception_ptr(Cancelled()));
    for (size_t k = 0; k < N; ++k) {
      const std::optional<int> status = running[k]->runs() ? running[k]->ended() : std::nullopt;
      if (!status) continue;
      if (*status != 0)
        stop_all(std::make_exception_ptr(
            Error(fmt::format("--devices: the process of {} ended with {}: {}", devices[k], *status,
                              last_line(folder.of(k, ".txt"))))));
      if (callbacks.on_progress) callbacks.on_progress({"devices", ++done, static_cast<long>(N)});
    }
    std::this_thread::sleep_for(kLook);
  }
  // What was finished before somebody stopped is handed out, too.
  std::vector<std::optional<SavedLatents>> shards(N);
  for (size_t k = 0; k < N; ++k) {
    if (!failure || fs::exists(folder.of(k, ".safetensors")))
      shards[k] = read_latents(folder.of(k, ".safetensors"));
  }
  for (int index = 0; index < num_images; ++index) {
    const auto& shard = shards[static_cast<size_t>(index) % N];
    const size_t place = static_cast<size_t>(index) / N;
    if (shard && place < shard->labels.size()) callbacks.on_sample(sample_of(*shard, place, index));
  }
  if (failure) std::rethrow_exception(failure);
}

}  // namespace dydit
