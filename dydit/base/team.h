// A team of threads for short parallel sections: between sections the threads wait actively for a moment, so
// that a section costs a microsecond and not a system call.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace dydit {

class Team {
 public:
  /// `threads` in all, the caller included.
  explicit Team(int threads);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  /// Calls fn(task, thread) for task = 0..tasks-1 (at most 65535) and returns when all are done. Threads take
  /// tasks in order as they become free; thread is 0..threads-1. fn must not throw.
  template <typename Fn>
  void run(int tasks, const Fn& fn) {
    run(
        tasks,
        [](const void* context, int task, int thread) { (*static_cast<const Fn*>(context))(task, thread); },
        &fn);
  }

 private:
  using Call = void (*)(const void* context, int task, int thread);
  void run(int tasks, Call call, const void* context);
  bool take(int thread);
  void work(int thread);

  // Section number << 32 | its tasks << 16 | the next task: one word, so that taking a task of a section that
  // has just ended is impossible.
  std::atomic<uint64_t> state_{0};
  std::atomic<int> done_{0};
  std::atomic<bool> stop_{false};
  Call call_ = nullptr;
  const void* context_ = nullptr;
  std::vector<std::thread> workers_;
};

}  // namespace dydit
