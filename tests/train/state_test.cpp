// A run on disk: what is saved comes back, what is broken is passed over, what is old goes.
#include "dydit/train/state.h"

#include <fstream>

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "dydit/io/safetensors.h"
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

// Turns one bit of the file, `offset` bytes after the first occurrence of `after` (or from the start).
void flip_bit(const fs::path& path, size_t offset, const std::string& after = "") {
  std::string bytes = test::contents(path);
  const size_t at = bytes.find(after) + after.size() + offset;
  ASSERT_LT(at, bytes.size());
  bytes[at] ^= 1;
  std::ofstream(path, std::ios::binary) << bytes;
}

TEST(LoadNewestState, ATurnedBitOfAnyTensorIsPassedOverAndNamed) {
  for (const std::string name : {"values", "exp_avg", "exp_avg_sq", "ema"}) {
    expect_the_one_before(
        [&](const fs::path& path) {
          size_t offset = 0;
          {
            const SafetensorsFile file = read_safetensors(path);
            offset = static_cast<size_t>(file.tensors.at(name).data - file.file->bytes().data());
          }
          flip_bit(path, offset);
        },
        fmt::format("tensor '{}' has changed since it was saved", name));
  }
}

TEST(LoadNewestState, ATurnedBitOfTheMetadataIsPassedOver) {
  // "lambda": 0.5 becomes 0.4, which would be an option that differs.
  expect_the_one_before([](const fs::path& path) { flip_bit(path, 2, "lambda\\\":"); },
                        "metadata has changed since it was saved");
}

TEST(LoadNewestState, AStateUnderAnotherNumberIsPassedOver) {
  expect_the_one_before(
      [](const fs::path& path) {
        fs::copy_file(state_path(path.parent_path().parent_path(), 10), path,
                      fs::copy_options::overwrite_existing);
      },
      "holds the state of step 10");
}

// Files that are whole as safetensors and no states, each by its own line.
TEST(LoadNewestState, WhatIsNoStateIsNamed) {
  using Metadata = std::map<std::string, std::string>;
  const auto passed_over = [](const std::function<void(Metadata&, TensorViews&)>& change,
                              const std::string& reason) {
    expect_the_one_before(
        [&](const fs::path& path) {
          const SafetensorsFile file = read_safetensors(path);
          Metadata metadata = file.metadata;
          TensorViews tensors = file.tensors;
          metadata.erase("digests");  // else they would be the reason
          change(metadata, tensors);
          write_safetensors(path, tensors, metadata);
        },
        reason);
  };
  passed_over([](Metadata& m, TensorViews&) { m.erase("options"); }, "metadata 'options' is missing");
  passed_over([](Metadata& m, TensorViews&) { m["options"] = "[[["; },
              "metadata 'options' is no JSON object");
  passed_over([](Metadata& m, TensorViews&) { m["counters"] = "[1]"; },
              "metadata 'counters' is no JSON object");
  passed_over([](Metadata& m, TensorViews&) { m["counters"] = std::string(100000, '['); },
              "is no JSON object");
  passed_over([](Metadata& m, TensorViews&) { m["counters"] = R"({"step": 20, "updates": "x"})"; },
              "counter 'updates' is missing");
  passed_over([](Metadata&, TensorViews& t) { t.erase("ema"); }, "tensor 'ema' does not hold");
  passed_over([](Metadata&, TensorViews& t) { t["exp_avg"].dtype = Dtype::I32; },
              "tensor 'exp_avg' does not hold");
  passed_over(
      [](Metadata&, TensorViews& t) {
        TensorView& values = t["values"];
        values.shape = {values.numel() - 1};
      },
      "tensor 'values' does not hold");
}

// Loads the one state of a run after `damage` to the model beside it: it must be taken all the same, and the
// line that tells of it returned.
std::string told_of_the_model(const std::function<void(const fs::path& model)>& damage) {
  const TemporaryFolder folder;
  const Trained saved(1);
  saved.save(folder / "run", 10);
  damage(model_path(folder / "run", 10));
  Trained loaded(2);
  std::vector<std::string> lines;
  const auto state = load_newest_state(folder / "run", *loaded.store, kOptions,
                                       [&](const std::string& line) { lines.push_back(line); });
  EXPECT_TRUE(state && !state->model_is_whole && loaded.equals(saved));
  EXPECT_EQ(lines.size(), 1u);
  return lines.empty() ? "" : lines[0];
}

TEST(LoadNewestState, AModelThatIsNotTheStatesOwnIsToldAndTheStateTaken) {
  const auto expect_part = [](const std::string& line, const std::string& part) {
    EXPECT_NE(line.find("0000010.safetensors"), std::string::npos) << line;
    EXPECT_NE(line.find(part), std::string::npos) << line;
  };
  expect_part(told_of_the_model([](const fs::path& path) { flip_bit(path, fs::file_size(path) - 1); }),
              "not the model that was saved");
  expect_part(told_of_the_model([](const fs::path& path) { fs::resize_file(path, 0); }), "empty");
  expect_part(told_of_the_model([](const fs::path& path) { fs::remove(path); }), "is missing");
  expect_part(told_of_the_model([](const fs::path& path) {
                Trained(5).save(path.parent_path().parent_path() / "other", 10);
                fs::rename(model_path(path.parent_path().parent_path() / "other", 10), path);
              }),
              "not the model that was saved");
}

// A state as version 0.1.0 wrote it.
void remove_digests(const fs::path& path) {
  const SafetensorsFile file = read_safetensors(path);
  std::map<std::string, std::string> metadata = file.metadata;
  metadata.erase("digests");
  metadata.erase("surroundings");
  write_safetensors(path, file.tensors, metadata);
}

TEST(LoadNewestState, AStateOfAnOlderVersionIsTakenAndTold) {
  const TemporaryFolder folder;
  const Trained saved(1);
  saved.save(folder / "run", 10);
  remove_digests(state_path(folder / "run", 10));
  Trained loaded(2);
  nlohmann::json options = kOptions;
  for (const char* key :
       {"class-names", "data-classes", "data-images-digest", "importance", "router-bias", "start"})
    options[key] = "x";
  std::vector<std::string> lines;
  const auto state = load_newest_state(folder / "run", *loaded.store, options,
                                       [&](const std::string& line) { lines.push_back(line); });
  ASSERT_TRUE(state);
  EXPECT_TRUE(loaded.equals(saved));
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_NE(lines[0].find("without checksums"), std::string::npos) << lines[0];
  EXPECT_EQ(why_not_resumed(folder / "run", options), std::nullopt);
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

// What a run of `saved` says when it is continued with `wanted` under the option "option".
std::string refusal(const nlohmann::json& saved, const nlohmann::json& wanted) {
  const TemporaryFolder folder;
  Trained trained(1);
  Checkpoint ema = trained.start;
  ema.weights = trained.store->ema_weights();
  save_state(folder / "run", {.step = 3, .options = {{"option", saved}}}, *trained.store, ema);
  const nlohmann::json options = {{"option", wanted}};
  const std::string message =
      test::error_of([&] { load_newest_state(folder / "run", *trained.store, options, nothing_is_broken); });
  EXPECT_EQ(why_not_resumed(folder / "run", options), message);
  return message.substr(message.find("was saved"));
}

TEST(LoadNewestState, OfListsAndObjectsTheFirstPartThatDiffersIsNamed) {
  EXPECT_EQ(
      refusal({"cat", "dog"}, {"cat", "cow"}),
      "was saved with option[1] = \"dog\", this run has \"cow\"; resume with the same, or start a new run");
  EXPECT_NE(refusal({"cat"}, {"cat", "cow"}).find("option = [\"cat\"], this run has [\"cat\",\"cow\"]"),
            std::string::npos);
  EXPECT_NE(refusal({{"a", 1}, {"b", 2}}, {{"a", 1}, {"b", 3}}).find("option.b = 2, this run has 3"),
            std::string::npos);
  EXPECT_NE(refusal("name\n\x1b[31m", "b").find("this run has"), std::string::npos);
  EXPECT_EQ(refusal("name\n\x1b[31m", "b").find('\x1b'), std::string::npos);
}

// What is written replaces bytes that are no UTF-8; the run that wrote them must still be continued.
TEST(LoadNewestState, NamesThatAreNoUtf8AgreeWithThemselves) {
  const TemporaryFolder folder;
  Trained trained(1);
  Checkpoint ema = trained.start;
  ema.weights = trained.store->ema_weights();
  const nlohmann::json options = {{"data-classes", {"caf\xe9", "tea"}}};
  save_state(folder / "run", {.step = 3, .options = options}, *trained.store, ema);
  EXPECT_TRUE(load_newest_state(folder / "run", *trained.store, options, nothing_is_broken));
}

TEST(WhyNotResumed, SaysNothingOfARunThatFitsAndNamesWhatDoesNot) {
  const TemporaryFolder folder;
  EXPECT_NE(why_not_resumed(folder / "run", kOptions)->find("no whole checkpoint"), std::string::npos);
  Trained(1).save(folder / "run", 10);
  EXPECT_EQ(why_not_resumed(folder / "run", kOptions), std::nullopt);
  Trained(1).save(folder / "run", 20);
  fs::resize_file(state_path(folder / "run", 20), 50);  // the one before decides
  EXPECT_EQ(why_not_resumed(folder / "run", kOptions), std::nullopt);
  nlohmann::json other = kOptions;
  other["gates"] = "soft";
  EXPECT_NE(why_not_resumed(folder / "run", other)->find("gates = \"hard\""), std::string::npos);
}

TEST(DifferingSurroundings, NamesWhatBothKnowAndHaveOtherwise) {
  const nlohmann::json saved = {{"threads", 2}, {"dydit", "0.1.0"}, {"device", "cpu"}};
  EXPECT_EQ(differing_surroundings(saved, saved), "");
  EXPECT_EQ(
      differing_surroundings(saved, {{"threads", 4}, {"dydit", "0.2.0"}, {"device", "cpu"}, {"new", 1}}),
      "dydit = 0.1.0 (now 0.2.0), threads = 2 (now 4)");
}

// The steps whose state and model are still there.
std::vector<int64_t> rotated(std::vector<int64_t> steps, int keep_last, int64_t keep_every,
                             int64_t newest = 1000) {
  const TemporaryFolder folder;
  fs::create_directories(folder / "run/checkpoints");
  for (const int64_t step : steps) {
    std::ofstream(state_path(folder / "run", step)) << "x";
    std::ofstream(state_path(folder / "run", step).replace_extension(".safetensors")) << "x";
  }
  rotate_checkpoints(folder / "run", newest, keep_last, keep_every);
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

// 60 and 70 were broken, so the run went on from 30 and has now saved 40.
TEST(RotateCheckpoints, WhatAResumedRunPassedOverTakesNoPlace) {
  EXPECT_EQ(rotated({20, 30, 40, 60, 70}, 1, 0, 40), (std::vector<int64_t>{40, 60, 70}));
}

TEST(RotateCheckpoints, KeepsMultiplesForGood) {
  EXPECT_EQ(rotated({10, 20, 30, 40, 50, 60, 70}, 1, 30), (std::vector<int64_t>{30, 60, 70}));
}

}  // namespace
}  // namespace dydit
