// Batches as a pure function of (seed, step): which images, in which order, flipped or not. A thread works
// ahead.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "dydit/data/dataset.h"

namespace dydit {

struct LoaderOptions {
  uint64_t seed = 0;
  int global_batch = 256;  // samples a step over all processes
  int first = 0;           // this process takes samples [first, first + count) of every step
  int count = 256;
  bool flip = true;  // random horizontal flip, one half of the samples
  int prefetch = 4;  // batches decoded ahead
  int threads = 1;   // that decode a batch
};

struct Batch {
  uint64_t step = 0;
  std::vector<float> images;    // (count, channels, side, side) as Dataset::read_values gives them
  std::vector<int64_t> labels;  // (count)
};

/// The order of epoch `epoch`: a permutation of 0..size-1 that depends on (seed, epoch, size) alone.
std::vector<int64_t> epoch_order(int64_t size, uint64_t seed, uint64_t epoch);

/// Sample j of step s is image order(epoch)[p mod size] with p = s * global_batch + j and epoch = p / size.
class Loader {
 public:
  Loader(const Dataset& dataset, const LoaderOptions& options, uint64_t first_step);
  ~Loader();
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  /// The batches of first_step, first_step + 1, ... Rethrows what the working thread met.
  Batch next();

 private:
  void work(uint64_t step);
  Batch make_batch(uint64_t step);

  const Dataset& dataset_;
  const LoaderOptions options_;
  std::mutex mutex_;
  std::condition_variable ready_, room_;
  std::deque<Batch> batches_;
  std::exception_ptr error_;
  bool stop_ = false;
  uint64_t epoch_ = ~uint64_t{0};  // whose order is at hand; the working thread's
  std::vector<int64_t> order_;
  std::thread worker_;
};

}  // namespace dydit
