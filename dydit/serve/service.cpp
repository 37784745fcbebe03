#include "dydit/serve/service.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <utility>

#include <c10/core/InferenceMode.h>
#include <fmt/format.h>

#include "dydit/base/machine.h"
#include "dydit/base/timer.h"
#include "dydit/engine/engine.h"

namespace dydit {
namespace {

using nlohmann::json;

constexpr double kGiga = 1e9;
constexpr size_t kForgottenKept = 10'000;
constexpr auto kLook = std::chrono::milliseconds(50);  // at deadlines, where nothing else wakes the engine
constexpr auto kRecent = std::chrono::seconds(60);

// 128 bits that nobody guesses.
std::string drawn_id() {
  std::random_device device;
  return fmt::format("{:08x}{:08x}{:08x}{:08x}", device(), device(), device(), device());
}

// The smallest number of rows within 5 % of the best rate, and what a row costs then.
struct RowRate {
  int rows = 1;
  double row_seconds = 0;
};

RowRate measured_rows(const ServedModel& model, int threads) {
  constexpr int kMost = 64;
  constexpr double kLongest = 1.5, kEnough = 0.05;  // seconds of a forward; of a measurement
  c10::InferenceMode guard;
  Request request;
  request.timesteps = {time_at(model.checkpoint.config.objective, 0.5)};
  request.cfg_scale = 1;
  request.sampler.kind = SamplerKind::Ddim;
  if (const auto& few_step = model.checkpoint.few_step) {
    take_few_step(few_step, {}, request);
    request.timesteps = {static_cast<double>(few_step->timesteps.front())};
  }
  request.num_images = kMost;
  request.mode = model.checkpoint.config.is_dynamic() ? Mode::Dynamic : Mode::Static;
  const RunPlan plan = model.pipeline.plan(request);
  Scheduler scheduler(model.pipeline.engine(), {.threads = threads});
  const auto forward = [&](int rows) {
    scheduler.add(std::make_shared<Course>(request, plan), 0, rows);
    const Timer timer;
    scheduler.step();
    return timer.seconds();
  };
  std::vector<RowRate> rates;
  for (int rows = 1; rows <= kMost; rows *= 2) {
    double best = forward(rows);  // the first one also gets memory
    double spent = best;
    for (int i = 0; i < 3 || spent < kEnough; ++i) {
      if (spent > kLongest) break;
      const double seconds = forward(rows);
      best = std::min(best, seconds);
      spent += seconds;
    }
    rates.push_back({rows, best / rows});
    if (best > kLongest) break;
  }
  double least = rates[0].row_seconds;
  for (const RowRate& rate : rates) least = std::min(least, rate.row_seconds);
  return *std::find_if(rates.begin(), rates.end(),
                       [&](const RowRate& rate) { return rate.row_seconds <= 1.05 * least; });
}

int rows_of(const Request& request) { return request.guided() ? 2 : 1; }

// Rows of forwards that a job still takes, at most.
double rows_left(const Job& job) {
  const Request& request = job.order.request;
  return static_cast<double>(request.num_images) * request.total_steps() * rows_of(request) *
         (1 - job.status().progress);
}

}  // namespace

Service::Lane::Lane(const ServedModel& model, const ServiceOptions& options)
    : model(model), scheduler(model.pipeline.engine(), {.threads = options.threads}) {
  const RowRate rate = measured_rows(model, options.threads);
  max_rows = options.max_rows > 0 ? options.max_rows : rate.rows;
  GenerateOptions run{{.cfg_scale = 1}, {.threads = options.threads}, model.options.dtype, model.kind};
  run.token_map = true;
  check_memory(least_generate_bytes(model.checkpoint, run, max_rows),
               fmt::format("a forward of {} rows", max_rows), "take a smaller --max-batch");
  row_seconds = rate.row_seconds;
}

int Service::Lane::rows() const {
  int rows = 0;
  for (const Sample& sample : scheduler.in_flight()) rows += rows_of(sample.course->request);
  return rows;
}

Service::Flight& Service::Lane::flight_of(const Sample& sample) {
  return std::find_if(flights.begin(), flights.end(),
                      [&](const auto& entry) { return entry.second.course == sample.course; })
      ->second;
}

Service::Service(std::vector<std::unique_ptr<const ServedModel>> models, const ServiceOptions& options)
    : models_(std::move(models)),
      options_(options),
      cache_memory_(options.cache_memory > 0 ? options.cache_memory : memory_limit().bytes / 4) {
  for (const auto& model : models_) {
    terms_.push_back(model->terms());
    lanes_.push_back(std::make_unique<Lane>(*model, options_));
  }
  engine_ = std::thread([this] { work(); });
  painter_ = std::thread([this] { make_pictures(); });
}

Service::~Service() {
  {
    const std::lock_guard lock(mutex_);
    draining_ = stopping_ = true;
  }
  cancel_all();
  changed_.notify_all();
  pictures_changed_.notify_all();
  engine_.join();
  painter_.join();
}

std::shared_ptr<Job> Service::submit(Order order, const std::string& client, bool keep) {
  Lane& lane = *lanes_[order.model];
  const ServedModel& model = lane.model;
  const auto refuse_full = [&] {  // with the lock
    if (draining_) throw Refusal(503, "the server is about to end and accepts nothing any more");
    const bool full = lane.queue.jobs() >= static_cast<size_t>(options_.queue_requests),
               many = lane.queue.images() + order.request.num_images > options_.queue_images;
    if (!full && !many) return;
    ++numbers_.refused;
    Refusal refusal(429,
                    full ? fmt::format("{} requests wait already; try again later", lane.queue.jobs())
                         : fmt::format("{} images wait already and {} are asked for, {} may wait; try "
                                       "again later",
                                       lane.queue.images(), order.request.num_images, options_.queue_images));
    refusal.retry_after = static_cast<int>(std::ceil(std::clamp(waiting_seconds(lane), 1.0, 3600.0)));
    throw refusal;
  };
  {
    const std::lock_guard lock(mutex_);
    refuse_full();  // before the work of a plan
  }
  model.choose_plan(order);
  Flight flight;
  RunPlan plan = [&] {
    try {
      return model.pipeline.plan(order.request);
    } catch (const UsageError& error) {
      throw Refusal(400, error.what());
    }
  }();
  flight.bytes = cache_bytes(plan, order.request, kept_type(model.kind, model.options));
  if (flight.bytes > cache_memory_)
    throw Refusal(400,
                  fmt::format("request: its plan keeps {} of features an image; {} are allowed",
                              memory_text(static_cast<double>(flight.bytes)),
                              memory_text(static_cast<double>(cache_memory_))),
                  "cache");
  flight.run = std::make_shared<const json>(model.run_record(order, plan));
  try {  // its solver may not take these times
    flight.course = std::make_shared<Course>(
        order.request, std::move(plan), Extras{.x0 = order.partial_images > 0, .entries = order.cost_map});
  } catch (const UsageError& error) {
    throw Refusal(400, error.what());
  }

  const std::lock_guard lock(mutex_);
  refuse_full();
  forget_old();
  flight.job = std::make_shared<Job>(drawn_id(), next_number_++, std::move(order), client);
  const std::shared_ptr<Job> job = flight.job;
  jobs_[job->id] = {job, keep};
  lane.queue.add(client, job->number, job->order.request.num_images);
  lane.flights[job->number] = std::move(flight);
  changed_.notify_all();
  return job;
}

std::shared_ptr<Job> Service::find(const std::string& id) const {
  const std::lock_guard lock(mutex_);
  forget_old();
  if (const auto found = jobs_.find(id); found != jobs_.end()) return found->second.job;
  if (std::find(forgotten_.begin(), forgotten_.end(), id) != forgotten_.end())
    throw Refusal(410, fmt::format("job {} has ended, and what it made is kept no longer", id));
  throw Refusal(404, "there is no such job");
}

// With the lock. What nobody comes for any more: answered at once, or too old, or too much in all.
void Service::forget_old() const {
  const auto now = Clock::now();
  size_t bytes = 0;
  std::vector<std::pair<Clock::time_point, std::string>> ended;
  for (auto kept = jobs_.begin(); kept != jobs_.end();) {
    const Job& job = *kept->second.job;
    const auto end = job.accepted + std::chrono::duration_cast<Clock::duration>(
                                        std::chrono::duration<double>(job.seconds()));
    const bool over = job.status().ended(),
               old = now - end > std::chrono::duration<double>(options_.keep_seconds);
    if (over && (!kept->second.after_end || old)) {
      if (kept->second.after_end) forgotten_.push_back(kept->first);
      kept = jobs_.erase(kept);
      continue;
    }
    bytes += job.bytes();
    if (over) ended.emplace_back(end, kept->first);
    ++kept;
  }
  std::sort(ended.begin(), ended.end());
  for (size_t i = 0; i < ended.size() && bytes > static_cast<size_t>(options_.keep_bytes); ++i) {
    bytes -= jobs_.at(ended[i].second).job->bytes();
    forgotten_.push_back(ended[i].second);
    jobs_.erase(ended[i].second);
  }
  while (forgotten_.size() > kForgottenKept) forgotten_.pop_front();
}

void Service::cancel(Job& job) {
  job.cancel();
  changed_.notify_all();
}

int Service::cancel_all() {
  int count = 0;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [id, kept] : jobs_) {
      if (kept.job->status().ended()) continue;
      kept.job->cancel();
      ++count;
    }
  }
  changed_.notify_all();
  return count;
}

std::vector<std::shared_ptr<Job>> Service::jobs_of(std::string_view client) const {
  std::vector<std::shared_ptr<Job>> own;
  const std::lock_guard lock(mutex_);
  for (const auto& [id, kept] : jobs_) {
    if (kept.job->client == client && !kept.job->status().ended()) own.push_back(kept.job);
  }
  return own;
}

// With the lock: of what waits in a lane and of what is in flight there.
double Service::waiting_seconds(const Lane& lane) const {
  double rows = 0;
  for (const auto& [number, flight] : lane.flights) rows += rows_left(*flight.job);
  return rows * lane.row_seconds;
}

// A client's own earlier jobs come first; of each other job, as turns go, as much as of this one.
double Service::seconds_left(const Job& job) const {
  const std::lock_guard lock(mutex_);
  const Lane& lane = *lanes_[job.order.model];
  const double own = rows_left(job);
  double rows = own;
  for (const auto& [number, flight] : lane.flights) {
    const Job& other = *flight.job;
    if (other.client != job.client) {
      rows += std::min(own, rows_left(other));
    } else if (number < job.number) {
      rows += rows_left(other);
    }
  }
  return rows * lane.row_seconds;
}

int Service::queue_position(const Job& job) const {
  const std::lock_guard lock(mutex_);
  return lanes_[job.order.model]->queue.images_before(job.number).value_or(0);
}

void Service::drain() {
  const std::lock_guard lock(mutex_);
  draining_ = true;
}

bool Service::idle() const {
  const std::lock_guard lock(mutex_);
  return pictures_busy_ == 0 &&
         std::all_of(lanes_.begin(), lanes_.end(), [](const auto& lane) { return lane->flights.empty(); });
}

ServiceNumbers Service::numbers() const {
  const std::lock_guard lock(mutex_);
  ServiceNumbers numbers = numbers_;
  for (const auto& lane : lanes_) {
    numbers.queued_jobs += lane->queue.jobs();
    numbers.queued_images += lane->queue.images();
    for (const auto& [number, flight] : lane->flights) numbers.images_in_flight += flight.images;
  }
  for (const auto& [id, kept] : jobs_) numbers.kept_bytes += kept.job->bytes();
  numbers.draining = draining_;
  const auto now = Clock::now();
  const auto first = std::lower_bound(recent_.begin(), recent_.end(), now - kRecent);
  if (first != recent_.end()) {
    const double span = std::chrono::duration<double>(now - *first).count();
    numbers.images_per_second = static_cast<double>(recent_.end() - first) / std::max(span, 1.0);
  }
  return numbers;
}

// The engine's thread: between two steps who left goes, who waits comes; then all take a step.
void Service::work() {
  c10::InferenceMode guard;
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    if (!has_work()) {
      changed_.wait(lock);
      continue;
    }
    bool flies = false;
    for (const auto& lane : lanes_) {
      leave(*lane);
      admit(*lane);
      flies = flies || !lane->scheduler.in_flight().empty();
    }
    if (!flies) {  // pictures are late, or all that waited left
      changed_.wait_for(lock, kLook);
      continue;
    }
    for (size_t i = 0; i < lanes_.size(); ++i) {
      if (!lanes_[i]->scheduler.in_flight().empty()) step(i, lock);
    }
  }
}

bool Service::has_work() const {
  return std::any_of(lanes_.begin(), lanes_.end(), [](const auto& lane) { return !lane->flights.empty(); });
}

// With the lock.
void Service::leave(Lane& lane) {
  const auto now = Clock::now();
  bool some = false;
  for (auto& [number, flight] : lane.flights) {
    flight.job->expire(now);
    some = some || flight.job->status().ended();
  }
  if (!some) return;
  lane.scheduler.remove([&](const Sample& sample) {
    return std::any_of(lane.flights.begin(), lane.flights.end(), [&](const auto& entry) {
      return entry.second.course == sample.course && entry.second.job->status().ended();
    });
  });
  std::erase_if(lane.flights, [&](const auto& entry) {
    const Job& job = *entry.second.job;
    if (!job.status().ended()) return false;
    lane.queue.remove(job.number);
    count_end(job);
    return true;
  });
}

void Service::count_end(const Job& job) {
  const JobState state = job.status().state;
  ++(state == JobState::Completed ? numbers_.completed
     : state == JobState::Failed  ? numbers_.failed
                                  : numbers_.cancelled);
}

// With the lock.
void Service::admit(Lane& lane) {
  int64_t bytes = 0;
  for (const auto& [number, flight] : lane.flights) bytes += flight.bytes * flight.images;
  // Where pictures take longer than forwards, what is finished must not pile up.
  while (pictures_busy_ <= static_cast<size_t>(2 * lane.max_rows)) {
    const auto turn = lane.queue.front();
    if (!turn) return;
    Flight& flight = lane.flights.at(turn->job);
    const int rows = lane.rows();
    if (rows > 0 && rows + rows_of(flight.job->order.request) > lane.max_rows) return;
    if (bytes > 0 && bytes + flight.bytes > cache_memory_) return;
    lane.queue.pop();
    lane.scheduler.add(flight.course, turn->image, 1);
    ++flight.images;
    bytes += flight.bytes;
    flight.job->begin();
  }
}

// With the lock, which it gives up while the engine computes.
void Service::step(size_t index, std::unique_lock<std::mutex>& lock) {
  Lane& lane = *lanes_[index];
  const int rows = lane.rows();
  std::vector<Flight*> flights;  // of the samples; entries of a map stay where they are
  for (const Sample& sample : lane.scheduler.in_flight()) flights.push_back(&lane.flight_of(sample));
  lock.unlock();
  const Timer timer;
  std::vector<Sample> finished;
  std::string failure;
  try {
    finished = lane.scheduler.step();
  } catch (const std::exception& error) {  // none is in flight any more
    failure = fmt::format("the step failed: {}", error.what());
  }
  const double seconds = timer.seconds();
  lock.lock();
  if (!failure.empty()) {
    for (Flight* flight : flights) flight->job->fail(Refusal(500, failure));
    return;
  }
  for (Flight* flight : flights) flight->job->count_step();
  for (const Sample& sample : finished) {
    Flight& flight = lane.flight_of(sample);
    --flight.images;
    numbers_.required_gmacs += static_cast<double>(sample.work.required) / kGiga;
    numbers_.executed_gmacs += static_cast<double>(sample.work.executed) / kGiga;
    try {
      give({flight.job, index, flight.run, delivered(sample), {}, sample.index, 0});
    } catch (const Error& error) {
      flight.job->fail(Refusal(500, error.what()));
    }
  }
  order_previews(index);
  constexpr double kNewest = 0.1;
  lane.row_seconds += kNewest * (seconds / rows - lane.row_seconds);
  numbers_.forward_seconds += seconds;
  numbers_.steps += flights.size();
  numbers_.rows += static_cast<uint64_t>(rows);
  const auto bin = std::lower_bound(kRowBins.begin(), kRowBins.end(), rows) - kRowBins.begin();
  ++numbers_.forwards[static_cast<size_t>(bin)];
}

// With the lock. Previews lie at even distances: after steps S k / (n + 1), rounded up, for k = 1..n.
void Service::order_previews(size_t index) {
  Lane& lane = *lanes_[index];
  for (const Sample& sample : lane.scheduler.in_flight()) {
    if (!sample.course->extras.x0) continue;
    const Flight& flight = lane.flight_of(sample);
    const Order& order = flight.job->order;
    const int done = sample.steps_done(), steps = order.request.total_steps(),
              parts = order.partial_images + 1;
    const int due = done * parts / steps;
    if (due == 0 || (done - 1) * parts / steps == due) continue;
    give({flight.job, index, flight.run, {}, sample.x0.clone(), sample.index, done});
  }
}

// With the lock.
void Service::give(Picture picture) {
  pictures_.push_back(std::move(picture));
  ++pictures_busy_;
  pictures_changed_.notify_one();
}

void Service::make_pictures() {
  c10::InferenceMode guard;
  std::unique_lock lock(mutex_);
  while (true) {
    pictures_changed_.wait(lock, [&] { return stopping_ || !pictures_.empty(); });
    if (stopping_) return;
    Picture picture = std::move(pictures_.front());
    pictures_.pop_front();
    lock.unlock();
    const Timer timer;
    const bool is_preview = picture.x0.defined();
    if (!picture.job->status().ended()) {
      const ServedModel& model = lanes_[picture.lane]->model;
      try {
        picture.job->tell(is_preview
                              ? model.preview(picture.job->order, picture.image, picture.step, picture.x0)
                              : model.finished(picture.job->order, *picture.run, std::move(picture.sample)));
      } catch (const std::exception& error) {
        picture.job->fail(Refusal(500, fmt::format("image {}: {}", picture.image, error.what())));
      }
    }
    const double seconds = timer.seconds();
    picture = {};
    lock.lock();
    --pictures_busy_;
    numbers_.picture_seconds += seconds;
    if (!is_preview) {
      ++numbers_.images;
      const auto now = Clock::now();
      recent_.push_back(now);
      while (now - recent_.front() > kRecent) recent_.pop_front();
    }
    changed_.notify_all();
  }
}

}  // namespace dydit
