// Once the CPU engine has warmed up, a forward asks for no large memory but that of its result, and a
// sampling run for none at all. Counted are malloc and its kin, for which alone glibc enlarges the heap by
// brk or mmap, and our own calls of mmap.
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>
#include <numeric>
#include <optional>
#include <unistd.h>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "dydit/pipeline/generate.h"
#include "tests/support/engines.h"
#include "tests/support/malloc_hooks.h"
#include "tests/support/random_plan.h"

namespace {

constexpr size_t kLarge = size_t{64} << 10;
std::atomic<bool> counting = false;
std::atomic<int> large = 0;
std::atomic<size_t> largest = 0;
std::atomic<int64_t> until_refused = -1;  // blocks that are given before one is refused; below 0: all are

}  // namespace

bool memory_asked(size_t bytes) {
  if (counting && bytes >= kLarge) ++large;
  if (counting && bytes > largest) largest = bytes;
  return until_refused < 0 || until_refused-- != 0;
}
void memory_given(void*) {}
void memory_returned(void*) {}

extern "C" {
void* mmap(void* address, size_t bytes, int protection, int flags, int file, off_t offset) {
  if (counting && bytes >= kLarge) ++large;
  return reinterpret_cast<void*>(syscall(SYS_mmap, address, bytes, protection, flags, file, offset));
}
}

namespace dydit {
namespace {

// 256 tokens of 128 channels: one row of a batch has 128 KiB of residual stream, and its result 8 KiB.
DiTConfig wide_config() {
  DiTConfig config = test::tiny_config();
  config.input_size = 32;
  config.in_channels = 1;
  config.hidden_size = 128;
  config.mlp_hidden = 512;
  return config;
}

// Widths rise and fall again, so that the largest step comes after the first two.
Checkpoint with_counts() {
  Checkpoint checkpoint = test::random_checkpoint(wide_config());
  checkpoint.keep_counts = KeepCounts{.heads = {{3, 4, 2, 1}, {1, 4, 1, 2}},
                                      .groups = {{2, 4, 1, 1}, {1, 4, 2, 2}},
                                      .tokens = {{9, 256, 20, 10}, {1, 256, 10, 90}}};
  return checkpoint;
}

struct Counted {
  int first_step = 0, results = 0, others = 0;  // large allocations; those from the third step on
};

// Large allocations of a run of five samples (a result of 40 KiB) or ten (80 KiB).
Counted count_large(const Checkpoint& checkpoint, at::ScalarType dtype, int rows) {
  const std::vector<double> timesteps = {30, 60, 90, 300, 350, 600, 700, 800, 999};
  const test::EngineOf engine(EngineKind::Cpu, checkpoint, {.dtype = dtype, .threads = 2}, Mode::Dynamic,
                              timesteps);
  const test::Inputs inputs = test::random_inputs(checkpoint.config, rows);
  std::vector<Work> work(rows);
  Counted counted;
  const int steps = static_cast<int>(timesteps.size());
  for (int done = 0; done < steps; ++done) {
    const int step = steps - 1 - done;  // the order of sampling
    large = 0;
    counting = true;
    ForwardOutputs outputs{.work = work};
    engine.forward(inputs.x, step, inputs.y, outputs);
    counting = false;
    const bool large_result = outputs.out.nbytes() >= kLarge;
    if (done == 0) counted.first_step = large;
    if (done >= 2) {
      counted.results += large_result;
      counted.others += large - large_result;
    }
  }
  return counted;
}

class CpuEngineMemory : public testing::TestWithParam<at::ScalarType> {};
INSTANTIATE_TEST_SUITE_P(Dtypes, CpuEngineMemory, testing::Values(at::kFloat, at::kBFloat16),
                         [](const auto& info) { return std::string(c10::toString(info.param)); });

TEST_P(CpuEngineMemory, IsAskedForInTheFirstStepsOnly) {
  const Counted counted = count_large(with_counts(), GetParam(), 5);
  EXPECT_GT(counted.first_step, 3);  // the counters work
  EXPECT_EQ(counted.others, 0);
}

TEST_P(CpuEngineMemory, OfALargeResultIsAllThatAStepAsksFor) {
  const Counted counted = count_large(with_counts(), GetParam(), 10);
  EXPECT_EQ(counted.results, 7);
  EXPECT_EQ(counted.others, 0);
}

TEST_P(CpuEngineMemory, IsAskedForInTheFirstStepsOnlyByTheThresholdRule) {
  EXPECT_EQ(count_large(test::random_checkpoint(wide_config()), GetParam(), 5).others, 0);
}

// Nine steps that keep and forecast branches, and keep and skip ranges.
PlanSpec cached_steps(const DiTConfig& config) {
  PlanSpec spec = full_spec(config, test::spread_timesteps(9));
  for (const int step : {1, 3, 6}) {
    std::fill(spec.steps[step].attn.begin(), spec.steps[step].attn.end(), 1);
    std::fill(spec.steps[step].mlp.begin(), spec.steps[step].mlp.end(), 1);
  }
  spec.steps[4].mlp[0] = 0;
  for (const int step : {0, 5}) {
    spec.steps[step].ranges = {{0, 2, 1}};
    spec.steps[step].attn = spec.steps[step].mlp = {kSkipped, kSkipped};
  }
  check_spec(spec, config, false, "cached");
  return spec;
}

TEST_P(CpuEngineMemory, OfCachedStepsIsAskedForInTheFirstTwoStepsOnly) {
  for (const Checkpoint& checkpoint : {with_counts(), test::random_checkpoint(wide_config())}) {
    const RunPlan plan =
        test::plan_of_spec(checkpoint, cached_steps(checkpoint.config), Mode::Dynamic, /*guided=*/false);
    test::Walk walk(EngineKind::Cpu, checkpoint, plan, {.dtype = GetParam(), .threads = 2});
    std::vector<at::Tensor> x;
    for (const test::Walker& walker : walk.walkers) x.push_back(walker.x());
    const at::Tensor inputs = at::stack(x);
    std::vector<Work> work(x.size());
    for (int step = 8; step >= 0; --step) {
      std::vector<Row> rows;
      for (test::Walker& walker : walk.walkers) rows.push_back({&walk.plan.steps[step], 1, &walker.history});
      ForwardOutputs outputs{.work = work};
      large = 0;
      counting = true;
      walk.engine->forward(inputs, rows, *walk.workspace, outputs);
      counting = false;
      if (step == 8) {
        EXPECT_GT(large, 3);
      }
      if (step < 7) {
        EXPECT_EQ(large, 0) << "step " << step;
      }
    }
  }
}

// Of a guided run of ten images: rows of 20, whose tensors have 80 and 160 KiB.
int count_large_of_a_run(const Checkpoint& checkpoint, SamplerKind sampler, at::ScalarType dtype,
                         const std::optional<PlanSpec>& plan = {}) {
  GenerateOptions options;
  options.num_images = 10;
  options.num_steps = 12;
  options.plan = plan;
  const int steps = options.total_steps();
  options.sampler.kind = sampler;
  options.threads = 2;
  options.dtype = dtype;
  int counted = -1;
  generate(checkpoint, options,
           {.on_sample = [](GeneratedSample&&) {},
            .on_progress =
                [&](const Progress& progress) {
                  counting = false;
                  if (progress.done == 2) large = 0;
                  if (progress.done == steps) counted = large;
                  counting = progress.done >= 2 && progress.done < steps;
                }});
  return counted;
}

TEST_P(CpuEngineMemory, AWholeRunAsksForInItsFirstTwoStepsOnly) {
  for (const Checkpoint& checkpoint : {with_counts(), test::random_checkpoint(wide_config())}) {
    EXPECT_EQ(count_large_of_a_run(checkpoint, SamplerKind::Ddpm, GetParam()), 0);
    EXPECT_EQ(count_large_of_a_run(checkpoint, SamplerKind::Ddim, GetParam()), 0);
    EXPECT_EQ(
        count_large_of_a_run(checkpoint, SamplerKind::Ddim, GetParam(), cached_steps(checkpoint.config)), 0);
  }
}

// adaLN of all steps and labels would take 262 MB here.
TEST(CpuEngine, ComputesAdaLNOfNoMoreStepsAheadThanFit64MB) {
  DiTConfig config = test::static_config();
  config.hidden_size = 256;
  config.depth = 1;
  config.mlp_hidden = 256;
  config.num_classes = 40;
  std::vector<double> timesteps(1000);
  std::iota(timesteps.begin(), timesteps.end(), 0);
  const test::EngineOf engine(EngineKind::Cpu, test::random_checkpoint(config), {.threads = 2}, Mode::Static,
                              timesteps);
  test::Inputs inputs = test::random_inputs(config, 32);
  std::iota(inputs.y.begin(), inputs.y.end(), 0);
  std::vector<Work> work(32);
  largest = 0;
  counting = true;
  ForwardOutputs outputs{.work = work};
  engine.forward(inputs.x, 999, inputs.y, outputs);
  counting = false;
  EXPECT_GT(largest, size_t{60} << 20);
  EXPECT_LE(largest, size_t{66} << 20);  // whole large pages
}

// Memory that runs out at any moment of a forward is an exception, on whichever thread, and the next forward
// is as if nothing had been.
TEST(CpuEngine, SurvivesThatMemoryRunsOutAtAnyMoment) {
  for (const auto& [rows, warm] : {std::pair{1, false}, {5, false}, {5, true}}) {
    const Checkpoint checkpoint = test::random_checkpoint(test::tiny_config());
    const test::Inputs inputs = test::random_inputs(checkpoint.config, rows);
    const at::Tensor wanted =
        test::EngineOf(EngineKind::Cpu, checkpoint, {.threads = 2}).forward(inputs, 1).out;
    int refused = 0;
    for (bool whole = false; !whole; ++refused) {
      const test::EngineOf engine(EngineKind::Cpu, checkpoint, {.threads = 2});  // its buffers are empty
      if (warm)
        engine.forward(test::rows_of(inputs, 0, 1), 1);  // its adaLN must not pass for that of all rows
      std::vector<Work> work(rows);
      const std::vector<Row> described = engine.rows(1, inputs.y);
      ForwardOutputs outputs{.work = work};
      until_refused = refused;
      try {
        engine.engine->forward(inputs.x, described, *engine.workspace, outputs);
        whole = until_refused >= 0;
      } catch (const std::bad_alloc&) {
      } catch (const c10::Error&) {  // ATen's way to say it
      }
      until_refused = -1;
      ASSERT_TRUE(at::equal(engine.forward(inputs, 1).out, wanted)) << "after block " << refused;
    }
    EXPECT_GT(refused, 20) << rows << " rows";
  }
}

// Likewise of a step that keeps, forecasts and skips: what its row had kept is there for the next try.
TEST(CpuEngine, SurvivesThatMemoryRunsOutInACachedStep) {
  const Checkpoint checkpoint = test::random_checkpoint(test::tiny_config());
  PlanSpec spec = full_spec(checkpoint.config, std::vector<double>{100, 400, 900});
  spec.steps[1].attn = {0, kSkipped};
  spec.steps[1].mlp = {kCompute, kSkipped};
  spec.steps[1].ranges = {{1, 2, 0}};
  spec.steps[0].mlp = {0, kSkipped};
  spec.steps[0].attn = {kCompute, kSkipped};
  spec.steps[0].ranges = {{1, 2, 0}};
  const RunPlan plan = test::plan_of_spec(checkpoint, spec, Mode::Dynamic, /*guided=*/false);
  test::Walk good(EngineKind::Cpu, checkpoint, plan, {.threads = 2});
  good.forward();
  const test::Forward second = good.forward(), last = good.forward();
  int refused = 0;
  for (bool whole = false; !whole; ++refused) {
    test::Walk walk(EngineKind::Cpu, checkpoint, plan, {.threads = 2});
    walk.forward();
    walk.workspace = walk.engine->make_workspace({.threads = 2});  // its buffers are empty
    std::vector<at::Tensor> x;
    std::vector<Row> rows;
    for (test::Walker& walker : walk.walkers) {
      x.push_back(walker.x());
      rows.push_back(walker.row());
    }
    const at::Tensor inputs = at::stack(x);
    std::vector<Work> work(x.size());
    ForwardOutputs outputs{.work = work};
    until_refused = refused;
    try {
      walk.engine->forward(inputs, rows, *walk.workspace, outputs);
      whole = until_refused >= 0;
    } catch (const std::bad_alloc&) {
    } catch (const c10::Error&) {  // ATen's way to say it
    }
    until_refused = -1;
    ASSERT_TRUE(at::equal(walk.forward().out, second.out)) << "after block " << refused;
    ASSERT_TRUE(at::equal(walk.forward().out, last.out)) << "after block " << refused;
  }
  EXPECT_GT(refused, 20);
}

}  // namespace
}  // namespace dydit
