// Who is next: clients take turns, an image at a time, so that one with many images does not keep others
// waiting.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <list>
#include <optional>
#include <string>

namespace dydit {

class FairQueue {
 public:
  struct Turn {
    uint64_t job;
    int image;
  };

  /// `images` of a job, behind what this client has waiting already.
  void add(const std::string& client, uint64_t job, int images);
  /// The image whose turn it is; nothing when none waits.
  std::optional<Turn> front() const;
  /// Takes it; the next turn is the next client's.
  void pop();
  /// Leaves out what waits of a job.
  void remove(uint64_t job);

  size_t jobs() const;
  int images() const;
  /// Images that come before the first one of this job; nothing when none of it waits.
  std::optional<int> images_before(uint64_t job) const;

 private:
  struct Waiting {
    uint64_t job;
    int next, images;
  };
  struct Client {
    std::string name;
    std::deque<Waiting> jobs;  // at least one
  };
  std::list<Client> clients_;  // the one whose turn it is first
};

}  // namespace dydit
