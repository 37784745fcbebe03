// See the header. The handlers touch no lock and no heap.
#include "signals.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <csignal>
#include <cstddef>
#include <string_view>
#include <unistd.h>

#include "dydit/io/file.h"
#include "streams.h"

namespace dydit {
namespace {

constexpr std::array kEnding = {SIGINT, SIGTERM, SIGHUP};

CancelFlag cancel_requested{false};
volatile std::sig_atomic_t verb_can_stop = 0, second_waits = 0;

void end_by(int signal) {
  remove_temporaries();
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}

void on_signal(int signal) {
  if (verb_can_stop == 0 || (cancel_requested.exchange(true) && second_waits == 0)) end_by(signal);
}

// As print_error: nothing in a name is obeyed by a terminal.
void draw_name(std::string_view name) {
  std::array<char, 1024> shown;
  const size_t size = std::min(name.size(), shown.size());
  std::transform(name.begin(), name.begin() + static_cast<std::ptrdiff_t>(size), shown.begin(),
                 [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? '?' : c; });
  draw_error({shown.data(), size});
}

void on_bus_error(int signal, siginfo_t* info, void*) {
  const MappedFile* const file = MappedFile::at(info->si_addr);
  if (file == nullptr) end_by(signal);
  // Several threads may read the file: the first one tells, the others wait for the end.
  static std::atomic_flag told = ATOMIC_FLAG_INIT;
  while (told.test_and_set()) ::pause();
  remove_temporaries();
  draw_error("dydit: error: ");
  draw_name(file->path().native());
  draw_error(": was cut short by another program, or its disk fails, while it was in use; run again\n");
  ::_exit(1);
}

}  // namespace

void install_signal_handlers() {
  for (const int signal : kEnding) {
    // nohup's; a shell's background jobs ignore SIGINT, which a test or a script may send all the same.
    if (std::signal(signal, on_signal) == SIG_IGN && signal == SIGHUP) std::signal(signal, SIG_IGN);
  }
  struct sigaction action {};
  action.sa_sigaction = on_bus_error;
  action.sa_flags = SA_SIGINFO;
  ::sigaction(SIGBUS, &action, nullptr);
}

const CancelFlag& install_cancel_handler(SecondSignal second) {
  static_assert(CancelFlag::is_always_lock_free, "the signal handler stores to it");
  second_waits = second == SecondSignal::Waits ? 1 : 0;
  verb_can_stop = 1;
  return cancel_requested;
}

}  // namespace dydit
