// How the library tells what it does and hears that it should stop. It never prints and never exits.
#pragma once

#include <atomic>
#include <functional>
#include <string_view>

namespace dydit {

/// `done` of `total` units (sampling steps, files, ...) of `what`.
struct Progress {
  std::string_view what;
  long done = 0;
  long total = 0;
};

/// Called between units of work, on the thread that called the library.
using ProgressFn = std::function<void(const Progress&)>;

/// Set by another thread or a signal handler; looked at between sampling steps.
using CancelFlag = std::atomic<bool>;

}  // namespace dydit
