// A run may be cancelled at any moment: what it delivered is right, and the next run knows nothing of it.
// DYDIT_CANCELS says how often that is tried (40 times); recipes/sanitize.sh does so more often and under the
// thread sanitizer.
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "dydit/base/error.h"
#include "dydit/base/timer.h"
#include "dydit/pipeline/generate.h"
#include "tests/support/golden.h"

namespace dydit {
namespace {

constexpr int kImages = 4, kBatch = 2;

struct Case {
  EngineKind engine;
  at::ScalarType dtype;
};

std::string name_of(const Case& c) {
  return fmt::format("{}_{}", kEngineNames[c.engine], c.dtype == at::kFloat ? "f32" : "bf16");
}

struct Outcome {
  std::vector<GeneratedSample> samples;
  bool cancelled = false;
  double seconds = 0;
};

Outcome run(const Checkpoint& checkpoint, const Case& c, const CancelFlag* cancel = nullptr) {
  GenerateOptions options;
  options.classes = {3, 0, 4};
  options.num_images = kImages;
  options.batch = kBatch;
  options.num_steps = 4;
  options.seed = 17;
  options.threads = 3;
  options.engine = c.engine;
  options.dtype = c.dtype;
  Outcome outcome;
  GenerateCallbacks callbacks;
  callbacks.on_sample = [&](GeneratedSample&& sample) { outcome.samples.push_back(std::move(sample)); };
  callbacks.cancel = cancel;
  const Timer timer;
  try {
    generate(checkpoint, options, callbacks);
  } catch (const Cancelled&) {
    outcome.cancelled = true;
  }
  outcome.seconds = timer.seconds();
  return outcome;
}

// Whether `got` is the beginning of `wanted`, bit for bit.
void expect_beginning(const std::vector<GeneratedSample>& got, const std::vector<GeneratedSample>& wanted) {
  ASSERT_LE(got.size(), wanted.size());
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_EQ(got[i].index, static_cast<int>(i));
    EXPECT_EQ(got[i].label, wanted[i].label);
    EXPECT_EQ(got[i].work.required, wanted[i].work.required);
    EXPECT_EQ(got[i].work.executed, wanted[i].work.executed);
    ASSERT_EQ(got[i].sample.sizes(), wanted[i].sample.sizes());
    EXPECT_EQ(std::memcmp(got[i].sample.const_data_ptr(), wanted[i].sample.const_data_ptr(),
                          wanted[i].sample.nbytes()),
              0)
        << "sample " << i;
  }
}

class Cancel : public testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(Engines, Cancel,
                         testing::Values(Case{EngineKind::Cpu, at::kFloat},
                                         Case{EngineKind::Cpu, at::kBFloat16},
                                         Case{EngineKind::Reference, at::kFloat}),
                         [](const auto& info) { return name_of(info.param); });

TEST_P(Cancel, AtAnyMomentLeavesWholeBatchesAndNoTrace) {
  const char* given = std::getenv("DYDIT_CANCELS");
  const int cancels = given ? std::atoi(given) : 40;
  const Checkpoint checkpoint = load_checkpoint(test::golden_path("model.safetensors"));
  run(checkpoint, GetParam());  // the first is slower
  Outcome whole = run(checkpoint, GetParam());
  const std::vector<GeneratedSample> wanted = std::move(whole.samples);
  ASSERT_EQ(wanted.size(), static_cast<size_t>(kImages));

  std::mt19937 random(1);
  std::uniform_real_distribution<double> moment(-0.05, 1.15);  // in runs: also before and after it
  int before_any = 0, between = 0, too_late = 0;
  for (int i = 0; i < cancels; ++i) {
    const double when = i == 0 ? -1 : moment(random) * whole.seconds;
    CancelFlag cancel = when < 0;
    std::jthread other([&] {
      std::this_thread::sleep_for(std::chrono::duration<double>(std::max(0.0, when)));
      cancel = true;
    });
    const Outcome outcome = run(checkpoint, GetParam(), &cancel);
    other.join();
    expect_beginning(outcome.samples, wanted);
    if (outcome.cancelled) {
      EXPECT_LT(outcome.samples.size(), wanted.size());
      EXPECT_EQ(outcome.samples.size() % kBatch, 0u);
      ++(outcome.samples.empty() ? before_any : between);
    } else {
      EXPECT_EQ(outcome.samples.size(), wanted.size());
      ++too_late;
    }

    whole = run(checkpoint, GetParam());
    ASSERT_EQ(whole.samples.size(), wanted.size());
    expect_beginning(whole.samples, wanted);
    if (HasFailure()) return;
  }
  EXPECT_GT(before_any, 0);
  fmt::print("{}: {} cancels: {} before any sample, {} between batches, {} too late\n", name_of(GetParam()),
             cancels, before_any, between, too_late);
}

}  // namespace
}  // namespace dydit
