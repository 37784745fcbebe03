// What engines obey of a plan as it is written: which features are kept, where and how long, what is forecast
// from which, and what it costs.
#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "dydit/engine/engine.h"
#include "dydit/model/macs.h"
#include "dydit/plan/run_plan.h"
#include "tests/support/engines.h"
#include "tests/support/random_model.h"
#include "tests/support/random_plan.h"

namespace dydit {
namespace {

using test::random_checkpoint;
using test::static_config;
using test::tiny_config;

constexpr Branch kBranches[] = {Branch::Attention, Branch::Mlp};

std::vector<Action> actions(const std::string& text) {
  std::vector<Action> all;
  for (const char c : text)
    all.push_back(c == 'c' ? kCompute : c == '-' ? kSkipped : static_cast<Action>(c - '0'));
  return all;
}

StepSpec step_of(const std::string& attn, const std::string& mlp) {
  return {.attn = actions(attn), .mlp = actions(mlp)};
}
StepSpec step_of(const std::string& both) { return step_of(both, both); }

// Steps in the order in which they are taken, of a model of as many blocks as they have actions.
RunPlan applied(std::vector<StepSpec> steps, bool guided = false, const Forecast& forecast = {}) {
  PlanSpec spec{.name = "hand", .forecast = forecast};
  spec.steps.assign(steps.rbegin(), steps.rend());
  for (size_t s = 0; s < spec.steps.size(); ++s) spec.steps[s].timestep = static_cast<int>(10 * s);
  RunPlan plan;
  plan.config = static_config();
  plan.config.depth = static_cast<int>(steps[0].attn.size());
  check_spec(spec, plan.config, guided, "hand");
  const std::vector<uint8_t> all(plan.config.num_heads, 1);
  for (const StepSpec& step : spec.steps)
    plan.steps.push_back({.timestep = step.timestep,
                          .mode = Mode::Static,
                          .blocks = std::vector(plan.config.depth, BlockWidth{all, all})});
  apply_spec(spec, guided, plan);
  return plan;
}

// The plan's step that is taken as the i-th.
const StepPlan& taken(const RunPlan& plan, int i) { return plan.steps[plan.steps.size() - 1 - i]; }

// Steps from which a forecast takes its features, the newest first.
std::vector<int> anchors(const std::vector<Term>& terms) {
  std::vector<int> steps;
  for (const Term& term : terms) steps.push_back(term.step);
  return steps;
}
std::vector<float> weights(const std::vector<Term>& terms) {
  std::vector<float> all;
  for (const Term& term : terms) all.push_back(term.weight);
  return all;
}

int stores(const RunPlan& plan) {
  int count = 0;
  for (const StepPlan& step : plan.steps) {
    for (const BranchPlan& branch : step.branches) count += branch.store >= 0;
    for (const RangePlan& range : step.ranges) count += range.store >= 0;
  }
  return count;
}

using Ints = std::vector<int>;
using Floats = std::vector<float>;

TEST(ApplySpec, OfAnAllComputePlanLeavesPlainSteps) {
  const RunPlan plan = applied({step_of("cc"), step_of("cc"), step_of("cc")}, /*guided=*/true);
  EXPECT_EQ(plan.slots, 0);
  EXPECT_EQ(plan.guide_slots, 0);
  for (const StepPlan& step : plan.steps) {
    EXPECT_TRUE(step.branches.empty());
    EXPECT_TRUE(step.ranges.empty());
    EXPECT_EQ(step.guide.store, -1);
  }
  EXPECT_EQ(plan.name, "hand");
}

TEST(ApplySpec, NumbersTheStepsFromTheImage) {
  const RunPlan plan = applied({step_of("c"), step_of("0"), step_of("0")});
  for (int s = 0; s < 3; ++s) {
    EXPECT_EQ(plan.steps[s].index, s);
    EXPECT_EQ(plan.steps[s].slots, plan.slots);
  }
}

TEST(ApplySpec, KeepsWhatALaterStepReadsAndNothingElse) {
  // Block 0's attention is read once, its MLP never; block 1's MLP is computed again before it is read.
  const RunPlan plan = applied({step_of("cc", "cc"), step_of("0c", "cc"), step_of("cc", "c0")});
  EXPECT_EQ(taken(plan, 0).branch(0, Branch::Attention).store, 0);
  EXPECT_EQ(taken(plan, 0).branch(0, Branch::Mlp).store, -1);
  EXPECT_EQ(taken(plan, 0).branch(1, Branch::Mlp).store, -1);
  EXPECT_GE(taken(plan, 1).branch(1, Branch::Mlp).store, 0);
  EXPECT_EQ(stores(plan), 2);
}

TEST(ApplySpec, UsesASlotAgainOnceItsLastReadIsPast) {
  // The feature of step 3 is read at 2, so its slot is free for that of step 1.
  const RunPlan plan = applied({step_of("c", "c"), step_of("0", "c"), step_of("c", "c"), step_of("0", "c")});
  EXPECT_EQ(plan.slots, 1);
  EXPECT_EQ(taken(plan, 2).branch(0, Branch::Attention).store, 0);
}

TEST(ApplySpec, LetsNoStepWriteToASlotThatItReads) {
  // Attention's feature is read in the very step in which the MLP's is kept.
  const RunPlan plan = applied({step_of("c", "c"), step_of("0", "c"), step_of("c", "0")});
  EXPECT_EQ(plan.slots, 2);
  EXPECT_NE(taken(plan, 1).branch(0, Branch::Attention).terms[0].slot,
            taken(plan, 1).branch(0, Branch::Mlp).store);
}

TEST(ApplySpec, OfOrderOKeepsOPlusOneFeaturesOfABranch) {
  for (int order = 0; order <= kMaxOrder; ++order) {
    std::vector<StepSpec> steps;
    for (int full = 0; full < 7; ++full) {
      steps.push_back(step_of("c"));
      steps.push_back(step_of(std::to_string(order)));
    }
    EXPECT_EQ(applied(steps).slots, 2 * (order + 1)) << order;
  }
}

// Learning-to-cache: every even step reuses what the step before computed; its code keeps all branches.
TEST(ApplySpec, OfAlternatingStepsKeepsHalf) {
  const RunPlan plan = applied({step_of("cccc", "cccc"), step_of("c0c0", "0c0c"), step_of("cccc", "cccc"),
                                step_of("0c0c", "c0c0"), step_of("cccc", "cccc"), step_of("c0c0", "c0c0")});
  EXPECT_EQ(plan.slots, 4);
  EXPECT_EQ(stores(plan), 12);  // of the 24 branches that full steps compute
}

TEST(ApplySpec, WeighsTheNewestFeaturesByTheStepsBetween) {
  // Steps 6 and 4 computed: at 3 and 2 a line through them.
  const RunPlan plan = applied(
      {step_of("c"), step_of("1"), step_of("c"), step_of("1"), step_of("1"), step_of("c"), step_of("c")});
  const auto& once = taken(plan, 1).branch(0, Branch::Mlp).terms;  // order 1 of one feature is reuse
  EXPECT_EQ(anchors(once), (Ints{6}));
  EXPECT_EQ(weights(once), (Floats{1}));
  EXPECT_EQ(anchors(taken(plan, 3).branch(0, Branch::Mlp).terms), (Ints{4, 6}));
  EXPECT_EQ(weights(taken(plan, 3).branch(0, Branch::Mlp).terms), (Floats{1.5f, -0.5f}));
  EXPECT_EQ(weights(taken(plan, 4).branch(0, Branch::Mlp).terms), (Floats{2, -1}));
}

TEST(ApplySpec, TakesThePlansForecast) {
  const std::vector<StepSpec> steps = {step_of("c"), step_of("c"), step_of("c"), step_of("2"), step_of("c")};
  const auto at = [&](const Forecast& forecast) {
    return weights(taken(applied(steps, false, forecast), 3).branch(0, Branch::Attention).terms);
  };
  EXPECT_EQ(at({ForecastKind::Lagrange}), (Floats{3, -3, 1}));
  EXPECT_EQ(at({ForecastKind::Taylor}), (Floats{2.5f, -2, 0.5f}));
}

TEST(ApplySpec, OfAnOrderAboveTheHistoryTakesAllOfIt) {
  const RunPlan plan =
      applied({step_of("c"), step_of("4"), step_of("c"), step_of("4"), step_of("c"), step_of("1")});
  EXPECT_EQ(anchors(taken(plan, 1).branch(0, Branch::Attention).terms), (Ints{5}));
  EXPECT_EQ(anchors(taken(plan, 3).branch(0, Branch::Attention).terms), (Ints{3, 5}));
  EXPECT_EQ(anchors(taken(plan, 5).branch(0, Branch::Attention).terms), (Ints{1, 3}));
}

TEST(ApplySpec, ForgetsEverythingAtARestart) {
  StepSpec again = step_of("cc");
  again.restart = true;
  StepSpec skips = step_of("--");
  skips.ranges = {{0, 2, 1}};
  StepSpec guide = step_of("cc");
  guide.guide = GuideKind::Forecast;
  guide.guide_order = 1;
  const RunPlan plan =
      applied({step_of("cc"), step_of("cc"), step_of("11"), again, step_of("11"), skips, guide},
              /*guided=*/true);
  EXPECT_EQ(anchors(taken(plan, 2).branch(0, Branch::Mlp).terms), (Ints{5, 6}));
  EXPECT_EQ(anchors(taken(plan, 4).branch(0, Branch::Mlp).terms), (Ints{3}));
  EXPECT_EQ(anchors(taken(plan, 5).skipped_from(0)->terms), (Ints{2, 3}));  // forecast branches make one, too
  EXPECT_EQ(anchors(taken(plan, 6).guide.terms), (Ints{1, 2}));
}

StepSpec guided_by(StepSpec step, GuideKind guide, int order = 0) {
  step.guide = guide;
  step.guide_order = order;
  return step;
}

TEST(ApplySpec, ForBothRowsTakesFeaturesOfBothRows) {
  // Computed with both rows (4), then with one (3): a step of one row takes both, one of two rows neither
  // step 3 nor what lies behind it, so its branches are computed.
  const RunPlan plan = applied({step_of("c"), guided_by(step_of("c"), GuideKind::Off),
                                guided_by(step_of("1"), GuideKind::Off), step_of("c"), step_of("1")},
                               /*guided=*/true);
  EXPECT_EQ(anchors(taken(plan, 2).branch(0, Branch::Attention).terms), (Ints{3, 4}));
  EXPECT_EQ(anchors(taken(plan, 4).branch(0, Branch::Attention).terms), (Ints{1}));
  EXPECT_EQ(plan.rows(4, true), 2);
  EXPECT_EQ(plan.rows(3, true), 1);
  EXPECT_EQ(plan.rows(4, false), 1);
}

TEST(ApplySpec, WithoutGuidancePassesOverWhatStepsSayOfIt) {
  const RunPlan plan = applied({step_of("c"), guided_by(step_of("c"), GuideKind::Off), step_of("1"),
                                guided_by(step_of("c"), GuideKind::Forecast)});
  EXPECT_EQ(anchors(taken(plan, 2).branch(0, Branch::Attention).terms), (Ints{2, 3}));
  EXPECT_EQ(plan.guide_slots, 0);
  for (const StepPlan& step : plan.steps) EXPECT_EQ(step.guide.kind, GuideKind::Full);
}

TEST(ApplySpec, KeepsTheDifferenceOfGuidanceForStepsThatForecastIt) {
  const auto full = step_of("c");
  const RunPlan plan = applied({full, full, guided_by(full, GuideKind::Forecast, 1), full,
                                guided_by(full, GuideKind::Forecast, 0), guided_by(full, GuideKind::Off)},
                               /*guided=*/true);
  EXPECT_EQ(plan.slots, 0);
  EXPECT_EQ(plan.guide_slots, 2);
  EXPECT_EQ(anchors(taken(plan, 2).guide.terms), (Ints{4, 5}));
  EXPECT_EQ(weights(taken(plan, 2).guide.terms), (Floats{2, -1}));
  EXPECT_EQ(anchors(taken(plan, 4).guide.terms), (Ints{2}));
  EXPECT_TRUE(taken(plan, 5).guide.terms.empty());
  EXPECT_EQ(taken(plan, 5).guide.kind, GuideKind::Off);
  for (const StepPlan& step : plan.steps) {
    if (step.guide.kind == GuideKind::Full) {
      EXPECT_GE(step.guide.store, 0);
    }
  }
}

StepSpec skipping(const std::string& text, std::vector<RangeSkip> ranges) {
  StepSpec step = step_of(text);
  step.ranges = std::move(ranges);
  return step;
}

// (from, to) of the ranges that a step keeps.
std::vector<std::pair<int, int>> kept_ranges(const StepPlan& step) {
  std::vector<std::pair<int, int>> kept;
  for (const RangePlan& range : step.ranges) {
    if (range.store >= 0) kept.emplace_back(range.from, range.to);
  }
  return kept;
}

TEST(ApplySpec, KeepsARangeWhereverNoSkippedOneOverlapsIt) {
  using Ranges = std::vector<std::pair<int, int>>;
  const RunPlan plan = applied({
      step_of("cccc"),
      skipping("cc--", {{2, 4, 0}}),  // runs [0, 2), a piece of [0, 3)
      skipping("--cc", {{0, 2, 1}}),
      skipping("---c", {{0, 3, 1}}),
      skipping("cc--", {{2, 4, 1}}),
      skipping("--c-", {{0, 2, 1}, {3, 4, 1}}),
      skipping("c---", {{1, 4, 0}}),
  });
  EXPECT_EQ(kept_ranges(taken(plan, 0)), (Ranges{{0, 3}, {0, 2}, {1, 4}, {2, 4}}));  // 3 to 4 nobody reads
  EXPECT_EQ(kept_ranges(taken(plan, 1)), (Ranges{{0, 2}}));
  EXPECT_EQ(kept_ranges(taken(plan, 2)), (Ranges{{2, 4}, {3, 4}}));
  EXPECT_EQ(kept_ranges(taken(plan, 3)), (Ranges{{3, 4}}));
  EXPECT_EQ(kept_ranges(taken(plan, 4)), (Ranges{{0, 2}}));
  EXPECT_EQ(anchors(taken(plan, 2).skipped_from(0)->terms), (Ints{5, 6}));
  EXPECT_EQ(anchors(taken(plan, 3).skipped_from(0)->terms), (Ints{6}));
  EXPECT_EQ(anchors(taken(plan, 4).skipped_from(2)->terms), (Ints{4, 6}));
  EXPECT_EQ(anchors(taken(plan, 5).skipped_from(0)->terms), (Ints{2, 5}));
  EXPECT_EQ(anchors(taken(plan, 5).skipped_from(3)->terms), (Ints{3, 4}));
  EXPECT_EQ(anchors(taken(plan, 6).skipped_from(1)->terms), (Ints{6}));
  EXPECT_EQ(taken(plan, 1).skipped_from(0), nullptr);
  EXPECT_EQ(taken(plan, 5).skipped_from(1), nullptr);
}

TEST(ApplySpec, TakesWidthsByHandAndLeavesTheOthers) {
  const Checkpoint checkpoint = random_checkpoint(tiny_config());
  PlanSpec spec = full_spec(tiny_config(), std::vector<double>{100, 500});
  spec.steps[1].heads = {{1, 0, 0, 1}, {1, 1, 0, 0}};
  spec.steps[1].groups = {{1, 0, 0, 0}, {1, 1, 1, 1}};
  spec.steps[1].tokens = {3, 16};
  const RunPlan plan = test::plan_of_spec(checkpoint, spec, Mode::Dynamic, false),
                routed = make_width_plan(checkpoint, spec.timesteps(), Mode::Dynamic);
  EXPECT_EQ(plan.steps[0].blocks, routed.steps[0].blocks);
  EXPECT_EQ(plan.steps[1].blocks, (std::vector{BlockWidth{{1, 0, 0, 1}, {1, 0, 0, 0}, 3},
                                               BlockWidth{{1, 1, 0, 0}, {1, 1, 1, 1}, 16}}));
}

// Walks a plan by its stores, steps falling: what a term wants lies in its slot, and no slot is written in a
// step that reads it.
void expect_sound_slots(const RunPlan& plan) {
  std::map<int, std::pair<std::string, int>> kept;  // slot -> feature, step
  for (int s = static_cast<int>(plan.steps.size()) - 1; s >= 0; --s) {
    const StepPlan& step = plan.steps[s];
    std::set<int> read, written;
    const auto read_all = [&](const std::string& feature, const std::vector<Term>& terms) {
      for (const Term& term : terms) {
        EXPECT_EQ(kept.at(term.slot), (std::pair{feature, term.step})) << "step " << s;
        read.insert(term.slot);
      }
    };
    std::map<int, std::string> stored;
    const auto store = [&](const std::string& feature, int slot) {
      if (slot < 0) return;
      EXPECT_LT(slot, plan.slots);
      EXPECT_TRUE(stored.emplace(slot, feature).second)
          << "step " << s << " writes slot " << slot << " twice";
    };
    for (size_t b = 0; b < step.branches.size(); ++b) {
      read_all("branch" + std::to_string(b), step.branches[b].terms);
      store("branch" + std::to_string(b), step.branches[b].store);
    }
    for (const RangePlan& range : step.ranges) {
      const std::string name = std::to_string(range.from) + "-" + std::to_string(range.to);
      read_all(name, range.terms);
      store(name, range.store);
    }
    for (const auto& [slot, feature] : stored) {
      EXPECT_FALSE(read.contains(slot)) << "step " << s << " writes slot " << slot << ", which it reads";
      kept[slot] = {feature, s};
    }
  }
}

TEST(ApplySpec, GivesSoundSlotsToAnyPlan) {
  DiTConfig config = static_config();
  config.depth = 5;
  const std::vector<double> timesteps = test::spread_timesteps(14);
  const RunPlan widths = make_width_plan(random_checkpoint(config), timesteps, Mode::Static);
  int slots = 0, terms = 0;
  for (uint32_t seed = 0; seed < 200; ++seed) {
    const PlanSpec spec =
        test::random_spec(config, timesteps, seed, {.guided = seed % 2 == 0, .max_order = kMaxOrder});
    RunPlan plan = widths;
    apply_spec(spec, seed % 2 == 0, plan);
    expect_sound_slots(plan);
    slots += plan.slots;
    for (const StepPlan& step : plan.steps) terms += static_cast<int>(step.branches.size());
    if (testing::Test::HasFailure()) FAIL() << "seed " << seed;
  }
  EXPECT_GT(slots, 200);
  EXPECT_GT(terms, 10000);
}

// Two blocks, three steps, by hand.
TEST(PlanMacs, AreThoseOfWhatIsComputed) {
  DiTConfig config = static_config();
  const int64_t C = config.hidden_size;
  const int64_t ends = fixed_macs(config) - 2 * 6 * C * C;
  const int64_t attn = 3 * C * C + attention_macs(config, 4),
                mlp = 3 * C * C + mlp_macs(config, 4, config.num_tokens()), gate = C * C;
  const RunPlan plan = applied({step_of("cc"), step_of("c0", "0c"), skipping("c-", {{1, 2, 0}})});
  EXPECT_EQ(required_macs(config, taken(plan, 0)), static_macs(config));
  EXPECT_EQ(required_macs(config, taken(plan, 1)), ends + attn + mlp + 2 * gate);
  EXPECT_EQ(required_macs(config, taken(plan, 2)), ends + attn + mlp);
  EXPECT_EQ(plan_macs(plan, false), 3 * ends + 4 * attn + 4 * mlp + 2 * gate);
}

TEST(PlanMacs, OfARunWithoutAPlanAreTodaysNumbers) {
  const RunPlan plan = applied({step_of("cc"), step_of("cc"), step_of("cc")});
  EXPECT_EQ(plan_macs(plan, false), 3 * static_macs(static_config()));
  EXPECT_EQ(plan_macs(plan, true), 6 * static_macs(static_config()));
}

TEST(PlanMacs, CountTheRoutersOfBranchesThatAreComputed) {
  const DiTConfig config = tiny_config();
  const int64_t C = config.hidden_size, N = config.num_tokens(), R = config.token_router_hidden(),
                ends = fixed_macs(config) - 2 * 6 * C * C;
  PlanSpec spec = full_spec(config, std::vector<double>{100, 500});
  spec.steps[0].attn[0] = spec.steps[0].mlp[1] = 0;
  for (StepSpec& step : spec.steps) {
    step.heads = {{1, 0, 1, 0}, {1, 1, 1, 0}};
    step.groups = {{1, 0, 0, 0}, {1, 0, 0, 1}};
    step.tokens = {5, 9};
  }
  const RunPlan plan = test::plan_of_spec(random_checkpoint(config), spec, Mode::Dynamic, false);
  const int64_t width_router = C * 3, token_router = N * (C * R + R);
  const int64_t computed = ends + 2 * (3 * C * C + width_router) + attention_macs(config, 3) +
                           mlp_macs(config, 1, 5) + token_router + 2 * C * C;
  EXPECT_EQ(required_macs(config, plan.steps[0]), computed);
  EXPECT_EQ(required_macs(config, plan.steps[1]), fixed_macs(config) + router_macs(config) +
                                                      attention_macs(config, 2) + attention_macs(config, 3) +
                                                      mlp_macs(config, 1, 5) + mlp_macs(config, 2, 9));
}

TEST(PlanMacs, CountBothRowsWhereGuidanceIsPaidFor) {
  const auto full = step_of("cc");
  const RunPlan plan = applied({full, guided_by(full, GuideKind::Off), guided_by(full, GuideKind::Forecast),
                                guided_by(full, GuideKind::Full)},
                               /*guided=*/true);
  EXPECT_EQ(plan_macs(plan, true), 6 * static_macs(static_config()));
}

// What a run of the plan counts, both rows where guidance is paid for.
int64_t counted_macs(EngineKind kind, const Checkpoint& checkpoint, const RunPlan& plan) {
  const auto engine = make_engine(kind, checkpoint, {});
  const auto workspace = engine->make_workspace({});
  test::Walker cond(*engine, plan, 2, 1), null(*engine, plan, checkpoint.config.null_class(), 1);
  int64_t macs = 0;
  while (cond.step >= 0) {
    std::vector<test::Walker*> rows = {&cond};
    if (plan.rows(cond.step, true) == 2) {
      rows.push_back(&null);
    } else {
      --null.step;
    }
    for (const Work& work : test::step_together(*engine, *workspace, rows).work) macs += work.required;
  }
  return macs;
}

TEST(PlanMacs, AreTheRequiredWorkOfARun) {
  Checkpoint capacity = random_checkpoint(tiny_config());
  capacity.keep_counts = KeepCounts{.heads = {{1, 2, 3, 4}, {4, 1, 1, 2}},
                                    .groups = {{3, 1, 4, 2}, {2, 2, 2, 1}},
                                    .tokens = {{16, 1, 5, 8}, {2, 9, 16, 1}}};
  for (const EngineKind kind : {EngineKind::Cpu, EngineKind::Reference}) {
    for (uint32_t seed = 0; seed < 6; ++seed) {
      const Mode mode = seed % 3 == 0 ? Mode::Static : Mode::Dynamic;
      const PlanSpec spec = test::random_spec(tiny_config(), test::spread_timesteps(6), seed,
                                              {.guided = true, .widths = mode == Mode::Dynamic});
      const RunPlan plan = test::plan_of_spec(capacity, spec, mode, true);
      EXPECT_EQ(counted_macs(kind, capacity, plan), plan_macs(plan, true)) << seed;
    }
  }
}

TEST(PlanMacs, BoundTheRequiredWorkOfAThresholdModel) {
  const Checkpoint checkpoint = random_checkpoint(tiny_config());
  const PlanSpec spec = test::random_spec(tiny_config(), test::spread_timesteps(6), 3, {.guided = true});
  const RunPlan plan = test::plan_of_spec(checkpoint, spec, Mode::Dynamic, true);
  const int64_t macs = counted_macs(EngineKind::Cpu, checkpoint, plan);
  EXPECT_LT(macs, plan_macs(plan, true));
  EXPECT_GT(macs, plan_macs(plan, true) / 2);
}

}  // namespace
}  // namespace dydit
