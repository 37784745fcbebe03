#include "dydit/serve/fair_queue.h"

#include <algorithm>

namespace dydit {

void FairQueue::add(const std::string& client, uint64_t job, int images) {
  const auto known =
      std::find_if(clients_.begin(), clients_.end(), [&](const Client& c) { return c.name == client; });
  Client& own = known != clients_.end() ? *known : clients_.emplace_back(Client{client, {}});
  own.jobs.push_back({job, 0, images});
}

std::optional<FairQueue::Turn> FairQueue::front() const {
  if (clients_.empty()) return std::nullopt;
  const Waiting& waiting = clients_.front().jobs.front();
  return Turn{waiting.job, waiting.next};
}

void FairQueue::pop() {
  Client& client = clients_.front();
  Waiting& waiting = client.jobs.front();
  if (++waiting.next == waiting.images) client.jobs.pop_front();
  if (client.jobs.empty()) {
    clients_.pop_front();
  } else {
    clients_.splice(clients_.end(), clients_, clients_.begin());
  }
}

void FairQueue::remove(uint64_t job) {
  for (Client& client : clients_)
    std::erase_if(client.jobs, [&](const Waiting& waiting) { return waiting.job == job; });
  clients_.remove_if([](const Client& client) { return client.jobs.empty(); });
}

size_t FairQueue::jobs() const {
  size_t count = 0;
  for (const Client& client : clients_) count += client.jobs.size();
  return count;
}

int FairQueue::images() const {
  int count = 0;
  for (const Client& client : clients_) {
    for (const Waiting& waiting : client.jobs) count += waiting.images - waiting.next;
  }
  return count;
}

std::optional<int> FairQueue::images_before(uint64_t job) const {
  // Of its client, what lies before it; of each other one, as many turns, and one more where it is earlier.
  int own = 0, place = 0;
  for (const Client& client : clients_) {
    own = 0;
    for (const Waiting& waiting : client.jobs) {
      if (waiting.job != job) {
        own += waiting.images - waiting.next;
        continue;
      }
      int before = own, index = 0;
      for (const Client& other : clients_) {
        if (index++ == place) continue;
        int waits = 0;
        for (const Waiting& w : other.jobs) waits += w.images - w.next;
        before += std::min(waits, own + (index - 1 < place ? 1 : 0));
      }
      return before;
    }
    ++place;
  }
  return std::nullopt;
}

}  // namespace dydit
