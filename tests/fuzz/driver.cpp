// fuzz_readers [--inputs N] [--seed S] [--first I] [--failures FOLDER] [READER...]
//
// Feeds N mutants to each reader (all of them without a name), one table row each. The reader runs in a child
// process, so that a crash costs one input: the parent notes its number and goes on with the next. An input
// passes when it is read or refused with one line of Error that names the file, within a second of processor
// time and 64 MiB plus four times its size of memory, and gives back all that memory. Exit status 1 when an
// input failed, 2 for a wrong command line. An input is a function of (reader, S, number): --first I --inputs
// 1 runs one again.
#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <memory>
#include <unistd.h>

#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>

#include "dydit/base/error.h"
#include "memory.h"
#include "mutate.h"
#include "targets.h"

namespace dydit::fuzz {
namespace {

constexpr double kMaxSeconds = 1;
constexpr long kHangSeconds = 20;  // then the child is killed; what lies between is noted and goes on
constexpr size_t kFreeBytes = size_t{64} << 20;
constexpr size_t kBytesPerByte = 4;
constexpr size_t kMaxMessage = 1000;
constexpr const char* kNotGivenBack = "bytes are not given back";
constexpr int kMaxFailures = 20;  // of a reader; then it is plain that it is broken

struct Options {
  uint64_t inputs = 100'000, seed = 1, first = 0;
  std::string failures;  // folder for failing inputs, when wanted
  std::vector<std::string> readers;
};

// Shared by parent and child.
struct Progress {
  uint64_t next = 0;  // the input that runs, or runs next; hostile files come first
  uint64_t accepted = 0;
  double seconds = 0;
  double slowest = 0;
  uint64_t slowest_input = 0;
  size_t peak = 0;
  int failures = 0;
  char failure[512] = {};  // of the input `next`
};

double cpu_seconds() {
  timespec now{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

uint64_t hash(const std::string& text) {
  uint64_t value = 0xCBF29CE484222325u;  // FNV-1a
  for (const char c : text) value = (value ^ static_cast<unsigned char>(c)) * 0x100000001B3u;
  return value;
}

// Input `number`: the hostile files, then the seeds as they are, then mutants.
std::string make_input(const Target& target, uint64_t number, const Options& options) {
  if (number < target.hostile.size()) return target.hostile[number].make();
  number -= target.hostile.size();
  const bool as_it_is = number < target.seeds.size();
  Random random(hash(target.name) ^ options.seed * 0x9E3779B97F4A7C15u ^ number << 20);
  std::string input = as_it_is ? target.seeds[number] : mutate(target.seeds, target.tokens, random);
  if (target.finish && (target.when == Finish::Always || (!as_it_is && random.one_in(2))))
    target.finish(input);
  return input;
}

// What is wrong with how the reader took the input; empty: nothing.
std::string run_input(const Target& target, const std::string& input, Progress& progress) {
  // A buffer of its own, with nothing behind the last byte that could be read unnoticed.
  const auto copy = std::make_unique<std::byte[]>(input.size());
  std::memcpy(copy.get(), input.data(), input.size());
  std::string message;
  message.reserve(4 * kMaxMessage);
  const size_t before = live_bytes();
  reset_peak();
  const double start = cpu_seconds();
  std::string failure;
  try {
    target.read({copy.get(), input.size()});
    ++progress.accepted;
  } catch (const Error& error) {
    if (std::strlen(error.what()) < message.capacity())
      message = error.what();
    else
      failure = "a message of more than 4000 characters";
  } catch (const std::exception& error) {
    failure = fmt::format("throws {}", error.what());
  }
  const double seconds = cpu_seconds() - start;
  const size_t peak = peak_bytes() - before;
  if (seconds > progress.slowest) {
    progress.slowest = seconds;
    progress.slowest_input = progress.next;
  }
  progress.peak = std::max(progress.peak, peak);
  if (!failure.empty()) return failure;
  if (live_bytes() > before) return fmt::format("{} {}", live_bytes() - before, kNotGivenBack);
  if (seconds > kMaxSeconds) return fmt::format("takes {:.2f} s", seconds);
  if (peak > kFreeBytes + kBytesPerByte * input.size())
    return fmt::format("takes {} bytes of memory for {} of input", peak, input.size());
  const bool one_line = message.size() < kMaxMessage && message.find('\n') == message.npos;
  const uint64_t seed = progress.next - target.hostile.size();  // large for a hostile file
  if (!message.empty() && progress.next >= target.hostile.size() &&
      seed < target.seeds.size() - target.refused_seeds)
    return fmt::format("is a valid file but is refused with: {}", message);
  if (!message.empty() && !(one_line && message.starts_with("FILE")))
    return fmt::format("is refused with: {}", message);
  return "";
}

[[noreturn]] void run_child(const Target& target, const Options& options, uint64_t end, Progress& progress) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);  // no child goes on without its parent
  start_counting();
  // The first error and the first read make tables that stay.
  for (std::string seed : target.seeds) {
    if (target.finish && target.when == Finish::Always) target.finish(seed);
    for (const std::string& input : {seed, seed.substr(0, seed.size() / 2)}) {
      Progress ignored;
      run_input(target, input, ignored);
    }
  }
  while (progress.next < end) {
    const std::string input = make_input(target, progress.next, options);
    const itimerval limit{{0, 0}, {kHangSeconds, 0}};
    ::setitimer(ITIMER_PROF, &limit, nullptr);
    std::string failure = run_input(target, input, progress);
    if (failure.ends_with(kNotGivenBack)) {  // a table that a library makes once stays; a leak comes again
      Progress ignored = progress;
      failure = run_input(target, input, ignored);
    }
    if (!failure.empty()) {
      std::strncpy(progress.failure, failure.c_str(), sizeof(progress.failure) - 1);
      std::exit(3);
    }
    ++progress.next;
  }
  std::exit(0);
}

void report_failure(const Target& target, const Options& options, const Progress& progress, int status) {
  std::string what = progress.failure;
  if (what.empty() && WIFSIGNALED(status)) what = fmt::format("dies of signal {}", WTERMSIG(status));
  if (what.empty()) what = "ends the process; a sanitizer's report is above";
  const uint64_t number = progress.next;
  const std::string name =
      number < target.hostile.size() ? fmt::format(" ({})", target.hostile[number].name) : "";
  fmt::print("{}: input {}{} {}\n", target.name, number, name, what);
  if (options.failures.empty()) return;
  std::filesystem::create_directories(options.failures);
  const std::string path = fmt::format("{}/{}-{}-{}", options.failures, target.name, options.seed, number);
  std::ofstream(path, std::ios::binary) << make_input(target, number, options);
}

// Number of failures.
int fuzz(const Target& target, const Options& options) {
  void* shared = ::mmap(nullptr, sizeof(Progress), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (shared == MAP_FAILED) throw Error("no shared memory");
  Progress& progress = *new (shared) Progress;
  progress.next = options.first;
  const uint64_t end = options.first + options.inputs;
  while (progress.next < end && progress.failures < kMaxFailures) {
    std::fflush(stdout);
    const pid_t child = ::fork();
    if (child == 0) run_child(target, options, end, progress);
    int status = 0;
    rusage usage{};
    ::wait4(child, &status, 0, &usage);
    progress.seconds += static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
                        1e-6 * static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) break;
    report_failure(target, options, progress, status);
    ++progress.failures;
    progress.failure[0] = '\0';
    ++progress.next;
  }
  const uint64_t done = progress.next - options.first;
  fmt::print("{:<12} {:>9} {:>9.1f} % {:>9.1f} {:>8} {:>11.1f} {:>10} {:>10.1f}\n", target.name, done,
             done == 0 ? 0.0 : 100.0 * static_cast<double>(progress.accepted) / static_cast<double>(done),
             progress.seconds, progress.failures, 1e3 * progress.slowest, progress.slowest_input,
             static_cast<double>(progress.peak) / (1 << 20));
  const int failures = progress.failures;
  ::munmap(shared, sizeof(Progress));
  return failures;
}

Options parse_options(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (!name.starts_with("--")) {
      options.readers.push_back(name);
      continue;
    }
    if (i + 1 == argc) throw UsageError(fmt::format("{} wants a value", name));
    const std::string value = argv[++i];
    const auto number = [&] {
      if (value.empty() || value.size() > 18 || value.find_first_not_of("0123456789") != value.npos)
        throw UsageError(fmt::format("{}: a whole number is wanted, got '{}'", name, value));
      return std::stoull(value);
    };
    if (name == "--inputs")
      options.inputs = number();
    else if (name == "--seed")
      options.seed = number();
    else if (name == "--first")
      options.first = number();
    else if (name == "--failures")
      options.failures = std::filesystem::absolute(value);  // a target may work in a folder of its own
    else
      throw UsageError(fmt::format("{}: known are --inputs, --seed, --first and --failures", name));
  }
  return options;
}

int run(int argc, char** argv) {
  const Options options = parse_options(argc, argv);
  const std::vector<Target> targets = all_targets();
  std::vector<const Target*> chosen;
  for (const Target& target : targets) {
    if (options.readers.empty()) chosen.push_back(&target);
  }
  for (const std::string& name : options.readers) {
    const auto found =
        std::find_if(targets.begin(), targets.end(), [&](const Target& t) { return t.name == name; });
    if (found == targets.end()) throw UsageError(fmt::format("there is no reader '{}'", name));
    chosen.push_back(&*found);
  }
  fmt::print("{:<12} {:>9} {:>11} {:>9} {:>8} {:>11} {:>10} {:>10}\n", "reader", "inputs", "read", "cpu s",
             "failures", "slowest ms", "its number", "peak MiB");
  int failures = 0;
  for (const Target* target : chosen) failures += fuzz(*target, options);
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace dydit::fuzz

int main(int argc, char** argv) {
  try {
    return dydit::fuzz::run(argc, argv);
  } catch (const dydit::UsageError& error) {
    fmt::print(stderr, "fuzz_readers: {}\n", error.what());
    return 2;
  }
}
