// Plan files: what they say, and every reason for which one is refused. The refused texts are one good text,
// damaged in one place.
#include <algorithm>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "dydit/plan/plan_spec.h"
#include "tests/support/files.h"
#include "tests/support/random_model.h"
#include "tests/support/shared.h"
#include "tests/support/step_plans.h"

namespace dydit {
namespace {

namespace fs = std::filesystem;
using test::error_of;
using test::expect_error;
using test::recorded_plan_config;
using test::TemporaryFolder;
using test::tiny_config;

// Of tiny_config(): 2 blocks of 4 heads on 16 tokens.
const std::string kGood =
    R"({"dydit_plan": 1, "name": "by hand", "depth": 2, "num_heads": 4, "num_tokens": 16, "note": "n",
 "sampler": "ddim", "eta": 0, "cfg_scale": 1.5, "mode": "dynamic", "model_sha256": "ab", "forecast": "lagrange",
 "steps": [{"t": 980, "attn": "cc", "mlp": "cc"},
           {"t": 960, "attn": "cc", "mlp": "cc", "guide": "off"},
           {"t": 940, "attn": "c-", "mlp": "c-", "ranges": [{"from": 1, "to": 2, "order": 0}], "guide": "reuse:2"},
           {"t": 920, "attn": "cc", "mlp": "cc", "restart": true, "tokens": "router"},
           {"t": 900, "attn": "1c", "mlp": "c4", "heads": ["1010", "1111"], "groups": ["1000", "1001"], "tokens": [16, 3]},
           {"t": 880, "attn": "c0", "mlp": "00", "guide": "reuse:1", "scale": 2.5, "tokens": "all"}]})";

const std::string kLong(1025, 'x');

std::string damaged(const std::string& from, const std::string& to) {
  std::string text = kGood;
  const size_t at = text.find(from);
  EXPECT_NE(at, text.npos) << from;
  return text.replace(at, from.size(), to);
}

void check(const std::string& text, const DiTConfig& config = tiny_config(), bool guided = true) {
  check_spec(parse_plan(text, config, "FILE"), config, guided, "FILE");
}

struct Fault {
  std::string from, to, message;
};

void expect_faults(const std::vector<Fault>& faults) {
  for (const Fault& fault : faults) {
    SCOPED_TRACE(fault.from + " -> " + fault.to);
    const std::string message = error_of([&] { check(damaged(fault.from, fault.to)); });
    EXPECT_TRUE(message.starts_with("FILE: ")) << message;
    EXPECT_NE(message.find(fault.message), message.npos) << message << "\nwanted: " << fault.message;
  }
}

TEST(PlanFile, SaysWhatEveryStepDoes) {
  const PlanSpec spec = parse_plan(kGood, tiny_config(), "FILE");
  EXPECT_NO_THROW(check_spec(spec, tiny_config(), true, "FILE"));
  EXPECT_EQ(spec.name, "by hand");
  EXPECT_EQ(spec.note, "n");
  EXPECT_EQ(spec.forecast, Forecast{ForecastKind::Lagrange});
  EXPECT_EQ(spec.sampler, "ddim");
  EXPECT_EQ(spec.mode, "dynamic");
  EXPECT_EQ(spec.model_sha256, "ab");
  EXPECT_EQ(spec.eta, 0.0f);
  EXPECT_EQ(spec.cfg_scale, 1.5f);
  EXPECT_EQ(spec.timesteps(), (std::vector<double>{880, 900, 920, 940, 960, 980}));
  constexpr Action c = kCompute, x = kSkipped;
  const std::vector<StepSpec> wanted = {
      {.timestep = 880,
       .attn = {c, 0},
       .mlp = {0, 0},
       .guide = GuideKind::Forecast,
       .guide_order = 1,
       .scale = 2.5f,
       .tokens = {16, 16}},
      {.timestep = 900,
       .attn = {1, c},
       .mlp = {c, 4},
       .heads = {{1, 0, 1, 0}, {1, 1, 1, 1}},
       .groups = {{1, 0, 0, 0}, {1, 0, 0, 1}},
       .tokens = {16, 3}},
      {.timestep = 920, .attn = {c, c}, .mlp = {c, c}, .restart = true, .tokens = {-1, -1}},
      {.timestep = 940,
       .attn = {c, x},
       .mlp = {c, x},
       .ranges = {{1, 2, 0}},
       .guide = GuideKind::Forecast,
       .guide_order = 2},
      {.timestep = 960, .attn = {c, c}, .mlp = {c, c}, .guide = GuideKind::Off},
      {.timestep = 980, .attn = {c, c}, .mlp = {c, c}}};
  EXPECT_EQ(spec.steps, wanted);
}

TEST(PlanFile, WrittenAndReadIsTheSame) {
  const DiTConfig config = tiny_config();
  for (const std::string& text : {kGood, damaged(R"("lagrange")", R"("hermite:0.3")"), damaged("2.5", "0.1"),
                                  damaged("by hand", "\xC3\xA9\\\""), damaged(R"(, "note": "n")", "")}) {
    const PlanSpec spec = parse_plan(text, config, "FILE");
    EXPECT_EQ(parse_plan(plan_text(spec, config), config, "WRITTEN"), spec) << text;
  }
}

TEST(PlanFile, IsWrittenAStepALineInTheOrderInWhichTheyAreTaken) {
  const std::vector<double> timesteps = {0, 500};
  EXPECT_EQ(plan_text(full_spec(tiny_config(), timesteps), tiny_config()),
            "{\"dydit_plan\": 1, \"name\": \"none\", \"depth\": 2, \"num_heads\": 4, \"num_tokens\": 16, "
            "\"forecast\": \"taylor\",\n \"steps\": [\n"
            "  {\"t\": 500, \"attn\": \"cc\", \"mlp\": \"cc\"},\n  {\"t\": 0, \"attn\": \"cc\", \"mlp\": "
            "\"cc\"}]}\n");
}

TEST(PlanFile, WhatIsLeftOutIsTheRuns) {
  const PlanSpec spec = parse_plan(
      R"({"dydit_plan": 1, "depth": 2, "num_heads": 4, "num_tokens": 16, "steps": [{"t": 3, "attn": "cc", "mlp": "cc"}]})",
      tiny_config(), "FILE");
  EXPECT_EQ(spec, (PlanSpec{.name = "", .steps = {{.timestep = 3, .attn = {-1, -1}, .mlp = {-1, -1}}}}));
}

TEST(PlanFile, AllComputedFits) {
  const std::vector<double> timesteps = {0, 999};
  for (const bool guided : {false, true})
    EXPECT_NO_THROW(check_spec(full_spec(tiny_config(), timesteps), tiny_config(), guided, "none"));
}

TEST(PlanFile, TextThatIsNoPlanIsRefused) {
  expect_faults(
      {{R"({"dydit_plan": 1, )", "{[", "line 1 is not JSON from \"["},
       {R"("dydit_plan": 1, )", "", "is no plan: an object with dydit_plan is wanted"},
       {R"("dydit_plan": 1,)", R"("dydit_plan": 2,)", "dydit_plan is 2, but this program reads 1"},
       {R"("dydit_plan": 1,)", R"("dydit_plan": 1.0,)", "dydit_plan is 1.0, but this program reads 1"},
       {R"("tokens": "all"}]})", R"("tokens": "all"}]} {})", "line 8 is not JSON"},
       {R"("tokens": "all"}]})", "", "is not JSON yet where the text ends"},
       {R"("t": 940)", R"("t": NaN)", "line 5 is not JSON from \"NaN"},
       {R"("scale": 2.5)", R"("scale": Infinity)", "is not JSON from \"Infinity"},
       {R"("scale": 2.5)", R"("scale": 1e999)", "a number is too large"},
       {"by hand", "b\xE9", "line 1 is not UTF-8"},
       {"{\"dydit", "\xEF\xBB\xBF{\"dydit", "begins with a byte order mark"},
       {R"("n",)", R"([[[[[[[[[]]]]]]]]],)", "nests deeper than 8 levels"},
       {R"("depth": 2,)", R"("depth": 9, "depth": 2,)", "key \"depth\" is given twice in one object"},
       {R"("t": 960,)", R"("t": 960, "t": 960,)", "key \"t\" is given twice in one object"}});
  expect_error([] { check("[]"); }, "is no plan: an object with dydit_plan is wanted");
  expect_error([] { check(kGood + std::string(1 << 20, ' ')); }, "at most 1048576 are read");
}

TEST(PlanFile, PlanOfAnotherModelIsRefused) {
  expect_faults(
      {{R"("depth": 2)", R"("depth": 3)", "depth is 3, but the model's is 2; is the plan of another model?"},
       {R"("num_heads": 4)", R"("num_heads": 3)", "num_heads is 3, but the model's is 4"},
       {R"("num_tokens": 16)", R"("num_tokens": 64)", "num_tokens is 64, but the model's is 16"},
       {R"("depth": 2, )", "", "depth is missing"}});
}

TEST(PlanFile, UnknownKeyIsNamedWithTheNearestKnownOne) {
  expect_faults(
      {{R"("note")", R"("nota")", "key \"nota\" is unknown; did you mean note?"},
       {R"("guide")", R"("gude")", "step t = 960: key \"gude\" is unknown; did you mean guide?"},
       {R"("order")", R"("ordre")", "step t = 940: ranges: key \"ordre\" is unknown; did you mean order?"},
       {R"("note")", "\"" + kLong + "\"", "is unknown; did you mean"}});
}

TEST(PlanFile, ValuesOfAnotherKindAreRefused) {
  expect_faults(
      {{R"("num_heads": 4)", R"("num_heads": 4.0)", "num_heads is 4.0; a whole number below 2^31 is wanted"},
       {R"("t": 960)", R"("t": 960.5)", "step 2: t is 960.5; a whole number below 2^31 is wanted"},
       {R"("t": 960, )", "", "step 2: t is missing"},
       {R"("from": 1)", R"("from": 4294967297)", "from is 4294967297; a whole number below 2^31 is wanted"},
       {R"("from": 1)", R"("from": -4294967295)", "from is -4294967295; a whole number"},
       {R"("scale": 2.5)", R"("scale": "2")", "scale is \"2\"; a number is wanted"},
       {R"("scale": 2.5)", R"("scale": 1e300)", "scale is 1e+300; a number is wanted"},
       {R"("restart": true)", R"("restart": 1)", "restart is 1; true or false is wanted"},
       {R"("by hand")", "7", "name is 7; a text is wanted"},
       {"by hand", "by\\u001bhand", "at most 1024 bytes without control characters are wanted"},
       {"by hand", kLong, "at most 1024 bytes without control characters are wanted"},
       {R"([{"from": 1, "to": 2, "order": 0}])", "3", "ranges is 3; a list [...] is wanted"},
       {R"([{"from": 1, "to": 2, "order": 0}])", "[3]", "ranges: is 3; an object {...} is wanted"},
       {R"({"t": 980, "attn": "cc", "mlp": "cc"})", "null", "step 1: is null; an object {...} is wanted"},
       {R"("lagrange")", R"("spline")", "forecast \"spline\" is unknown"},
       {R"("guide": "off")", R"("guide": "half")",
        "guide is \"half\"; full, off, weak or reuse:0 to reuse:4"},
       {R"("reuse:1")", R"("reuse:5")", "guide is \"reuse:5\""},
       {R"("reuse:1")", R"("reuse:-1")", "guide is \"reuse:-1\""},
       {R"("scale": 2.5)", R"("level": 1)", "step t = 880: level is 1; 0 to 0 is wanted"},
       {R"("scale": 2.5)", R"("level": 0.0)", "level is 0.0; a whole number"}});
  EXPECT_NO_THROW(check(damaged(R"("scale": 2.5)", R"("level": 0)")));
}

TEST(PlanFile, TimestepsFallFrom999) {
  expect_faults({{"980", "1000", "step t = 1000: t is outside 0 to 999"},
                 {"880", "-1", "step t = -1: t is outside 0 to 999"},
                 {"960", "980", "step t = 980: comes after t = 980; t must fall from step to step"}});
  std::string none = kGood;
  none.replace(none.find("[{"), std::string::npos, "[]}");
  expect_error([&] { check(none); }, "FILE: has 0 steps; 1 to 1000 are wanted");
}

TEST(PlanFile, ActionsAreOneCharacterABlock) {
  expect_faults({{R"("attn": "1c")", R"("attn": "1cc")", "step t = 900: attn says 3 blocks, the model has 2"},
                 {R"("attn": "1c")", R"("attn": "1x")",
                  "attn is \"1x\": \"x\" is no action; c, 0 to 4 and - are known"},
                 {R"("mlp": "c4")", R"("mlp": "c5")", "mlp is \"c5\": order 5 is above 4"},
                 {R"("attn": "1c")", R"("attn": "1-")", "attn of block 1 is -, but no range holds it"},
                 {R"("mlp": "c-")", R"("mlp": "cc")", "mlp of block 1 is not -, but a range skips it"}});
  PlanSpec spec = parse_plan(kGood, tiny_config(), "FILE");
  spec.steps[0].mlp[1] = kSkipped + 1;
  expect_error([&] { check_spec(spec, tiny_config(), true, "FILE"); },
               "mlp of block 1 is action 6; -1 to 5 exist");
}

TEST(PlanFile, RangesLieInTheModelAndApart) {
  const std::string range = R"([{"from": 1, "to": 2, "order": 0}])";
  expect_faults({{R"("to": 2)", R"("to": 1)", "step t = 940: range from 1 to 1 is empty"},
                 {R"("to": 2)", R"("to": 3)", "range from 1 to 3 leaves the model's blocks, 0 to 2"},
                 {R"("from": 1)", R"("from": -1)", "range from -1 to 2 leaves the model's blocks, 0 to 2"},
                 {R"("order": 0)", R"("order": 5)", "range from 1 to 2 has order 5; orders are 0 to 4"},
                 {range, R"([{"from": 1, "to": 2, "order": 0}, {"from": 0, "to": 2, "order": 0}])",
                  "range from 1 to 2 begins before the one before ends, at 2; ranges may not overlap"}});
  const std::string backwards = R"("attn": "--", "mlp": "--", "ranges": [{"from": 1, "to": 2, "order": 0}, )"
                                R"({"from": 0, "to": 1, "order": 0}])";
  EXPECT_NO_THROW(check(damaged(R"("attn": "c-", "mlp": "c-", "ranges": )" + range, backwards)));
}

TEST(PlanFile, FirstStepComputesAll) {
  const std::string first = R"("t": 980, "attn": "cc", "mlp": "cc")",
                    wanted = "step t = 980: the first step must compute all";
  expect_faults({{first, R"("t": 980, "attn": "0c", "mlp": "cc")", wanted},
                 {first, R"("t": 980, "attn": "cc", "mlp": "c1")", wanted},
                 {first, first + R"(, "guide": "reuse:0")", wanted}});
}

TEST(PlanFile, ForecastNeedsAFeatureSinceTheLastRestart) {
  expect_faults(
      {{R"("t": 900, )", R"("restart": true, "t": 900, )",
        "step t = 900: attn of block 0 has nothing to forecast from"},
       {R"("t": 940, )", R"("restart": true, "t": 940, )", "range from 1 to 2 has nothing to forecast from"},
       {R"("t": 880, )", R"("restart": true, "t": 880, )", "has nothing to forecast from"}});
  // Guidance alone: everything else is computed.
  const std::string all = R"("attn": "cc", "mlp": "cc", "guide": "reuse:1", "restart": true, )";
  expect_faults(
      {{R"("attn": "c0", "mlp": "00", "guide": "reuse:1", )", all,
        "step t = 880: guide has nothing to forecast from since the first step or the last restart"}});
  EXPECT_NO_THROW(
      check(damaged(R"("attn": "c0", "mlp": "00", "guide": "reuse:1", )", all), tiny_config(), false));
}

// At t = 960 only the conditional rows are computed.
TEST(PlanFile, ForecastForBothRowsNeedsBoth) {
  const std::string step = R"("attn": "cc", "mlp": "cc", "restart": true, "tokens": "router")";
  const std::string wanted =
      "needs both rows of guidance, but the step that computed it last had the conditional";
  expect_faults(
      {{step, R"("attn": "c0", "mlp": "cc")", "step t = 920: attn of block 1 " + wanted},
       {step, R"("attn": "cc", "mlp": "1c")", "step t = 920: mlp of block 0 " + wanted},
       {R"("guide": "reuse:2")", R"("guide": "full")", "step t = 940: range from 1 to 2 " + wanted}});
  EXPECT_NO_THROW(check(damaged(step, R"("attn": "c0", "mlp": "cc")"), tiny_config(), false));
}

// A range is computed where no skipped one overlaps it.
TEST(PlanFile, OverlappedRangeIsNotComputed) {
  const std::string plan = R"({"dydit_plan": 1, "depth": 2, "num_heads": 4, "num_tokens": 16, "steps": [
    {"t": 4, "attn": "cc", "mlp": "cc", "guide": "off"},
    {"t": 3, "attn": "cc", "mlp": "cc"},
    {"t": 2, "attn": "c-", "mlp": "c-", "ranges": [{"from": 1, "to": 2, "order": 0}], "restart": false},
    {"t": 1, "attn": "--", "mlp": "--", "ranges": [{"from": 0, "to": 2, "order": 0}]}]})";
  EXPECT_NO_THROW(check(plan));
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string text = plan;
    return text.replace(text.find(from), from.size(), to);
  };
  // Block 1 is skipped at t = 3, too: the newest feature of both blocks together is that of t = 4.
  const std::string skips =
      R"("t": 3, "attn": "c-", "mlp": "c-", "guide": "off", "ranges": [{"from": 1, "to": 2, "order": 0}])";
  EXPECT_NE(error_of([&] {
              check(with(R"("t": 3, "attn": "cc", "mlp": "cc")", skips));
            }).find("step t = 2: range from 1 to 2"),
            std::string::npos);
  expect_error([&] { check(with("false", "true")); },
               "step t = 2: range from 1 to 2 has nothing to forecast from");
}

TEST(PlanFile, ScaleIsANumberFromZero) {
  expect_faults(
      {{R"("scale": 2.5)", R"("scale": -1)", "step t = 880: scale is -1; a number from 0 is wanted"}});
}

TEST(PlanFile, WidthsByHandFitTheModel) {
  expect_faults(
      {{R"("1010", "1111")", R"("0110", "1111")",
        "step t = 900: heads of block 0 begin with 0; the first is always on"},
       {R"("1000", "1001")", R"("1000", "0001")", "groups of block 1 begin with 0"},
       {R"("1010", "1111")", R"("1010")", "heads says 1 blocks, the model has 2"},
       {R"("1010", "1111")", R"("101", "1111")", "heads of block 0 are 3, the model has 4"},
       {R"("1010", "1111")", R"("1012", "1111")",
        "heads holds \"1012\"; a text of 0 and 1, one a part, is wanted"},
       {R"("1010", "1111")", R"("", "1111")", "heads holds \"\"; a text of 0 and 1"},
       {R"("1010", "1111")", "", "heads is empty; leave it out, or say every block"},
       {R"([16, 3])", R"([16])", "tokens says 1 blocks, the model has 2"},
       {R"([16, 3])", R"([16, 0])", "tokens holds 0; 1 to 16 may be kept"},
       {R"([16, 3])", R"([16, 17])", "tokens of block 1 is 17; 1 to 16 may be kept"},
       {R"([16, 3])", R"("some")", "tokens is \"some\"; \"router\", \"all\" or a list of counts is wanted"},
       {R"([16, 3])", "[]", "tokens is []; \"router\", \"all\" or a list of counts is wanted"}});
}

TEST(PlanFile, WidthsByHandNeedRouters) {
  DiTConfig config = test::static_config();
  expect_error([&] { check(kGood, config); },
               "step t = 920: chooses tokens, but the model has no token routers");
  std::string text = damaged(R"("tokens": "router")", R"("tokens": "all")");
  expect_error([&] { check(text, config); }, "step t = 900: says heads, but the model has no width routers");
  config.width_routers = true;
  expect_error([&] { check(text, config); },
               "step t = 900: chooses tokens, but the model has no token routers");
}

TEST(PlanFile, IsReadFromAFileOfBoundedSize) {
  const TemporaryFolder folder;
  std::ofstream(folder / "plan.json") << kGood;
  EXPECT_EQ(read_plan(folder / "plan.json", tiny_config()), parse_plan(kGood, tiny_config(), "FILE"));
  fs::resize_file(folder / "plan.json", uint64_t{1} << 30);  // sparse: nothing of it is read
  expect_error([&] { read_plan(folder / "plan.json", tiny_config()); },
               "plan.json: a plan of 1073741824 bytes; at most 1048576 are read");
}

TEST(PlanFile, MutantsAreReadOrRefused) {
  EXPECT_GT(test::refused_mutations(kGood, 3000, [](const std::string& mutant) { check(mutant); }), 2000);
}

TEST(RecordedPlans, GoodOnesFit) {
  const fs::path folder = test::shared_path("golden/step_plan/plans");
  SKIP_WITHOUT(folder);
  int count = 0;
  for (const auto& entry : fs::directory_iterator(folder)) {
    const PlanSpec spec = read_plan(entry.path(), recorded_plan_config());
    EXPECT_NO_THROW(check_spec(spec, recorded_plan_config(), true, entry.path().string()));
    EXPECT_EQ(parse_plan(plan_text(spec, recorded_plan_config()), recorded_plan_config(), "WRITTEN"), spec)
        << entry.path();
    ++count;
  }
  EXPECT_EQ(count, 24);
}

TEST(RecordedPlans, BadOnesAreRefused) {
  const fs::path folder = test::shared_path("golden/step_plan/bad");
  SKIP_WITHOUT(folder);
  int count = 0;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() != ".json") continue;
    const std::string message = error_of([&] {
      check_spec(read_plan(entry.path(), recorded_plan_config()), recorded_plan_config(), true,
                 entry.path().string());
    });
    EXPECT_TRUE(message.starts_with(entry.path().string() + ": ")) << message;
    RecordProperty(entry.path().stem().string(), message);
    ++count;
  }
  EXPECT_EQ(count, 34);
}

}  // namespace
}  // namespace dydit
