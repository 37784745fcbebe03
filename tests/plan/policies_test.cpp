// Who fills in a plan: the published schedules, L2C's files, and when guidance is paid for.
#include "dydit/plan/policies.h"

#include <algorithm>
#include <bit>
#include <cctype>
#include <fstream>
#include <numeric>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "tests/support/files.h"
#include "tests/support/pickle_builder.h"
#include "tests/support/random_model.h"
#include "tests/support/shared.h"
#include "tests/support/step_plans.h"

namespace dydit {
namespace {

namespace fs = std::filesystem;
namespace pickle = test::pickle;
using test::expect_error;
using test::recorded_plan_config;
using test::TemporaryFolder;
using test::tiny_config;
using Indices = std::vector<int>;

constexpr Action kC = kCompute, kX = kSkipped;

std::vector<double> timesteps_of(int S) {
  std::vector<double> timesteps(S);
  std::iota(timesteps.begin(), timesteps.end(), 0);
  return timesteps;
}

// Checked for a run with guidance and for one without.
PlanSpec plan_of(const std::string& policy, int S, const DiTConfig& config = tiny_config(),
                 const GuideOptions& guide = {}) {
  PlanSpec spec = policy_plan(policy, config, timesteps_of(S));
  apply_guide(guide, tiny_config(), 4, spec);
  for (const bool guided : {false, true}) check_spec(spec, config, guided, policy);
  return spec;
}

// Indices of the steps that compute everything, as they are taken.
Indices full_steps(const PlanSpec& spec) {
  Indices indices;
  for (int s = static_cast<int>(spec.steps.size()) - 1; s >= 0; --s) {
    if (spec.steps[s].computes_all()) indices.push_back(s);
  }
  return indices;
}

size_t full_count(const std::string& policy, int S = 50) { return full_steps(plan_of(policy, S)).size(); }

TEST(Policies, ForaComputesTheFirstStepAndEveryNth) {
  EXPECT_EQ(full_steps(plan_of("fora:3", 12)), (Indices{11, 9, 6, 3, 0}));
  EXPECT_EQ(full_count("fora:2"), 26u);
  EXPECT_EQ(full_count("fora:3"), 18u);
  EXPECT_EQ(full_count("fora:4"), 14u);
  EXPECT_EQ(full_count("fora:5"), 11u);
  const PlanSpec spec = plan_of("fora:3", 12);
  EXPECT_EQ(spec.name, "fora:3");
  EXPECT_EQ(spec.steps[10], (StepSpec{.timestep = 10, .attn = {0, 0}, .mlp = {0, 0}}));
}

TEST(Policies, TaylorCountsFromTheSecondStep) {
  EXPECT_EQ(full_steps(plan_of("taylor:3,1", 12)), (Indices{11, 10, 7, 4, 1}));
  EXPECT_EQ(full_count("taylor:2,1"), 26u);
  EXPECT_EQ(full_count("taylor:3,1"), 18u);
  EXPECT_EQ(full_count("taylor:4,1"), 14u);
  EXPECT_EQ(full_count("taylor:5,1"), 11u);
  EXPECT_EQ(full_count("taylor:6,1"), 10u);
  const PlanSpec spec = plan_of("taylor:3,4", 12);
  EXPECT_EQ(spec.forecast, Forecast{ForecastKind::Taylor});
  EXPECT_EQ(spec.steps[9], (StepSpec{.timestep = 9, .attn = {4, 4}, .mlp = {4, 4}}));
}

TEST(Policies, LagrangeAndChebyshevTakeTaylorsStepsWithOtherWeights) {
  const PlanSpec taylor = plan_of("taylor:4,2", 50);
  for (const char* kind : {"lagrange", "chebyshev"}) {
    const PlanSpec spec = plan_of(std::string(kind) + ":4,2", 50);
    EXPECT_EQ(spec.steps, taylor.steps);
    EXPECT_EQ(spec.forecast, parse_forecast(kind));
  }
}

TEST(Policies, StackSkipsAllBlocksAsOneRange) {
  const PlanSpec spec = plan_of("stack:3,2", 12);
  EXPECT_EQ(full_steps(spec), full_steps(plan_of("taylor:3,2", 12)));
  EXPECT_EQ(spec.forecast, Forecast{ForecastKind::Lagrange});
  EXPECT_EQ(spec.steps[9],
            (StepSpec{.timestep = 9, .attn = {kX, kX}, .mlp = {kX, kX}, .ranges = {{0, 2, 2}}}));
}

TEST(Policies, DeltaSkipsTheLastBlocksAndThenTheFirst) {
  DiTConfig config = tiny_config();
  config.depth = 3;
  const PlanSpec spec = plan_of("delta:2", 8, config);
  EXPECT_EQ(full_steps(spec), (Indices{7, 6, 4, 2, 0}));
  EXPECT_EQ(spec.steps[5].ranges, (std::vector<RangeSkip>{{1, 3, 0}}));
  EXPECT_EQ(spec.steps[5].attn, (std::vector<Action>{kC, kX, kX}));
  EXPECT_EQ(spec.steps[3].ranges, (std::vector<RangeSkip>{{0, 2, 0}}));
  EXPECT_EQ(spec.steps[3].mlp, (std::vector<Action>{kX, kX, kC}));
  const PlanSpec early = plan_of("delta:2,6,1", 8, config);
  EXPECT_EQ(early.steps[5].ranges, (std::vector<RangeSkip>{{0, 1, 0}}));
}

TEST(Policies, NoneComputesEverything) {
  EXPECT_EQ(plan_of("none", 5).steps, full_spec(tiny_config(), timesteps_of(5)).steps);
}

TEST(Policies, SpellingThatCannotBeMeantIsRefused) {
  const auto refused = [](const std::string& policy, const std::string& message, int S = 10) {
    SCOPED_TRACE(policy);
    EXPECT_THROW(policy_plan(policy, tiny_config(), timesteps_of(S)), UsageError);
    expect_error([&] { policy_plan(policy, tiny_config(), timesteps_of(S)); }, message);
  };
  for (const char* policy : {"", "fore:3", "FORA:3", "fora3", ":3", "tay\nlor:3,1"})
    refused(policy, "is unknown; choose from none, fora:N");
  refused("fora", "policy \"fora\" has 0 arguments; choose from none, fora:N");
  refused("fora:3,1", "has 2 arguments");
  refused("none:1", "has 1 arguments");
  refused("taylor:3", "has 1 arguments");
  refused("taylor:3,1,", "has 3 arguments");
  refused("delta:2,5,1,1", "has 4 arguments");
  for (const char* n : {"", "0", "-1", "1001", "2.0", "x", "+2", "99999999999"})
    refused(std::string("fora:") + n,
            "N is \"" + std::string(n) + "\"; a whole number from 1 to 1000 is wanted");
  refused("taylor:3,5", "O is \"5\"; a whole number from 0 to 4 is wanted");
  refused("stack:3,-1", "O is \"-1\"; a whole number from 0 to 4 is wanted");
  refused("delta:2,11", "B is \"11\"; a whole number from 0 to 10 is wanted");
  refused("delta:2,5,3", "K is \"3\"; a whole number from 1 to 2 is wanted");
  refused("delta:2,5,0", "K is \"0\"; a whole number from 1 to 2 is wanted");
  refused("l2c", "names no file; l2c:FILE[,THETA] is wanted");
  refused("l2c:,0.1", "names no file; l2c:FILE[,THETA] is wanted");
  refused("l2c:f.pt,1", "THETA is 1; a number from 0 to below 1 is wanted");
  refused("l2c:f.pt,-0.1", "THETA is -0.1; a number from 0 to below 1 is wanted");
  refused("l2c:f.pt,nan", "THETA is nan; a number from 0 to below 1 is wanted");
  refused("l2c:f.pt", "takes an even number of steps, the run has 9", 9);
}

// As L2C's training saves it: routers of `S` steps of `size` values, all of them 0 but in step 2, where they
// are logits of .2 and .05 in turn.
void write_routers(const fs::path& path, int S, int64_t size, const std::string& key = "routers",
                   int first = 0) {
  std::vector<std::string> items;
  for (int s = first; s < first + S; ++s) {
    items.push_back(pickle::text(fmt::format("{}.prob", s)));
    items.push_back(
        pickle::tensor({.sizes = {size}, .strides = {1}, .offset = s == 2 ? size : 0, .numel = 2 * size}));
  }
  std::string values;
  for (int64_t i = 0; i < 2 * size; ++i)
    append_little<uint32_t>(values, std::bit_cast<uint32_t>(i < size     ? 0.0f
                                                            : i % 2 == 0 ? -1.386f
                                                                         : -2.944f));
  const std::string args = pickle::global("argparse", "Namespace") + ")\x81" +
                           pickle::dict({pickle::text("lr"), pickle::real(0.1)}) + "b";
  const std::string file =
      pickle::dict({pickle::text(key), pickle::ordered_dict(items), pickle::text("opt"),
                    pickle::dict({pickle::text("state"), "}"}), pickle::text("args"), args});
  std::ofstream(path, std::ios::binary)
      << test::build_zip({{"r/data.pkl", pickle::pickle_of(file)}, {"r/data/0", values}});
}

TEST(L2c, RoutersOfEvenStepsSayWhatIsComputed) {
  const TemporaryFolder folder;
  write_routers(folder / "r,s.pt", 4, 4);
  const std::string policy = "l2c:" + (folder / "r,s.pt").string();
  const PlanSpec spec = plan_of(policy, 4);
  EXPECT_EQ(full_steps(spec), (Indices{3, 1, 0}));
  EXPECT_EQ(spec.steps[2], (StepSpec{.timestep = 2, .attn = {kC, kC}, .mlp = {0, 0}}));
  EXPECT_EQ(full_steps(plan_of(policy + ",0.04", 4)), (Indices{3, 2, 1, 0}));
  EXPECT_EQ(full_steps(plan_of(policy + ",0.5", 4)), (Indices{3, 1}));  // sigmoid(0) is not above it
}

TEST(L2c, FileOfOtherRoutersIsRefused) {
  const TemporaryFolder folder;
  const std::string path = (folder / "r.pt").string();
  const auto refused = [&](const std::string& message) {
    expect_error([&] { policy_plan("l2c:" + path, tiny_config(), timesteps_of(4)); }, path + ": " + message);
  };
  write_routers(path, 4, 4, "model");
  refused("holds no `routers`; a file of L2C's training is wanted");
  write_routers(path, 6, 4);
  refused("holds routers of 6 steps, the run has 4; take as many with --steps");
  write_routers(path, 4, 4, "routers", 1);
  refused("routers have no 0.prob; 0.prob to 3.prob are wanted");
  write_routers(path, 4, 6);
  refused("router 0.prob has shape (6), but 2 blocks take (4); is it of another model?");
  std::ofstream(path) << "routers";
  refused("is not a torch file");
}

// Guide and restart of each step as they are taken: f full, r reuse:1, o off; a capital after a restart.
std::string guides(const PlanSpec& spec) {
  std::string text;
  for (auto step = spec.steps.rbegin(); step != spec.steps.rend(); ++step) {
    const char c = step->guide == GuideKind::Full ? 'f' : step->guide == GuideKind::Off ? 'o' : 'r';
    text += step->restart ? static_cast<char>(std::toupper(c)) : c;
    EXPECT_EQ(step->guide_order, c == 'r' ? 1 : 0);
  }
  return text;
}

TEST(GuidePolicy, EveryFullStepButTheFirstTwoIsCounted) {
  EXPECT_EQ(guides(plan_of("none", 12, tiny_config(), {.every = 1})), "ffffffffffff");
  EXPECT_EQ(guides(plan_of("none", 12, tiny_config(), {.every = 2})), "ffrfrfrfrfrf");
  EXPECT_EQ(guides(plan_of("none", 12, tiny_config(), {.every = 5})), "ffrrfrrrrfrr");
  const std::string fifty = guides(plan_of("none", 50, tiny_config(), {.every = 5}));
  EXPECT_EQ(std::count(fifty.begin(), fifty.end(), 'f'), 12);
}

// Full steps: 11, 10, 7, 4, 1.
TEST(GuidePolicy, StepThatForecastsBranchesForecastsGuidance) {
  EXPECT_EQ(guides(plan_of("taylor:3,1", 12, tiny_config(), {.every = 2})), "ffrrrrrfrrrr");
  EXPECT_EQ(guides(plan_of("stack:3,1", 12, tiny_config(), {.every = 2})), "ffrrrrrfrrrr");
  EXPECT_EQ(guides(plan_of("delta:3", 12, tiny_config(), {.every = 2})), "frfrrrrrfrrr");
}

TEST(GuidePolicy, IntervalRestartsWhereGuidanceComesOn) {
  const PlanSpec spec = plan_of("taylor:3,1", 12, tiny_config(), {.from = 8, .to = 3});
  EXPECT_EQ(guides(spec), "oooFfffffooo");
  EXPECT_EQ(full_steps(spec), (Indices{11, 10, 8, 7, 4, 1}));
  const PlanSpec stack = plan_of("stack:3,1", 12, tiny_config(), {.from = 8, .to = 3});
  EXPECT_TRUE(stack.steps[8].ranges.empty());
  EXPECT_EQ(guides(stack), "oooFfffffooo");
}

TEST(GuidePolicy, NothingKeptNeedsNoRestart) {
  EXPECT_EQ(guides(plan_of("none", 12, tiny_config(), {.from = 8, .to = 3})), "oooffffffooo");
}

TEST(GuidePolicy, EveryCountsWithinTheInterval) {
  EXPECT_EQ(guides(plan_of("none", 12, tiny_config(), {.from = 8, .to = 3, .every = 3})), "ooofffrrfooo");
}

TEST(GuidePolicy, OptionsThatCannotBeMeantAreRefused) {
  PlanSpec spec = plan_of("none", 4);
  for (const GuideOptions& guide :
       {GuideOptions{.from = 1000}, GuideOptions{.to = -1}, GuideOptions{.from = 3, .to = 4}})
    expect_error([&] { apply_guide(guide, tiny_config(), 4, spec); },
                 "it begins at the larger t; both are 0 to 999");
  expect_error([&] { apply_guide({.every = 0}, tiny_config(), 4, spec); },
               "guidance every 0 full steps: a whole number from 1 is wanted");
}

class RecordedPolicies : public testing::TestWithParam<std::pair<const char*, const char*>> {};

TEST_P(RecordedPolicies, AreMade) {
  const fs::path folder = test::shared_path("golden/step_plan");
  SKIP_WITHOUT(folder);
  const auto [file, policy] = GetParam();
  const DiTConfig config = recorded_plan_config();
  const PlanSpec wanted = read_plan(folder / "plans" / (std::string(file) + ".json"), config);
  std::string text = policy;
  if (text == "l2c")
    text += ":" + (folder / ("l2c_router_" + std::string(file).substr(0, 3) + ".pt")).string();
  PlanSpec spec = policy_plan(text, config, wanted.timesteps());
  if (std::string(file) == "s12_interval" || std::string(file) == "s12_interval_taylor")
    apply_guide({.from = static_cast<int>(wanted.steps[8].timestep),
                 .to = static_cast<int>(wanted.steps[3].timestep)},
                config, 4, spec);
  EXPECT_EQ(spec.steps, wanted.steps);
  // Of order 1 all weights are the same, and the file says taylor.
  EXPECT_EQ(spec.forecast == wanted.forecast, std::string(file) != "s12_stack_n3_o1");
}

INSTANTIATE_TEST_SUITE_P(
    Files, RecordedPolicies,
    testing::Values(std::pair("s12_fora_n2", "fora:2"), std::pair("s12_fora_n3", "fora:3"),
                    std::pair("s20_fora_n3", "fora:3"), std::pair("s12_taylor_n2_o0", "taylor:2,0"),
                    std::pair("s12_taylor_n2_o1", "taylor:2,1"), std::pair("s12_taylor_n2_o2", "taylor:2,2"),
                    std::pair("s12_taylor_n2_o3", "taylor:2,3"), std::pair("s12_taylor_n3_o0", "taylor:3,0"),
                    std::pair("s12_taylor_n3_o1", "taylor:3,1"), std::pair("s12_taylor_n3_o2", "taylor:3,2"),
                    std::pair("s12_taylor_n3_o3", "taylor:3,3"), std::pair("s20_taylor_n3_o2", "taylor:3,2"),
                    std::pair("s12_lagrange_n3_o2", "lagrange:3,2"),
                    std::pair("s20_lagrange_n4_o2", "lagrange:4,2"),
                    std::pair("s12_stack_n3_o1", "stack:3,1"), std::pair("s12_delta_n2", "delta:2"),
                    std::pair("s20_delta_n2", "delta:2"), std::pair("s12_l2c", "l2c"),
                    std::pair("s20_l2c", "l2c"), std::pair("s12_interval", "none"),
                    std::pair("s12_interval_taylor", "taylor:3,1")),
    [](const auto& info) { return std::string(info.param.first); });

}  // namespace
}  // namespace dydit
