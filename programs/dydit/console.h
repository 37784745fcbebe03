// What a person sees while a verb runs: decisions, progress, the end. All of it on stderr; results go to
// stdout.
#pragma once

#include <string>

#include "dydit/base/progress.h"
#include "dydit/base/timer.h"
#include "streams.h"

namespace dydit {

class Console {
 public:
  ~Console() { end_progress_line(); }

  /// A line of what was decided or done.
  void info(const std::string& line);
  /// A line that is printed even with --quiet.
  void warning(const std::string& line);
  /// On a terminal one line that is redrawn, with rate and remaining time; else a plain line now and then.
  void progress(const Progress& progress);

  bool quiet = false;  // warnings alone

 private:
  void end_progress_line();

  Timer timer_;
  double last_drawn_ = -1e9;
  double first_seconds_ = 0;  // of the first progress
  long first_done_ = 0;
  bool line_open_ = false;
};

}  // namespace dydit
