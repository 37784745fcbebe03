// What a row keeps from step to step, at the door of all engines: what does not fit is refused, and the run
// goes on as if nothing had been.
#include <functional>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "dydit/base/error.h"
#include "tests/support/engines.h"
#include "tests/support/files.h"
#include "tests/support/random_model.h"
#include "tests/support/random_plan.h"

namespace dydit {
namespace {

using test::expect_same_bits;
using test::plan_of_spec;
using test::random_checkpoint;
using test::tiny_config;
using test::Walk;
using test::Walker;

// The plan has two slots at least, and the step is its second: it keeps and forecasts.
class RowHistory : public testing::TestWithParam<EngineKind> {
 protected:
  static PlanSpec spec() {
    PlanSpec spec = full_spec(config(), std::vector<double>{20, 300, 500});
    spec.steps[1].attn = {0, kCompute};
    spec.steps[0].ranges = {{1, 2, 0}};
    spec.steps[0].attn = {0, kSkipped};
    spec.steps[0].mlp = {kCompute, kSkipped};
    return spec;
  }
  static DiTConfig config() { return tiny_config(); }

  // The forward of these rows is refused with this; afterwards the walk goes on as if nothing had been.
  void expect_refused(const std::function<void(std::vector<Row>&)>& change, const std::string& message) {
    SCOPED_TRACE(message);
    Walk good(GetParam(), checkpoint_, plan_), walk(GetParam(), checkpoint_, plan_);
    good.forward();
    walk.forward();
    std::vector<Row> rows;
    std::vector<at::Tensor> x;
    for (Walker& walker : walk.walkers) {
      rows.push_back(walker.row());
      x.push_back(walker.x());
    }
    std::vector<Row> changed = rows;
    change(changed);
    std::vector<Work> work(3);
    ForwardOutputs outputs{.work = work};
    const auto forward = [&] { walk.engine->forward(at::stack(x), changed, *walk.workspace, outputs); };
    EXPECT_THROW(forward(), UsageError);
    test::expect_error(forward, message);
    for (int step = 0; step < 2; ++step) expect_same_bits(walk.forward(), good.forward());
  }
  void expect_step_refused(const std::function<void(StepPlan&)>& change, const std::string& message) {
    StepPlan step = plan_.steps[1];
    change(step);
    expect_refused([&](std::vector<Row>& rows) { rows[1].step = &step; }, message);
  }
  void expect_history_refused(const std::function<void(History&)>& change) {
    History other = make_engine(GetParam(), checkpoint_, {})->make_history(plan_.slots);
    change(other);
    expect_refused(
        [&](std::vector<Row>& rows) { rows[1].history = &other; },
        fmt::format("the plan of timestep 300 keeps {} features in Float: the row's history does not fit",
                    plan_.slots));
  }

  const Checkpoint checkpoint_ = random_checkpoint(config());
  const RunPlan plan_ = plan_of_spec(checkpoint_, spec(), Mode::Dynamic, false);
};
INSTANTIATE_TEST_SUITE_P(Kinds, RowHistory, testing::Values(EngineKind::Cpu, EngineKind::Reference),
                         [](const auto& info) { return std::string(kEngineNames[info.param]); });

TEST_P(RowHistory, OfAnotherShapeOrTypeIsRefused) {
  expect_refused([](std::vector<Row>& rows) { rows[1].history = nullptr; }, "the row's history does not fit");
  expect_history_refused([](History& history) { history.features = at::Tensor(); });
  expect_history_refused([](History& history) { history.kept_at.pop_back(); });
  expect_history_refused([](History& history) { history.features = history.features.slice(0, 0, 1); });
  expect_history_refused([](History& history) { history.features = history.features.slice(1, 0, 15); });
  expect_history_refused([](History& history) { history.features = history.features.slice(2, 0, 63); });
  expect_history_refused([](History& history) { history.features = history.features.to(at::kBFloat16); });
  expect_history_refused([](History& history) { history.features = history.features.to(at::kMeta); });
  expect_history_refused([](History& history) {
    history.features = history.features.permute({0, 2, 1}).contiguous().permute({0, 2, 1});
  });
}

TEST_P(RowHistory, OfTwoRowsIsRefused) {
  expect_refused([](std::vector<Row>& rows) { rows[2].history = rows[0].history; },
                 "two rows of a forward have one history");
}

// A step before its time, one taken twice, and another run's history.
TEST_P(RowHistory, WhoseStepsAreNotTakenInOrderIsRefused) {
  const std::string message =
      "which this history does not hold: its steps are taken in order, all by one history";
  History fresh = make_engine(GetParam(), checkpoint_, {})->make_history(plan_.slots);
  expect_refused([&](std::vector<Row>& rows) { rows[0].history = &fresh; },
                 "step 1 of a plan forecasts from step 2");
  expect_refused([&](std::vector<Row>& rows) { rows[0].step = &plan_.steps[0]; }, message);
  // The slot of step 1's feature may hold an older one.
  expect_step_refused([](StepPlan& step) { step.branches[0].terms[0].step = 1; },
                      "step 1 of a plan forecasts from step 1, " + message);
  expect_step_refused([](StepPlan& step) { step.branches[0].terms[0].slot = -1; }, message);
  expect_step_refused([](StepPlan& step) { step.branches[0].terms[0].slot = step.slots; }, message);
  StepPlan skips = plan_.steps[0];
  skips.ranges[0].terms[0].step = 7;
  Walk walk(GetParam(), checkpoint_, plan_);
  walk.forward();
  walk.forward();
  std::vector<Work> work(1);
  ForwardOutputs outputs{.work = work};
  Row row = walk.walkers[0].row();
  row.step = &skips;
  test::expect_error(
      [&] {
        walk.engine->forward(walk.walkers[0].x().unsqueeze(0), std::vector<Row>{row}, *walk.workspace,
                             outputs);
      },
      "step 0 of a plan forecasts from step 7");
}

TEST_P(RowHistory, OfAStepThatKeepsWhereItReadsIsRefused) {
  const int slot = plan_.steps[1].branches[0].terms[0].slot;
  ASSERT_NE(slot, plan_.steps[1].ranges[0].store);
  expect_step_refused(
      [&](StepPlan& step) { step.branches[1].store = slot; },
      fmt::format("step 1 of a plan forecasts from slot {} and keeps another feature in it", slot));
}

TEST_P(RowHistory, OfAStepThatDoesNotFitIsRefused) {
  const auto refuse = [&](const std::function<void(StepPlan&)>& change) {
    expect_step_refused(change, "the plan of timestep 300 does not fit DyDiT");
  };
  refuse([](StepPlan& step) { step.branches.pop_back(); });
  refuse([](StepPlan& step) { step.branches.clear(); });  // of a step that keeps a range
  refuse([](StepPlan& step) { step.branches[1].store = step.slots; });
  refuse([](StepPlan& step) { step.branches[1].store = -2; });
  refuse([](StepPlan& step) { step.branches[1].store = step.ranges[0].store; });        // two features in one
  refuse([](StepPlan& step) { step.branches[1].store = step.branches[2].store = 0; });  // slot
  refuse([](StepPlan& step) { step.branches[0].store = 0; });      // a forecast is not kept
  refuse([](StepPlan& step) { step.branches[0].terms.clear(); });  // of nothing
  refuse([](StepPlan& step) { step.branches[0].terms.resize(kMaxOrder + 2, step.branches[0].terms[0]); });
  refuse([](StepPlan& step) { step.branches[1].terms = step.branches[0].terms; });  // it is computed
  refuse([](StepPlan& step) { step.branches[1].action = kSkipped; });               // in no range
  refuse([](StepPlan& step) { step.branches[1].action = kSkipped + 1; });
  refuse([](StepPlan& step) { step.branches[1].action = kCompute - 1; });
  refuse([](StepPlan& step) { step.branches[0].action = kCompute; });
  refuse([](StepPlan& step) { step.ranges[0].store = -1; });  // neither kept nor skipped
  refuse([](StepPlan& step) { step.ranges[0].store = step.slots; });
  refuse([](StepPlan& step) { step.ranges[0].from = -1; });
  refuse([](StepPlan& step) { step.ranges[0].to = 3; });
  refuse([](StepPlan& step) { step.ranges[0].from = step.ranges[0].to; });
  refuse([](StepPlan& step) { step.ranges[0].terms = step.branches[0].terms; });  // its blocks are computed
  refuse([](StepPlan& step) {                                                     // two ranges skip one block
    step.branches[2].action = step.branches[3].action = kSkipped;
    step.branches[2].store = step.branches[3].store = -1;
    step.ranges = {{1, 2, -1, step.branches[0].terms}, {1, 2, -1, step.branches[0].terms}};
  });
}

}  // namespace
}  // namespace dydit
