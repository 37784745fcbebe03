// Generating again and again keeps no memory. DYDIT_GENERATIONS says how often that is tried (60 times);
// recipes/sanitize.sh does so more often. What is in use is counted to the block: glibc's own numbers take in
// what it keeps ready for each thread.
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <malloc.h>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "dydit/pipeline/generate.h"
#include "tests/support/golden.h"
#include "tests/support/malloc_hooks.h"

namespace {

std::atomic<int64_t> live_blocks = 0, live_bytes = 0;

}  // namespace

bool memory_asked(size_t) { return true; }
void memory_given(void* block) {
  ++live_blocks;
  live_bytes += malloc_usable_size(block);
}
void memory_returned(void* block) {
  --live_blocks;
  live_bytes -= malloc_usable_size(block);
}

namespace dydit {
namespace {

constexpr int kWarmUp = 10;
// LibTorch's MKL keeps an entry for every thread that ever multiplied, and each generation starts some: now
// and then a table of twice the size joins those it has.
constexpr int64_t kTables = 8, kTableBytes = 512;  // in all; of each generation

int generations() {
  const char* given = std::getenv("DYDIT_GENERATIONS");
  return std::max(2 * kWarmUp, given ? std::atoi(given) : 60);
}

struct Growth {
  int64_t blocks, bytes;
};

// What is in use after all rounds and was not after the warm-up.
Growth growth(const std::string& what, const std::function<void()>& round) {
  for (int i = 0; i < kWarmUp; ++i) round();
  const int64_t blocks = live_blocks, bytes = live_bytes;
  for (int i = kWarmUp; i < generations(); ++i) round();
  const Growth growth = {live_blocks - blocks, live_bytes - bytes};
  fmt::print("{}: {} generations: {} blocks and {} bytes more\n", what, generations(), growth.blocks,
             growth.bytes);
  return growth;
}

void expect_no_growth(const std::string& what, const std::function<void()>& round) {
  const Growth grown = growth(what, round);
  EXPECT_LE(grown.blocks, kTables) << what;
  EXPECT_LE(grown.bytes, kTableBytes * generations()) << what;
}

void generate_some(const Checkpoint& checkpoint, EngineKind engine, at::ScalarType dtype) {
  GenerateOptions options;
  options.num_images = 3;
  options.batch = 2;
  options.num_steps = 3;
  options.threads = 2;
  options.engine = engine;
  options.dtype = dtype;
  GenerateCallbacks callbacks;
  callbacks.on_sample = [](GeneratedSample&&) {};
  generate(checkpoint, options, callbacks);
}

// In how many pieces the file is mapped.
int mappings_of(const std::filesystem::path& file) {
  std::ifstream maps("/proc/self/maps");
  int found = 0;
  for (std::string line; std::getline(maps, line);) found += line.ends_with(file.string());
  return found;
}

std::filesystem::path model() { return std::filesystem::canonical(test::golden_path("model.safetensors")); }

TEST(Heap, DoesNotGrowWithGenerations) {
  const Checkpoint checkpoint = load_checkpoint(model());
  expect_no_growth("cpu f32", [&] { generate_some(checkpoint, EngineKind::Cpu, at::kFloat); });
  expect_no_growth("cpu bf16", [&] { generate_some(checkpoint, EngineKind::Cpu, at::kBFloat16); });
  expect_no_growth("reference f32", [&] { generate_some(checkpoint, EngineKind::Reference, at::kFloat); });
}

TEST(Heap, DoesNotGrowWhenEachGenerationLoadsItsModel) {
  int mapped = 0;
  expect_no_growth("load, cpu f32", [&] {
    const Checkpoint checkpoint = load_checkpoint(model());
    mapped = mappings_of(model());
    generate_some(checkpoint, EngineKind::Cpu, at::kFloat);
  });
  EXPECT_GT(mapped, 0);
  EXPECT_EQ(mappings_of(model()), 0);
}

TEST(Heap, WouldBeSeenToGrowByABlockAGeneration) {
  const Checkpoint checkpoint = load_checkpoint(model());
  std::vector<std::unique_ptr<char>> kept;
  const Growth grown = growth("a byte kept", [&] {
    generate_some(checkpoint, EngineKind::Cpu, at::kFloat);
    kept.push_back(std::make_unique<char>());
  });
  EXPECT_GT(grown.blocks, kTables);
}

}  // namespace
}  // namespace dydit
