// An order that was accepted, until all of it is made: the engine's thread fills it, clients' threads wait.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "dydit/base/enum_names.h"
#include "dydit/serve/order.h"
#include "dydit/serve/refusal.h"

namespace dydit {

using Clock = std::chrono::steady_clock;

enum class JobState { Queued, Generating, Completed, Failed, Cancelled };
inline constexpr EnumNames<JobState, 5> kJobStateNames = {"status",
                                                          {{"queued", JobState::Queued},
                                                           {"generating", JobState::Generating},
                                                           {"completed", JobState::Completed},
                                                           {"failed", JobState::Failed},
                                                           {"cancelled", JobState::Cancelled}}};

/// What a client is told as it happens. `image` is the order's, from 0.
struct JobEvent {
  int image = 0;
  int step = 0;           // of a preview, steps done, from 1; 0: the finished image
  std::string png;        // a file's bytes; of a finished image with its record
  nlohmann::json record;  // of a finished image: image_record's keys, seed and sha256 of the pixels
  std::string cost_map;   // a file's bytes; empty: not asked for
};

struct JobStatus {
  JobState state = JobState::Queued;
  int finished = 0;     // images
  double progress = 0;  // of the steps, 0 to 1
  bool ended() const { return state != JobState::Queued && state != JobState::Generating; }
};

/// All functions may be called by any thread.
class Job {
 public:
  /// `number` grows from job to job.
  Job(std::string id, uint64_t number, Order order, std::string client);

  const std::string id;
  const uint64_t number;
  const Order order;
  const std::string client;  // whose turns it takes
  const Clock::time_point accepted, deadline;
  const int64_t created;  // seconds since 1970

  JobStatus status() const;
  /// How it failed; nothing where it did not.
  std::optional<Refusal> failure() const;
  /// Waits until it has ended, at most until `until`; whether it has.
  bool wait(Clock::time_point until) const;
  /// The event of that number, from 0, waiting for it at most until `until`; null: the time is over, or the
  /// job ended without so many.
  std::shared_ptr<const JobEvent> event(size_t number, Clock::time_point until) const;
  /// The finished images by index; null: not finished.
  std::vector<std::shared_ptr<const JobEvent>> images() const;
  /// From acceptance to the end, or so far.
  double seconds() const;
  /// Bytes of what it keeps.
  size_t bytes() const;

  // Of the service. What comes after the end is dropped.
  void begin();
  void count_step() { ++steps_; }
  void tell(JobEvent event);
  /// Each ends it, unless it has ended.
  void fail(const Refusal& refusal);
  void cancel();
  /// Fails it where `now` is its deadline or later.
  void expire(Clock::time_point now);

 private:
  void end(JobState state);

  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  JobState state_ = JobState::Queued;
  std::atomic<int64_t> steps_ = 0;  // of all images
  std::vector<std::shared_ptr<const JobEvent>> events_, images_;
  int finished_ = 0;
  size_t bytes_ = 0;
  std::optional<Refusal> failure_;
  std::optional<Clock::time_point> ended_;
};

}  // namespace dydit
