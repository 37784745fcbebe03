#include "dydit/base/team.h"

#include <algorithm>
#include <immintrin.h>
#include <utility>

#include <system_error>

#include "dydit/base/error.h"

namespace dydit {
namespace {

constexpr int kActiveWaits = 20000;  // 0.1 to 1 ms (a pause is 40 to 140 cycles): more than the longest
                                     // serial part between two sections

constexpr int kMostTasks = 0xffff;  // of a section

int tasks_of(uint64_t state) { return static_cast<int>(state >> 16 & 0xffff); }
int next_of(uint64_t state) { return static_cast<int>(state & 0xffff); }

}  // namespace

Team::Team(int threads) {
  workers_.reserve(std::max(0, threads - 1));
  for (int i = 1; i < threads; ++i) {
    try {
      workers_.emplace_back([this, i] { work(i); });
    } catch (const std::system_error& error) {
      stop();  // a std::thread that is destroyed while it runs ends the process
      throw Error(fmt::format("the system gives {} of {} threads ({}); take fewer --threads", i - 1,
                              threads - 1, error.code().message()));
    }
  }
}

Team::~Team() { stop(); }

void Team::stop() {
  stop_ = true;
  state_.fetch_add(uint64_t{1} << 32);
  state_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void Team::run(int tasks, Call call, const void* context) {
  if (tasks <= 1 || (workers_.empty() && !has_guests_)) {
    for (int task = 0; task < tasks; ++task) call(context, task, first_);
    return;
  }
  for (int first = 0; first < tasks; first += kMostTasks)
    run_section(first, std::min(kMostTasks, tasks - first), call, context);
}

void Team::run_section(int first, int tasks, Call call, const void* context) {
  call_ = call;
  context_ = context;
  first_task_ = first;
  done_.store(0, std::memory_order_relaxed);
  const uint64_t section = (state_.load(std::memory_order_relaxed) >> 32) + 1;
  state_.store(section << 32 | static_cast<uint64_t>(tasks) << 16);
  state_.notify_all();
  while (take(first_)) {
  }
  // A thread of ours may have been put off the processor in the middle of a task: let it run.
  for (int i = 0; done_.load(std::memory_order_acquire) != tasks; ++i) {
    if (i < kActiveWaits) {
      _mm_pause();
    } else {
      std::this_thread::yield();
    }
  }
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

// Does one task of the section in progress; false when none is left.
bool Team::take(int thread) {
  uint64_t state = state_.load(std::memory_order_acquire);
  do {
    if (next_of(state) >= tasks_of(state)) return false;
  } while (!state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel));
  try {
    call_(context_, first_task_ + next_of(state), thread);
  } catch (...) {
    const std::lock_guard lock(error_mutex_);
    error_ = std::current_exception();
  }
  done_.fetch_add(1, std::memory_order_release);
  return true;
}

void Team::work(int thread) {
  while (!stop_) {
    while (take(thread)) {
    }
    const uint64_t idle = state_.load(std::memory_order_acquire);
    if (next_of(idle) < tasks_of(idle)) continue;
    int i = 0;
    while (i < kActiveWaits && state_.load(std::memory_order_relaxed) == idle) {
      _mm_pause();
      ++i;
    }
    if (i == kActiveWaits && !stop_) state_.wait(idle);
  }
}

Crew::Crew(int threads) : together_(threads) {
  for (int thread = 0; thread < together_.threads(); ++thread) own_.emplace_back(Team::Alone{thread});
}

void Crew::help_the_others(int thread) {
  bool helped = false;
  for (Team& other : own_) helped |= other.help(thread);
  if (!helped) std::this_thread::yield();
}

}  // namespace dydit
