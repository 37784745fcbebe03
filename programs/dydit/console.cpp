// stderr, redrawn on a terminal.
#include "console.h"

#include <algorithm>
#include <unistd.h>

#include <fmt/format.h>

namespace dydit {
namespace {

constexpr double kRedrawSeconds = 0.1;      // on a terminal
constexpr double kPlainLineSeconds = 10.0;  // elsewhere

}  // namespace

void Console::info(const std::string& line) {
  if (quiet) return;
  end_progress_line();
  print_error(line);
}

void Console::warning(const std::string& line) {
  end_progress_line();
  print_error("dydit: warning: " + line);
}

void Console::progress(const Progress& progress) {
  if (quiet) return;
  const bool terminal = isatty(STDERR_FILENO);
  const double now = timer_.seconds();
  const bool last = progress.done == progress.total;
  if (now - last_drawn_ < (terminal ? kRedrawSeconds : kPlainLineSeconds) && !(last && terminal)) return;
  if (last_drawn_ < 0) {  // the rate counts from here: a resumed run has done most of its units before
    last_drawn_ = first_seconds_ = now;
    first_done_ = progress.done;
    return;
  }
  last_drawn_ = now;
  const double rate =
      static_cast<double>(std::max(1L, progress.done - first_done_)) / std::max(now - first_seconds_, 1e-9);
  const std::string text = fmt::format("{}/{} {}, {:.1f}/s, {:.0f} s left", progress.done, progress.total,
                                       progress.what, rate, (progress.total - progress.done) / rate);
  if (!terminal) {
    print_error(text);
    return;
  }
  const int filled = static_cast<int>(30 * progress.done / std::max(1L, progress.total));
  draw_error(fmt::format("\r\033[K[{:<30}] {}", std::string(filled, '#'), text));
  line_open_ = true;
}

void Console::end_progress_line() {
  if (line_open_) draw_error("\n");
  line_open_ = false;
}

}  // namespace dydit
