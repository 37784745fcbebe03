// Engines of models with adapters: the CPU engine merges a LoRA, and refuses what it cannot merge.
#include <gtest/gtest.h>

#include "dydit/model/edit.h"
#include "dydit/model/macs.h"
#include "tests/support/engines.h"

namespace dydit {
namespace {

Checkpoint adapted(const AdapterConfig& adapter) {
  DiTConfig config = test::tiny_config();
  config.adapter = adapter;
  return test::random_checkpoint(config);
}

TEST(AdapterEngines, ComputeALoraAlikeInEveryMode) {
  const Checkpoint lora = adapted({AdapterKind::Lora, 6, 1, 0.75});
  for (const Mode mode : {Mode::Static, Mode::Dynamic}) {
    const test::EngineOf cpu(EngineKind::Cpu, lora, {}, mode),
        reference(EngineKind::Reference, lora, {}, mode);
    const test::Inputs inputs = test::random_inputs(lora.config, 2);
    for (int step = 0; step < 3; ++step)
      EXPECT_LT(test::relative_difference(cpu.forward(inputs, step).out, reference.forward(inputs, step).out),
                1e-4);
  }
}

TEST(AdapterEngines, TheCpuEngineOfALoraIsThatOfTheMergedModel) {
  const Checkpoint lora = adapted({AdapterKind::Lora, 6, 1, 0.75});
  const test::EngineOf cpu(EngineKind::Cpu, lora), merged(EngineKind::Cpu, merge_adapters(lora));
  const test::Inputs inputs = test::random_inputs(lora.config, 2);
  const test::Forward got = cpu.forward(inputs, 1), wanted = merged.forward(inputs, 1);
  EXPECT_TRUE(at::equal(got.out, wanted.out));
  EXPECT_EQ(got.work[0].required, wanted.work[0].required);
}

TEST(AdapterEngines, TheReferenceCountsTheSidePath) {
  const Checkpoint lora = adapted({AdapterKind::Lora, 6, 1, 0.75});
  const test::Inputs inputs = test::random_inputs(lora.config, 1);
  const auto work = [&](const Checkpoint& checkpoint) {
    return test::EngineOf(EngineKind::Reference, checkpoint, {}, Mode::Static).forward(inputs, 1).work[0];
  };
  const Work with = work(lora), without = work(merge_adapters(lora));
  const int64_t side = lora.config.depth * (adapter_attention_macs(lora.config, 4, lora.config.num_tokens()) +
                                            adapter_mlp_macs(lora.config, 4, 16));
  EXPECT_EQ(with.required - without.required, side);
  EXPECT_EQ(with.executed - without.executed, side);
}

TEST(AdapterEngines, TheCpuEngineRefusesTdLora) {
  try {
    make_engine(EngineKind::Cpu, adapted({AdapterKind::TdLora, 4, 3}), {});
    FAIL();
  } catch (const UsageError& error) {
    EXPECT_NE(std::string(error.what()).find("take --engine reference"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace dydit
