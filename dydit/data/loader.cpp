#include "dydit/data/loader.h"

#include <numeric>
#include <utility>

#include <ATen/core/PhiloxRNGEngine.h>

#include "dydit/base/error.h"
#include "dydit/base/noise.h"
#include "dydit/data/parallel.h"

namespace dydit {
namespace {

// The `draw` (see noise.h) of the order: far from those of TrainingDraw.
constexpr uint64_t kOrderDraw = 0xFFFFFFFF;
constexpr int kMaxGlobalBatch = 1 << 24;  // of training_sample

}  // namespace

std::vector<int64_t> epoch_order(int64_t size, uint64_t seed, uint64_t epoch) {
  std::vector<int64_t> order(static_cast<size_t>(size));
  std::iota(order.begin(), order.end(), int64_t{0});
  at::philox_engine engine(seed, epoch, kOrderDraw << 32);
  for (size_t i = order.size(); i > 1; --i) {
    // 64 random bits times i: the upper half is below i, its bias below i / 2^64.
    const uint64_t high = engine();
    const uint64_t bits = high << 32 | engine();
    const auto j = static_cast<size_t>(static_cast<unsigned __int128>(bits) * i >> 64);
    std::swap(order[i - 1], order[j]);
  }
  return order;
}

Loader::Loader(const Dataset& dataset, const LoaderOptions& options, uint64_t first_step)
    : dataset_(dataset), options_(options) {
  DYDIT_USAGE_CHECK(options.global_batch > 0 && options.global_batch <= kMaxGlobalBatch,
                    "a batch of {} samples: 1 to {} are wanted", options.global_batch, kMaxGlobalBatch);
  DYDIT_USAGE_CHECK(
      options.first >= 0 && options.count > 0 && options.first <= options.global_batch - options.count,
      "samples [{}, {}) do not lie in a batch of {}", options.first, int64_t{options.first} + options.count,
      options.global_batch);
  DYDIT_USAGE_CHECK(options.prefetch > 0, "{} batches ahead: at least 1 is wanted", options.prefetch);
  worker_ = std::thread([this, first_step] { work(first_step); });
}

Loader::~Loader() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  room_.notify_all();
  worker_.join();
}

Batch Loader::next() {
  std::unique_lock lock(mutex_);
  ready_.wait(lock, [this] { return !batches_.empty() || error_; });
  if (batches_.empty()) std::rethrow_exception(error_);  // after the batches that were well
  Batch batch = std::move(batches_.front());
  batches_.pop_front();
  lock.unlock();
  room_.notify_one();
  return batch;
}

void Loader::work(uint64_t step) {
  try {
    for (;; ++step) {
      Batch batch = make_batch(step);
      std::unique_lock lock(mutex_);
      room_.wait(lock, [this] { return stop_ || batches_.size() < static_cast<size_t>(options_.prefetch); });
      if (stop_) return;
      batches_.push_back(std::move(batch));
      lock.unlock();
      ready_.notify_one();
    }
  } catch (...) {
    const std::lock_guard lock(mutex_);
    error_ = std::current_exception();
    ready_.notify_all();
  }
}

Batch Loader::make_batch(uint64_t step) {
  const auto side = static_cast<size_t>(dataset_.side());
  const size_t image_size = static_cast<size_t>(dataset_.channels()) * side * side;
  const auto count = static_cast<size_t>(options_.count);
  const auto size = static_cast<uint64_t>(dataset_.size());
  Batch batch{step, std::vector<float>(count * image_size), std::vector<int64_t>(count)};
  const uint64_t first =
      step * static_cast<uint64_t>(options_.global_batch) + static_cast<uint64_t>(options_.first);
  std::vector<int64_t> indices(count);
  std::vector<Draw> draws(count);
  for (size_t i = 0; i < count; ++i) {
    const uint64_t epoch = (first + i) / size;
    if (order_.empty() || epoch != epoch_) {
      order_ = epoch_order(dataset_.size(), options_.seed, epoch);
      epoch_ = epoch;
    }
    indices[i] = order_[(first + i) % size];
    draws[i] = {options_.seed, training_sample(step, static_cast<uint64_t>(options_.first) + i), epoch,
                options_.flip};
    batch.labels[i] = dataset_.label(indices[i]);
  }
  parallel_for(options_.count, options_.threads, [&](int64_t i) {
    const auto at = static_cast<size_t>(i);
    dataset_.read_values(indices[at], draws[at], batch.images.data() + at * image_size);
  });
  return batch;
}

}  // namespace dydit
