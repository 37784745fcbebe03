// The program's three streams: results on stdout, everything else on stderr. What cannot be told does not
// stop the work; a result that did not arrive is an error at the end.
#pragma once

#include <string_view>
#include <utility>

#include <fmt/format.h>

namespace dydit {

/// Called first: streams that are closed are opened on /dev/null (else the next file to be opened would get
/// their number and what is printed), and a closed pipe or a file that may not grow becomes a failed write
/// instead of a signal.
void prepare_streams();
/// Of 0, 1 and 2: it was closed when the program was started.
bool stream_was_closed(int stream);
/// Stdout is wanted for something else: results go to stderr from now on.
void print_results_on_stderr();

/// A result. Control characters other than line ends are shown, not obeyed.
void write_out(std::string_view text);
template <typename... T>
void print_out(fmt::format_string<T...> format, T&&... args) {
  write_out(fmt::format(format, std::forward<T>(args)...));
}

/// A line on stderr, in which control characters are shown; one that cannot be written is dropped.
void print_error(std::string_view line) noexcept;
/// The same without the line's end and as it is, for what a terminal shall obey.
void draw_error(std::string_view text) noexcept;

/// Flushes stdout. Throws Error when any result since the start did not arrive.
void finish_results();

}  // namespace dydit
