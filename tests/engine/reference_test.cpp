// The reference engine: rows that do not see each other, masks as published, honest counters.
#include <vector>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "dydit/engine/engine.h"
#include "dydit/model/macs.h"
#include "tests/support/engines.h"
#include "tests/support/golden.h"
#include "tests/support/random_model.h"

namespace dydit {
namespace {

using test::Forward;
using test::golden;
using test::golden_ints;
using test::Inputs;
using test::kTimesteps;
using test::odd_config;
using test::one_head_config;
using test::random_checkpoint;
using test::random_inputs;
using test::relative_difference;
using test::tiny_config;
using test::with_token_bias;

struct ReferenceOf : test::EngineOf {
  explicit ReferenceOf(const Checkpoint& checkpoint, const EngineOptions& options = {},
                       Mode mode = Mode::Dynamic, const std::vector<double>& timesteps = kTimesteps)
      : EngineOf(EngineKind::Reference, checkpoint, options, mode, timesteps) {}
};

class ReferenceEngineIn : public testing::TestWithParam<at::ScalarType> {};

TEST_P(ReferenceEngineIn, RowDependsNeitherOnBatchNorThreads) {
  constexpr int kRows = 5;
  for (const DiTConfig& config : {tiny_config(), odd_config(), one_head_config()}) {
    SCOPED_TRACE(model_name(config));
    const Checkpoint checkpoint = random_checkpoint(config);
    const Inputs inputs = random_inputs(config, kRows);
    const ReferenceOf alone(checkpoint, {.dtype = GetParam(), .threads = 1});
    std::vector<Forward> rows;
    for (int b = 0; b < kRows; ++b)
      rows.push_back(alone.forward(inputs.x.slice(0, b, b + 1), 1, {inputs.y[b]}));
    for (int threads = 1; threads <= 4; ++threads) {
      const ReferenceOf engine(checkpoint, {.dtype = GetParam(), .threads = threads});
      for (int B = 1; B <= kRows; ++B) {
        const Forward batch =
            engine.forward(inputs.x.slice(0, 0, B), 1, {inputs.y.begin(), inputs.y.begin() + B});
        for (int b = 0; b < B; ++b) {
          EXPECT_TRUE(at::equal(batch.out[b], rows[b].out[0])) << "row " << b << " of " << B;
          EXPECT_TRUE(at::equal(batch.trace.logits[b], rows[b].trace.logits[0]));
          EXPECT_EQ(batch.work[b].required, rows[b].work[0].required);
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, ReferenceEngineIn, testing::Values(at::kFloat, at::kBFloat16),
                         [](const auto& info) { return std::string(c10::toString(info.param)); });

TEST(ReferenceEngine, ReproducesThePublishedForwardAndItsTokenMasks) {
  const std::vector<double> t = [] {
    const at::Tensor values = golden("forward", "t").to(at::kInt);
    return std::vector<double>(values.data_ptr<int>(), values.data_ptr<int>() + values.numel());
  }();
  const ReferenceOf engine(load_checkpoint(test::golden_path("model.safetensors")), {}, Mode::Dynamic, t);
  const at::Tensor x = golden("forward", "x"), y = golden("forward", "y"), out = golden("forward", "out"),
                   tokens = golden("forward", "token_mask");
  for (int i = 0; i < 12; ++i) {
    const Forward got = engine.forward(x.slice(0, i, i + 1), i, {y[i].item<int64_t>()});
    EXPECT_LT(relative_difference(got.out[0], out[i]), 1e-5) << "row " << i;
    EXPECT_TRUE(at::equal(got.trace.masks[0], tokens[i])) << "row " << i;
  }
}

TEST(ReferenceEngine, EqualsTheModuleWithTheSameMasks) {
  at::NoGradGuard no_grad;
  const DiTConfig config = tiny_config();
  const Checkpoint checkpoint = random_checkpoint(config);
  const ReferenceOf engine(checkpoint);
  const Inputs inputs = random_inputs(config, 4);
  const Forward got = engine.forward(inputs.x, 2, inputs.y);
  Gates gates;
  for (const BlockWidth& width : engine.plan.steps[2].blocks) {
    for (auto [to, parts] :
         {std::pair{&gates.heads, &width.heads}, std::pair{&gates.groups, &width.groups}}) {
      const at::Tensor mask = at::tensor(std::vector<float>(parts->begin(), parts->end()));
      to->push_back(mask.expand({4, config.num_heads}).contiguous());
    }
  }
  gates.tokens = [&](int block, const at::Tensor&) { return got.trace.masks.select(1, block); };
  DiT model = make_model(checkpoint);
  const at::Tensor wanted =
      model->forward(inputs.x, model->embed_timestep(at::full({4}, kTimesteps[2])), inputs.labels(), gates);
  EXPECT_LT(relative_difference(got.out, wanted), 1e-5);
  EXPECT_GT(relative_difference(ReferenceOf(checkpoint, {}, Mode::Static).forward(inputs.x, 2, inputs.y).out,
                                wanted),
            1e-3);  // the masks matter
}

TEST(ReferenceEngine, TokenMasksAreTheLogitsAboveZero) {
  const Inputs inputs = random_inputs(tiny_config(), 4);
  const TokenTrace trace = ReferenceOf(random_checkpoint(tiny_config())).forward(inputs.x, 1, inputs.y).trace;
  EXPECT_TRUE(at::equal(trace.masks, (trace.logits > 0).to(at::kFloat)));
  const double share = trace.masks.mean().item<double>();
  EXPECT_GT(share, 0.1);  // both kinds occur
  EXPECT_LT(share, 0.9);
}

TEST(ReferenceEngine, RequiredWorkIsThePlansWithTheTokensOfTheTrace) {
  const Inputs inputs = random_inputs(tiny_config(), 4);
  const ReferenceOf engine(random_checkpoint(tiny_config()));
  for (int step = 0; step < 3; ++step) {
    const Forward got = engine.forward(inputs.x, step, inputs.y);
    for (int b = 0; b < 4; ++b) {
      std::vector<int> tokens;
      for (int l = 0; l < 2; ++l) tokens.push_back(got.trace.masks[b][l].sum().item<int>());
      EXPECT_EQ(got.work[b].required, required_macs(engine.plan.config, engine.plan.steps[step], tokens));
    }
  }
}

TEST(ReferenceEngine, ExecutesTheCompleteModelAndItsRouters) {
  const DiTConfig config = tiny_config();
  const Inputs inputs = random_inputs(config, 2);
  const Forward got = ReferenceOf(random_checkpoint(config)).forward(inputs.x, 0, inputs.y);
  EXPECT_EQ(got.work[1].executed, static_macs(config) + router_macs(config));
}

TEST(ReferenceEngine, InStaticModeExecutesNoRouters) {
  const DiTConfig config = tiny_config();
  const Inputs inputs = random_inputs(config, 1);
  const Forward got = ReferenceOf(random_checkpoint(config), {}, Mode::Static).forward(inputs.x, 0, inputs.y);
  EXPECT_EQ(got.work[0].executed, static_macs(config));
  EXPECT_EQ(got.work[0].required, static_macs(config));
}

TEST(ReferenceEngine, AddsToTheWorkItIsGiven) {
  const Inputs inputs = random_inputs(tiny_config(), 1);
  const ReferenceOf engine(random_checkpoint(tiny_config()));
  std::vector<Work> work(1);
  ForwardOutputs outputs{.work = work};
  engine.forward(inputs.x, 0, inputs.y, outputs);
  const Work once = work[0];
  engine.forward(inputs.x, 0, inputs.y, outputs);
  EXPECT_EQ(work[0].required, 2 * once.required);
  EXPECT_EQ(work[0].executed, 2 * once.executed);
}

TEST(ReferenceEngine, WithNoTokenOnSkipsTheMlpEntirely) {
  const DiTConfig config = tiny_config();
  const Inputs inputs = random_inputs(config, 2);
  Checkpoint checkpoint = with_token_bias(config, -1e6f);
  const ReferenceOf engine(checkpoint);
  const Forward got = engine.forward(inputs.x, 0, inputs.y);
  // No MLP at all: fc2 gives nothing, its bias included.
  for (int b = 0; b < config.depth; ++b) {
    for (const char* part : {"weight", "bias"})
      checkpoint.weights.at(fmt::format("blocks.{}.mlp.fc2.{}", b, part)).zero_();
  }
  EXPECT_TRUE(at::equal(got.out, ReferenceOf(checkpoint).forward(inputs.x, 0, inputs.y).out));
  EXPECT_EQ(got.work[0].required,
            required_macs(engine.plan.config, engine.plan.steps[0], std::vector<int>{0, 0}));
}

TEST(ReferenceEngine, WithAllTokensOnEqualsAModelWithoutTokenRouters) {
  DiTConfig config = tiny_config();
  const Inputs inputs = random_inputs(config, 2);
  Checkpoint routed = with_token_bias(config, 1e6f), unrouted = routed;
  unrouted.config.token_routers = false;
  std::erase_if(unrouted.weights,
                [](const auto& item) { return item.first.find("token_sel") != std::string::npos; });
  const Forward got = ReferenceOf(routed).forward(inputs.x, 0, inputs.y);
  EXPECT_TRUE(at::equal(got.out, ReferenceOf(unrouted).forward(inputs.x, 0, inputs.y).out));
  EXPECT_EQ(got.trace.masks.mean().item<float>(), 1.0f);
}

TEST(ReferenceEngine, WithoutTokenRoutersLeavesTheTraceEmpty) {
  DiTConfig config = tiny_config();
  config.token_routers = false;
  const Inputs inputs = random_inputs(config, 1);
  EXPECT_FALSE(ReferenceOf(random_checkpoint(config)).forward(inputs.x, 0, inputs.y).trace.masks.defined());
}

TEST(ReferenceEngine, NullClassIsALabelLikeAnother) {
  const DiTConfig config = tiny_config();
  const Inputs inputs = random_inputs(config, 1);
  const ReferenceOf engine(random_checkpoint(config));
  const at::Tensor null = engine.forward(inputs.x, 0, {config.null_class()}).out;
  EXPECT_GT(relative_difference(engine.forward(inputs.x, 0, {0}).out, null), 1e-3);
}

}  // namespace
}  // namespace dydit
