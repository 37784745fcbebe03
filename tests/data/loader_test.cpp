// Batches are a function of (seed, step) whatever the start, the share of a process or the cache.
#include "dydit/data/loader.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <numeric>
#include <set>

#include <gtest/gtest.h>

#include "dydit/base/noise.h"
#include "tests/support/files.h"

namespace dydit {
namespace {

// `size` images of 1 x 2 x 2 whose pixels are (i, i, 200, 200) by column; image `broken` throws.
class FakeDataset final : public Dataset {
 public:
  explicit FakeDataset(int64_t size, int64_t broken = -1) : size_(size), broken_(broken) {
    side_ = 2;
    channels_ = 1;
  }
  int64_t size() const override { return size_; }
  int label(int64_t index) const override { return static_cast<int>(index); }
  void read(int64_t index, std::span<uint8_t> out) const override {
    if (index == broken_) throw Error("image is broken");
    const auto value = static_cast<uint8_t>(index);
    const uint8_t pixels[] = {value, 200, value, 200};
    std::copy(std::begin(pixels), std::end(pixels), out.begin());
  }

 private:
  int64_t size_, broken_;
};

LoaderOptions whole(int batch, uint64_t seed = 7) {
  return {.seed = seed, .global_batch = batch, .first = 0, .count = batch};
}

std::vector<int64_t> sorted(std::vector<int64_t> values) {
  std::sort(values.begin(), values.end());
  return values;
}

TEST(EpochOrder, IsAPermutationThatDependsOnSeedAndEpoch) {
  std::vector<int64_t> all(1000);
  std::iota(all.begin(), all.end(), int64_t{0});
  const auto order = epoch_order(1000, 7, 0);
  EXPECT_EQ(sorted(order), all);
  EXPECT_EQ(order, epoch_order(1000, 7, 0));
  EXPECT_NE(order, epoch_order(1000, 7, 1));
  EXPECT_NE(order, epoch_order(1000, 8, 0));
}

TEST(EpochOrder, PutsEveryImageInEveryPlaceEquallyOften) {
  constexpr int kSize = 5, kEpochs = 20'000;
  int counts[kSize][kSize] = {};
  for (uint64_t epoch = 0; epoch < kEpochs; ++epoch) {
    const auto order = epoch_order(kSize, 3, epoch);
    for (size_t place = 0; place < kSize; ++place) ++counts[order[place]][place];
  }
  for (const auto& row : counts) {
    for (const int count : row) EXPECT_NEAR(count, kEpochs / kSize, 5 * 57);  // five standard deviations
  }
}

TEST(EpochOrder, OfOneImageIsThatImage) { EXPECT_EQ(epoch_order(1, 7, 3), std::vector<int64_t>{0}); }

TEST(Loader, ShowsEveryImageOnceAnEpochAcrossBatchBorders) {
  const FakeDataset data(10);
  Loader loader(data, whole(4), 0);
  std::vector<int64_t> seen;
  for (int step = 0; step < 5; ++step) {
    const Batch batch = loader.next();
    EXPECT_EQ(batch.step, static_cast<uint64_t>(step));
    seen.insert(seen.end(), batch.labels.begin(), batch.labels.end());
  }
  const auto first = epoch_order(10, 7, 0), second = epoch_order(10, 7, 1);
  EXPECT_TRUE(std::equal(first.begin(), first.end(), seen.begin()));
  EXPECT_TRUE(std::equal(second.begin(), second.end(), seen.begin() + 10));
}

TEST(Loader, BatchLargerThanTheDataSetGoesOnWithTheNextEpoch) {
  const FakeDataset data(3);
  const Batch batch = Loader(data, whole(7), 0).next();
  EXPECT_EQ(batch.labels[3], epoch_order(3, 7, 1)[0]);
  EXPECT_EQ(batch.labels[6], epoch_order(3, 7, 2)[0]);
}

TEST(Loader, StartedLaterGivesTheSameBatches) {
  const FakeDataset data(10);
  Loader from_start(data, whole(4), 0), resumed(data, whole(4), 3);
  for (int step = 0; step < 3; ++step) from_start.next();
  for (int step = 0; step < 5; ++step) {
    const Batch a = from_start.next(), b = resumed.next();
    EXPECT_EQ(a.step, b.step);
    EXPECT_EQ(a.labels, b.labels);
    EXPECT_EQ(a.images, b.images);
  }
}

TEST(Loader, SharesOfProcessesMakeTheGlobalBatch) {
  const FakeDataset data(50);
  Loader global(data, whole(8), 2);
  Loader one(data, {.seed = 7, .global_batch = 8, .first = 0, .count = 3}, 2);
  Loader two(data, {.seed = 7, .global_batch = 8, .first = 3, .count = 5}, 2);
  for (int step = 0; step < 4; ++step) {
    const Batch wanted = global.next();
    Batch joined = one.next();
    const Batch rest = two.next();
    joined.images.insert(joined.images.end(), rest.images.begin(), rest.images.end());
    joined.labels.insert(joined.labels.end(), rest.labels.begin(), rest.labels.end());
    EXPECT_EQ(joined.images, wanted.images);
    EXPECT_EQ(joined.labels, wanted.labels);
  }
}

TEST(Loader, FlipsWhereTheNoiseOfTheSampleSays) {
  const FakeDataset data(50);
  Loader flipping(data, whole(32), 5);
  const Batch batch = flipping.next();
  int flipped = 0;
  for (size_t j = 0; j < 32; ++j) {
    float uniform = 0;
    fill_uniform({&uniform, 1}, 7, training_sample(5, j), static_cast<uint64_t>(TrainingDraw::Flip));
    const size_t bright = uniform < 0.5f ? 0 : 1;
    flipped += bright == 0 ? 1 : 0;
    EXPECT_EQ(batch.images[j * 4 + bright], 200 / 127.5f - 1.0f);
    EXPECT_EQ(batch.images[j * 4 + 2 + bright], 200 / 127.5f - 1.0f);
  }
  EXPECT_GT(flipped, 5);
  EXPECT_LT(flipped, 27);
}

TEST(Loader, WithoutFlipKeepsEveryImage) {
  const FakeDataset data(50);
  LoaderOptions options = whole(32);
  options.flip = false;
  const Batch batch = Loader(data, options, 0).next();
  for (size_t j = 0; j < 32; ++j) EXPECT_EQ(batch.images[j * 4 + 1], 200 / 127.5f - 1.0f);
}

TEST(Loader, BytesSpanMinusOneToOne) {
  const FakeDataset data(256);
  const Batch batch = Loader(data, whole(256), 0).next();
  EXPECT_EQ(*std::min_element(batch.images.begin(), batch.images.end()), -1.0f);
  EXPECT_EQ(*std::max_element(batch.images.begin(), batch.images.end()), 1.0f);
}

TEST(Loader, RethrowsWhatItMetAfterTheGoodBatchesAndEachTime) {
  const FakeDataset data(10, epoch_order(10, 7, 0)[9]);
  Loader loader(data, whole(4), 0);
  loader.next();
  loader.next();
  test::expect_error([&] { loader.next(); }, "image is broken");
  test::expect_error([&] { loader.next(); }, "image is broken");
}

TEST(Loader, ThreadsThatDecodeChangeNothing) {
  const FakeDataset data(50);
  LoaderOptions options = whole(32);
  Loader one(data, options, 3);
  options.threads = 4;
  Loader four(data, options, 3);
  for (int step = 0; step < 5; ++step) {
    const Batch a = one.next(), b = four.next();
    EXPECT_EQ(a.images, b.images);
    EXPECT_EQ(a.labels, b.labels);
  }
}

TEST(Loader, SeveralThreadsDecodeABatch) {
  // Two threads are wanted at once: with one, the first image would wait in vain for the second.
  class Meeting final : public Dataset {
   public:
    Meeting() {
      side_ = 1;
      channels_ = 1;
    }
    int64_t size() const override { return 2; }
    int label(int64_t) const override { return 0; }
    void read(int64_t, std::span<uint8_t> out) const override {
      std::unique_lock lock(mutex_);
      ++here_;
      all_here_.notify_all();
      out[0] = all_here_.wait_for(lock, std::chrono::seconds(20), [&] { return here_ >= 2; }) ? 255 : 0;
    }

   private:
    mutable std::mutex mutex_;
    mutable std::condition_variable all_here_;
    mutable int here_ = 0;
  };
  const Meeting data;
  LoaderOptions options = whole(2);
  options.prefetch = 1;
  options.threads = 2;
  EXPECT_EQ(Loader(data, options, 0).next().images, (std::vector<float>{1, 1}));
}

TEST(Loader, EndsWithBatchesLeftOver) {
  const FakeDataset data(10);
  for (int i = 0; i < 50; ++i) {
    Loader loader(data, whole(4), 0);
    if (i % 2 == 0) loader.next();
  }
}

TEST(Loader, SharesOutsideTheBatchAreUsageErrors) {
  const FakeDataset data(10);
  const auto make = [&](int global, int first, int count) {
    Loader loader(data, {.global_batch = global, .first = first, .count = count}, 0);
  };
  EXPECT_THROW(make(0, 0, 1), UsageError);
  EXPECT_THROW(make(8, 6, 3), UsageError);
  EXPECT_THROW(make(8, -1, 3), UsageError);
  EXPECT_THROW(make(8, 0, 0), UsageError);
}

}  // namespace
}  // namespace dydit
