// See the header.
#include "streams.h"

#include <array>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <fcntl.h>
#include <string>
#include <unistd.h>

#include <system_error>

#include "dydit/base/error.h"
#include "dydit/io/text.h"

namespace dydit {
namespace {

int lost_results = 0;  // errno of the first result that did not arrive
bool results_on_stderr = false;
std::array<bool, 3> was_closed = {};

void remember(bool arrived) {
  if (!arrived && lost_results == 0) lost_results = errno != 0 ? errno : EIO;
}

}  // namespace

void prepare_streams() {
  for (const int stream : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (::fcntl(stream, F_GETFD) >= 0) continue;
    was_closed[static_cast<size_t>(stream)] = true;
    // The lowest free number is this one: those below it are open.
    ::open("/dev/null", stream == STDIN_FILENO ? O_RDONLY : O_WRONLY);
  }
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);
}

bool stream_was_closed(int stream) {
  return stream >= 0 && stream <= STDERR_FILENO && was_closed[static_cast<size_t>(stream)];
}

void print_results_on_stderr() { results_on_stderr = true; }

void write_out(std::string_view text) {
  std::string shown;
  while (!text.empty()) {
    const size_t end = text.find('\n');
    shown += printable(text.substr(0, end), text.npos);
    if (end == text.npos) break;
    shown += '\n';
    text.remove_prefix(end + 1);
  }
  if (results_on_stderr) {
    draw_error(shown);
    return;
  }
  errno = 0;
  remember(std::fwrite(shown.data(), 1, shown.size(), stdout) == shown.size());
}

void print_error(std::string_view line) noexcept {
  try {
    draw_error(printable(line, line.npos) + '\n');
  } catch (const std::bad_alloc&) {
    draw_error(line);
    draw_error("\n");
  }
}

void draw_error(std::string_view text) noexcept {
  while (!text.empty()) {
    const ssize_t written = ::write(STDERR_FILENO, text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return;
    text.remove_prefix(static_cast<size_t>(written));
  }
}

void finish_results() {
  errno = 0;
  remember(std::fflush(stdout) == 0);
  const int reason = lost_results;
  lost_results = 0;
  DYDIT_CHECK(reason == 0, "standard output: the result could not be written: {}",
              std::generic_category().message(reason));
}

}  // namespace dydit
