// Starting several threads, or none.
#pragma once

#include <thread>
#include <vector>

#include <system_error>

#include "dydit/base/error.h"

namespace dydit {

/// Starts `count` threads that call work(i), i = 0, 1, ...; where the system does not give so many, `stop`,
/// which must end and join those that run, and an Error. (A std::thread that is destroyed while it runs ends
/// the process.)
template <typename Work, typename Stop>
void start_threads(std::vector<std::thread>& threads, int count, const Work& work, const Stop& stop) {
  threads.reserve(count);
  for (int i = 0; i < count; ++i) {
    try {
      threads.emplace_back([work, i] { work(i); });
    } catch (const std::system_error& error) {
      stop();
      throw Error(fmt::format("the system gives {} of {} threads ({}); take fewer --threads", i, count,
                              error.code().message()));
    }
  }
}

}  // namespace dydit
