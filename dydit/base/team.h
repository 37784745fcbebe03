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
  struct Alone {
    int thread;
  };
  /// `threads` in all, the caller included.
  explicit Team(int threads);
  /// The caller alone, whose number is `thread`, and whoever comes to help().
  explicit Team(Alone alone) : first_(alone.thread), has_guests_(true) {}
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  /// Calls fn(task, thread) for task = 0..tasks-1 (at most 65535) and returns when all are done. Threads take
  /// tasks in order as they become free; thread is 0..threads-1, of a guest its own number. fn must not
  /// throw.
  template <typename Fn>
  void run(int tasks, const Fn& fn) {
    run(
        tasks,
        [](const void* context, int task, int thread) { (*static_cast<const Fn*>(context))(task, thread); },
        &fn);
  }

  /// For a thread that is not of this team: does one task of the section in progress; false when none is
  /// left. thread: the caller's number, which no other thread inside has.
  bool help(int thread) { return take(thread); }

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
  const int first_ = 0;  // number of the thread that calls run()
  const bool has_guests_ = false;
};

}  // namespace dydit
