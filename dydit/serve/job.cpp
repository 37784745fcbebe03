#include "dydit/serve/job.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

namespace dydit {

Job::Job(std::string id, uint64_t number, Order order, std::string client)
    : id(std::move(id)),
      number(number),
      order(std::move(order)),
      client(std::move(client)),
      accepted(Clock::now()),
      deadline(accepted + std::chrono::duration_cast<Clock::duration>(
                              std::chrono::duration<double>(this->order.seconds))),
      created(std::chrono::duration_cast<std::chrono::seconds>(
                  std::chrono::system_clock::now().time_since_epoch())
                  .count()),
      images_(static_cast<size_t>(this->order.request.num_images)) {}

JobStatus Job::status() const {
  const std::lock_guard lock(mutex_);
  const double total = static_cast<double>(order.request.num_images) * order.request.total_steps();
  return {state_, finished_, std::min(1.0, static_cast<double>(steps_) / total)};
}

std::optional<Refusal> Job::failure() const {
  const std::lock_guard lock(mutex_);
  return failure_;
}

bool Job::wait(Clock::time_point until) const {
  std::unique_lock lock(mutex_);
  return changed_.wait_until(lock, until, [&] { return ended_.has_value(); });
}

std::shared_ptr<const JobEvent> Job::event(size_t number, Clock::time_point until) const {
  std::unique_lock lock(mutex_);
  changed_.wait_until(lock, until, [&] { return events_.size() > number || ended_; });
  return events_.size() > number ? events_[number] : nullptr;
}

std::vector<std::shared_ptr<const JobEvent>> Job::images() const {
  const std::lock_guard lock(mutex_);
  return images_;
}

double Job::seconds() const {
  const std::lock_guard lock(mutex_);
  return std::chrono::duration<double>(ended_.value_or(Clock::now()) - accepted).count();
}

size_t Job::bytes() const {
  const std::lock_guard lock(mutex_);
  return bytes_;
}

void Job::begin() {
  const std::lock_guard lock(mutex_);
  if (state_ == JobState::Queued) state_ = JobState::Generating;
}

void Job::tell(JobEvent event) {
  const std::lock_guard lock(mutex_);
  if (ended_) return;
  bytes_ += event.png.size() + event.cost_map.size();
  events_.push_back(std::make_shared<const JobEvent>(std::move(event)));
  const JobEvent& told = *events_.back();
  if (told.step == 0) {
    images_[static_cast<size_t>(told.image)] = events_.back();
    ++finished_;
  }
  if (finished_ == order.request.num_images) end(JobState::Completed);
  changed_.notify_all();
}

void Job::fail(const Refusal& refusal) {
  const std::lock_guard lock(mutex_);
  if (ended_) return;
  failure_ = refusal;
  end(JobState::Failed);
}

void Job::cancel() {
  const std::lock_guard lock(mutex_);
  if (ended_) return;
  failure_ = Refusal(499, "the request was cancelled");
  end(JobState::Cancelled);
}

void Job::expire(Clock::time_point now) {
  if (now < deadline) return;
  fail(Refusal(504, fmt::format("{} of {} images were finished within {:g} s", status().finished,
                                order.request.num_images, order.seconds)));
}

void Job::end(JobState state) {
  state_ = state;
  ended_ = Clock::now();
  changed_.notify_all();
}

}  // namespace dydit
