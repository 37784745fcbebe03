// A run on disk: what is saved comes back, what is broken is passed over, what is old goes.
#include "dydit/train/state.h"

#include <fstream>

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "tests/support/files.h"
#include "tests/support/random_model.h"

namespace dydit {
namespace {

namespace fs = std::filesystem;
using test::TemporaryFolder;

const nlohmann::json kOptions = {{"lr", 1e-4}, {"lambda", 0.5}, {"gates", "hard"}};

// A store of the tiny model whose five buffers hold different numbers, `seed` telling which.
struct Trained {
  explicit Trained(uint64_t seed)
      : start(test::random_checkpoint(test::tiny_config())), model(make_model(start)) {
    start.lambda = 0.5;
    store = std::make_unique<ParameterStore>(model, 1);
    uint64_t index = 0;
    for (at::Tensor* buffer : {&store->values, &store->exp_avg, &store->exp_avg_sq, &store->ema}) {
      buffer->copy_(test::random_tensor(buffer->sizes(), seed, index++));
    }
  }
  void save(const fs::path& run, int64_t step) const {
    Checkpoint ema = start;
    ema.weights = store->ema_weights();
    save_state(run, {.step = step, .updates = step - 2, .skipped = 2, .options = kOptions}, *store, ema);
  }
  bool equals(const Trained& other) const {
    return at::equal(store->values, other.store->values) && at::equal(store->exp_avg, other.store->exp_avg) &&
           at::equal(store->exp_avg_sq, other.store->exp_avg_sq) && at::equal(store->ema, other.store->ema);
  }

  Checkpoint start;
  DiT model;
  std::unique_ptr<ParameterStore> store;
};

void nothing_is_broken(const std::string& reason) { ADD_FAILURE() << reason; }

fs::path state_path(const fs::path& run, int64_t step) {
  return run / "checkpoints" / fmt::format("{:07}.state", step);
}

TEST(SaveState, ComesBackBitForBit) {
  const TemporaryFolder folder;
  const Trained saved(1);
  saved.save(folder / "run", 12);
  Trained loaded(2);
  ASSERT_FALSE(saved.equals(loaded));
  const auto state = load_newest_state(folder / "run", *loaded.store, kOptions, nothing_is_broken);
  ASSERT_TRUE(state);
  EXPECT_EQ(state->step, 12);
  EXPECT_EQ(state->updates, 10);
  EXPECT_EQ(state->skipped, 2);
  EXPECT_EQ(state->options, kOptions);
  EXPECT_TRUE(saved.equals(loaded));
}

TEST(SaveState, TheModelSeesTheLoadedWeights) {
  const TemporaryFolder folder;
  const Trained saved(1);
  saved.save(folder / "run", 12);
  Trained loaded(2);
  load_newest_state(folder / "run", *loaded.store, kOptions, nothing_is_broken);
  EXPECT_TRUE(at::equal(loaded.model->blocks[0]->qkv->weight, saved.model->blocks[0]->qkv->weight));
}

TEST(SaveState, TheCheckpointIsTheEmaAsAModel) {
  const TemporaryFolder folder;
  const Trained saved(1);
  saved.save(folder / "run", 12);
  const Checkpoint model = load_checkpoint(folder / "run/checkpoints/0000012.safetensors");
  EXPECT_EQ(model.config, saved.start.config);
  EXPECT_EQ(model.lambda, 0.5);
  const Weights wanted = saved.store->ema_weights();
  ASSERT_EQ(model.weights.size(), wanted.size());
  for (const auto& [name, weight] : wanted) EXPECT_TRUE(at::equal(model.weights.at(name), weight)) << name;
}

TEST(SaveState, LeavesNothingElseInTheFolder) {
  const TemporaryFolder folder;
  Trained(1).save(folder / "run", 12);
  const auto entries = fs::directory_iterator(folder / "run/checkpoints");
  EXPECT_EQ(std::distance(begin(entries), end(entries)), 2);
}

TEST(LoadNewestState, TakesTheNewest) {
  const TemporaryFolder folder;
  const Trained newest(3);
  Trained(1).save(folder / "run", 9);
  newest.save(folder / "run", 1000);
  Trained(2).save(folder / "run", 200);
  Trained loaded(4);
  EXPECT_EQ(load_newest_state(folder / "run", *loaded.store, kOptions, nothing_is_broken)->step, 1000);
  EXPECT_TRUE(loaded.equals(newest));
}

TEST(LoadNewestState, AnEmptyRunHasNone) {
  const TemporaryFolder folder;
  Trained loaded(1);
  EXPECT_FALSE(load_newest_state(folder / "nowhere", *loaded.store, kOptions, nothing_is_broken));
  fs::create_directories(folder / "run/checkpoints");
  EXPECT_FALSE(load_newest_state(folder / "run", *loaded.store, kOptions, nothing_is_broken));
}

// Damages the newer of two states with `damage`; the older must be loaded and one reason given.
void expect_the_one_before(const std::function<void(const fs::path& newest)>& damage,
                           const std::string& part) {
  const TemporaryFolder folder;
  const Trained older(1);
  older.save(folder / "run", 10);
  Trained(2).save(folder / "run", 20);
  damage(state_path(folder / "run", 20));
  Trained loaded(3);
  std::vector<std::string> reasons;
  const auto state = load_newest_state(folder / "run", *loaded.store, kOptions,
                                       [&](const std::string& reason) { reasons.push_back(reason); });
  ASSERT_TRUE(state);
  EXPECT_EQ(state->step, 10);
  EXPECT_TRUE(loaded.equals(older));
  ASSERT_EQ(reasons.size(), 1u);
  EXPECT_NE(reasons[0].find("0000020.state"), std::string::npos) << reasons[0];
  EXPECT_NE(reasons[0].find(part), std::string::npos) << reasons[0];
}

TEST(LoadNewestState, AStateCutInHalfIsPassedOverWithItsReason) {
  expect_the_one_before([](const fs::path& path) { fs::resize_file(path, fs::file_size(path) / 2); },
                        "damaged");
}

TEST(LoadNewestState, AnEmptyStateIsPassedOver) {
  expect_the_one_before([](const fs::path& path) { fs::resize_file(path, 0); }, "");
}

TEST(LoadNewestState, AFileThatIsNoStateIsPassedOver) {
  expect_the_one_before(
      [](const fs::path& path) {
        fs::copy_file(path.parent_path() / "0000020.safetensors", path, fs::copy_options::overwrite_existing);
      },
      "not a training state");
}

TEST(LoadNewestState, ABrokenOneAloneIsNone) {
  const TemporaryFolder folder;
  Trained(1).save(folder / "run", 10);
  fs::resize_file(state_path(folder / "run", 10), 100);
  Trained loaded(2);
  const Trained untouched(2);
  int reasons = 0;
  EXPECT_FALSE(
      load_newest_state(folder / "run", *loaded.store, kOptions, [&](const std::string&) { ++reasons; }));
  EXPECT_EQ(reasons, 1);
  EXPECT_TRUE(loaded.equals(untouched));
}

TEST(LoadNewestState, AnotherOptionIsNamedWithBothValues) {
  const TemporaryFolder folder;
  Trained(1).save(folder / "run", 10);
  Trained loaded(2);
  nlohmann::json other = kOptions;
  other["lambda"] = 0.7;
  const auto load = [&] { load_newest_state(folder / "run", *loaded.store, other, nothing_is_broken); };
  test::expect_error(load, "lambda = 0.5");
  test::expect_error(load, "0.7");
}

TEST(LoadNewestState, AnOptionThatWasNotSavedIsNamed) {
  const TemporaryFolder folder;
  Trained(1).save(folder / "run", 10);
  Trained loaded(2);
  nlohmann::json other = kOptions;
  other["accumulate"] = 2;
  test::expect_error([&] { load_newest_state(folder / "run", *loaded.store, other, nothing_is_broken); },
                     "accumulate");
}

// The steps whose state and model are still there.
std::vector<int64_t> rotated(std::vector<int64_t> steps, int keep_last, int64_t keep_every) {
  const TemporaryFolder folder;
  fs::create_directories(folder / "run/checkpoints");
  for (const int64_t step : steps) {
    std::ofstream(state_path(folder / "run", step)) << "x";
    std::ofstream(state_path(folder / "run", step).replace_extension(".safetensors")) << "x";
  }
  rotate_checkpoints(folder / "run", keep_last, keep_every);
  std::vector<int64_t> kept;
  for (const int64_t step : steps) {
    const bool state = fs::exists(state_path(folder / "run", step));
    EXPECT_EQ(fs::exists(state_path(folder / "run", step).replace_extension(".safetensors")), state) << step;
    if (state) kept.push_back(step);
  }
  return kept;
}

TEST(RotateCheckpoints, KeepsTheLastOnes) {
  EXPECT_EQ(rotated({5, 10, 99, 1000}, 2, 0), (std::vector<int64_t>{99, 1000}));
  EXPECT_EQ(rotated({5, 10}, 3, 0), (std::vector<int64_t>{5, 10}));
}

TEST(RotateCheckpoints, KeepsMultiplesForGood) {
  EXPECT_EQ(rotated({10, 20, 30, 40, 50, 60, 70}, 1, 30), (std::vector<int64_t>{30, 60, 70}));
}

}  // namespace
}  // namespace dydit
