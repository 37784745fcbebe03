// A team of threads for short parallel sections: between sections the threads wait actively for a moment, so
// that a section costs a microsecond and not a system call.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace dydit {

class Team {
 public:
  struct Alone {
    int thread;
  };
  /// `threads` in all, the caller included. Throws Error when the system does not give so many.
  explicit Team(int threads);
  /// The caller alone, whose number is `thread`, and whoever comes to help().
  explicit Team(Alone alone) : first_(alone.thread), has_guests_(true) {}
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  /// Calls fn(task, thread) for task = 0..tasks-1 and returns when all are done. Threads take
  /// tasks in order as they become free; thread is 0..threads-1, of a guest its own number. When tasks throw,
  /// one of their exceptions is thrown here, once no task runs any more; others may not have been begun.
  template <typename Fn>
  void run(int tasks, const Fn& fn) {
    run(
        tasks,
        [](const void* context, int task, int thread) { (*static_cast<const Fn*>(context))(task, thread); },
        &fn);
  }

  /// For a thread that is not of this team: does one task of the section in progress; false when none is
  /// left. thread: the caller's number, which no other thread inside has. What the task throws goes to the
  /// caller of run().
  bool help(int thread) { return take(thread); }

 private:
  using Call = void (*)(const void* context, int task, int thread);
  void run(int tasks, Call call, const void* context);
  void run_section(int first, int tasks, Call call, const void* context);
  bool take(int thread);
  void work(int thread);
  void stop();

  // Section number << 32 | its tasks << 16 | the next task: one word, so that taking a task of a section that
  // has just ended is impossible.
  std::atomic<uint64_t> state_{0};
  std::atomic<int> done_{0};
  std::atomic<bool> stop_{false};
  Call call_ = nullptr;
  const void* context_ = nullptr;
  int first_task_ = 0;  // of the section in progress
  std::mutex error_mutex_;
  std::exception_ptr error_;  // of a task of the section in progress
  std::vector<std::thread> workers_;
  const int first_ = 0;  // number of the thread that calls run()
  const bool has_guests_ = false;
};

/// A team whose threads can also work apart, each as a team of its own.
class Crew {
 public:
  explicit Crew(int threads);

  Team& together() { return together_; }
  Team& own(int thread) { return own_[thread]; }
  int threads() const { return together_.threads(); }

  /// Calls fn(task, thread) for task = 0..tasks-1, each wholly on one thread, whose sections run on
  /// own(thread). A thread that finds no task left helps in the sections of those that are late, as they are
  /// where others use the processor, too. Exceptions as Team::run.
  template <typename Fn>
  void run_apart(int tasks, const Fn& fn) {
    std::atomic<int> next = 0, unfinished = tasks;
    together_.run(threads(), [&](int, int thread) {
      for (int task = next++; task < tasks; task = next++) {
        const Countdown done(unfinished);  // also of a task that throws: nobody waits for it for ever
        fn(task, thread);
      }
      while (unfinished > 0) help_the_others(thread);
    });
  }

 private:
  struct Countdown {
    explicit Countdown(std::atomic<int>& count) : count(count) {}
    ~Countdown() { --count; }
    Countdown(const Countdown&) = delete;
    Countdown& operator=(const Countdown&) = delete;
    std::atomic<int>& count;
  };
  void help_the_others(int thread);

  Team together_;
  std::deque<Team> own_;  // each thread's
};

}  // namespace dydit
