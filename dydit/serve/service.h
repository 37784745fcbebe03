// The heart of a server, without HTTP: orders come in at any time, images of all of them share every forward,
// each is what it is alone. Read Service::work() first.
#pragma once

#include <array>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "dydit/serve/fair_queue.h"
#include "dydit/serve/job.h"
#include "dydit/serve/served_model.h"

namespace dydit {

struct ServiceOptions {
  OrderRules rules;
  int threads = 1;
  int max_rows = 0;           // of a forward, a guided image has two; 0: measured at start
  int queue_requests = 64;    // orders of which something waits
  int queue_images = 256;     // images that wait
  double keep_seconds = 600;  // of what clients fetch later
  int64_t keep_bytes = int64_t{256} << 20;
  int64_t cache_memory = 0;  // bytes that images in flight may keep of features; 0: a quarter of the memory
};

/// Rows of a forward: the upper bounds of the histogram's bins, but for the last.
inline constexpr std::array kRowBins = {1, 2, 4, 8, 16, 32, 64, 128};

/// What a service did since its start, and does.
struct ServiceNumbers {
  size_t queued_jobs = 0;
  int queued_images = 0, images_in_flight = 0;
  uint64_t images = 0, steps = 0;                                  // finished; steps of images
  uint64_t completed = 0, failed = 0, cancelled = 0, refused = 0;  // orders
  double required_gmacs = 0, executed_gmacs = 0;
  double forward_seconds = 0, picture_seconds = 0;          // decoding and encoding
  std::array<uint64_t, kRowBins.size() + 1> forwards = {};  // by rows
  uint64_t rows = 0;
  double images_per_second = 0;  // of the last minute
  size_t kept_bytes = 0;
  bool draining = false;
};

/// Has a thread of its own that steps all images in flight, those of each model together, and another one
/// that encodes pictures and decodes latents. All functions may be called by any thread.
class Service {
 public:
  Service(std::vector<std::unique_ptr<const ServedModel>> models, const ServiceOptions& options);
  /// Ends at the next step; what is not finished is cancelled.
  ~Service();
  Service(const Service&) = delete;
  Service& operator=(const Service&) = delete;

  const std::vector<ModelTerms>& terms() const { return terms_; }
  const std::vector<std::unique_ptr<const ServedModel>>& models() const { return models_; }
  const ServiceOptions& options() const { return options_; }
  int max_rows(size_t model) const { return lanes_[model]->max_rows; }

  /// Accepts an order of `client`. `keep`: it can be found after its end, for a while. Throws Refusal: 400
  /// for what its model cannot do, 429 where the queue is full, 503 once it drains.
  std::shared_ptr<Job> submit(Order order, const std::string& client, bool keep);
  /// Throws Refusal: 404 for one that never was, 410 for one that is forgotten.
  std::shared_ptr<Job> find(const std::string& id) const;
  void cancel(Job& job);
  /// A client's jobs that have not ended.
  std::vector<std::shared_ptr<Job>> jobs_of(std::string_view client) const;
  /// Seconds until it is finished, by what rows cost of late.
  double seconds_left(const Job& job) const;
  /// Images of others before its first one; 0 when it has begun.
  int queue_position(const Job& job) const;

  /// All of them; how many.
  int cancel_all();

  /// Accepts nothing from now on.
  void drain();
  /// Whether nothing waits or is in flight.
  bool idle() const;
  ServiceNumbers numbers() const;

 private:
  // A job that has not ended, and what is known of its run before sampling.
  struct Flight {
    std::shared_ptr<Job> job;
    std::shared_ptr<Course> course;
    std::shared_ptr<const nlohmann::json> run;
    int images = 0;     // in flight
    int64_t bytes = 0;  // that an image keeps
  };
  // A model, and what waits or is in flight of it.
  struct Lane {
    Lane(const ServedModel& model, const ServiceOptions& options);
    int rows() const;  // in flight
    Flight& flight_of(const Sample& sample);

    const ServedModel& model;
    Scheduler scheduler;
    int max_rows = 0;
    double row_seconds = 0;  // of late
    FairQueue queue;
    std::map<uint64_t, Flight> flights;  // by the jobs' numbers
  };
  struct Picture {  // to be made
    std::shared_ptr<Job> job;
    size_t lane = 0;
    std::shared_ptr<const nlohmann::json> run;
    GeneratedSample sample;  // finished
    at::Tensor x0;           // or predicted, then
    int image = 0, step = 0;
  };
  struct Kept {
    std::shared_ptr<Job> job;
    bool after_end = false;  // a client may come for it later
  };

  void work();
  void make_pictures();
  bool has_work() const;
  void leave(Lane& lane);
  void admit(Lane& lane);
  void step(size_t index, std::unique_lock<std::mutex>& lock);
  void order_previews(size_t index);
  void give(Picture picture);
  void forget_old() const;
  double waiting_seconds(const Lane& lane) const;
  void count_end(const Job& job);

  const std::vector<std::unique_ptr<const ServedModel>> models_;
  const ServiceOptions options_;
  std::vector<ModelTerms> terms_;
  std::vector<std::unique_ptr<Lane>> lanes_;
  const int64_t cache_memory_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;  // work for the engine
  std::condition_variable pictures_changed_;
  mutable std::map<std::string, Kept> jobs_;
  mutable std::deque<std::string> forgotten_;
  std::deque<Picture> pictures_;
  size_t pictures_busy_ = 0;  // waiting or being made
  uint64_t next_number_ = 0;
  bool draining_ = false, stopping_ = false;
  ServiceNumbers numbers_;
  std::deque<Clock::time_point> recent_;  // when images were finished
  std::thread engine_, painter_;
};

}  // namespace dydit
