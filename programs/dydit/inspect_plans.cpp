#include "inspect_plans.h"

#include <algorithm>

#include <fmt/ranges.h>

#include "dydit/base/dtype.h"
#include "dydit/io/json.h"
#include "dydit/io/text.h"
#include "dydit/plan/run_plan.h"
#include "dydit/plan/stated_plan.h"
#include "streams.h"

namespace dydit {
namespace {

using nlohmann::json;

constexpr size_t kLookedAt = 1 << 20;  // bytes of a file, for the key that says what it is

// Of a branch: c, the order that its forecast has in the end, or - inside a range.
std::string actions_text(const StepPlan& step, Branch which) {
  std::string text;
  for (int l = 0; l < static_cast<int>(step.blocks.size()); ++l) {
    const BranchPlan& branch = step.branch(l, which);
    text += branch.action == kCompute   ? "c"
            : branch.action == kSkipped ? "-"
                                        : fmt::format("{}", branch.terms.size() - 1);
  }
  return text;
}

std::string guide_text(const GuidePlan& guide) {
  std::string text = guide.kind == GuideKind::Full   ? "full"
                     : guide.kind == GuideKind::Weak ? "weak"
                     : guide.kind == GuideKind::Off  ? "off"
                                                     : fmt::format("reuse:{}", guide.terms.size() - 1);
  return guide.scale ? fmt::format("{} x{}", text, *guide.scale) : text;
}

// Orders are those that there are features for.
json plan_json(const std::string& path, const StatedPlan& stated) {
  RunPlan plan{.config = stated.config, .steps = std::vector<StepPlan>(stated.spec.steps.size())};
  for (StepPlan& step : plan.steps) step.blocks.resize(stated.config.depth);
  plan.larger.assign(stated.config.levels() - 1, plan.steps);
  apply_spec(stated.spec, /*guided=*/true, plan);
  json result = {{"file", path},
                 {"format", "plan"},
                 {"name", stated.spec.name},
                 {"note", stated.spec.note},
                 {"depth", stated.config.depth},
                 {"num_heads", stated.config.num_heads},
                 {"num_tokens", stated.config.num_tokens()},
                 {"forecast", forecast_text(stated.spec.forecast)},
                 {"slots", plan.slots},
                 {"steps", json::array()}};
  for (size_t s = plan.steps.size(); s-- > 0;) {
    const StepPlan& step = plan.steps[s];
    const StepSpec& spec = stated.spec.steps[s];
    std::vector<std::string> ranges;
    for (const RangePlan& range : step.ranges) {
      if (range.skipped())
        ranges.push_back(fmt::format("{}-{}:{}", range.from, range.to - 1, range.terms.size() - 1));
    }
    result["steps"].push_back({{"t", json_number(spec.timestep)},
                               {"attn", actions_text(step, Branch::Attention)},
                               {"mlp", actions_text(step, Branch::Mlp)},
                               {"ranges", ranges},
                               {"level", spec.level},
                               {"guide", guide_text(step.guide)},
                               {"restart", spec.restart}});
  }
  return result;
}

void print_plan(const json& plan) {
  print_out("{}: plan {} of {} steps, {} blocks, {} heads, {} tokens\n", plan["file"].get<std::string>(),
            quote(plan["name"].get<std::string>()), plan["steps"].size(), plan["depth"].get<int>(),
            plan["num_heads"].get<int>(), plan["num_tokens"].get<int>());
  if (const auto note = plan["note"].get<std::string>(); !note.empty()) print_out("note        {}\n", note);
  print_out("forecast    {}; keeps {} features of a row; digits are orders\n",
            plan["forecast"].get<std::string>(), plan["slots"].get<int>());
  const int width = std::max(4, plan["depth"].get<int>());
  print_out("  {:>4}  {:<{}}  {:<{}}  {}\n", "t", "attn", width, "mlp", width, "guide, ranges");
  for (const json& step : plan["steps"]) {
    std::string more = step["guide"].get<std::string>();
    for (const json& range : step["ranges"]) more += ", " + range.get<std::string>();
    if (const int level = step["level"].get<int>(); level > 0) more += fmt::format(", level {}", level);
    if (step["restart"].get<bool>()) more += ", restart";
    print_out("  {:>4}  {:<{}}  {:<{}}  {}\n", step["t"].get<int>(), step["attn"].get<std::string>(), width,
              step["mlp"].get<std::string>(), width, more);
  }
}

json set_json(const std::string& path, const PlanSet& set) {
  const CalibratedRun& run = set.run;
  json result = {{"file", path},
                 {"format", "plans"},
                 {"model_sha256", set.model_sha256},
                 {"run",
                  {{"sampler", kSamplerNames[run.sampler.kind]},
                   {"steps", run.timesteps.size()},
                   {"eta", run.sampler.eta},
                   {"cfg_scale", run.cfg_scale},
                   {"cfg_channels", run.cfg_channels},
                   {"mode", kModeNames[run.mode]},
                   {"dtype", kModelDtypeNames[run.dtype]}}},
                 {"measured",
                  {{"images", set.measured.images},
                   {"seeds", set.measured.seeds},
                   {"classes", set.measured.classes},
                   {"seconds", set.measured.seconds}}},
                 {"plans", json::array()}};
  for (const MeasuredPlan& plan : set.plans) result["plans"].push_back(measured_plan_json(plan));
  return result;
}

void print_set(const std::string& path, const PlanSet& set) {
  const CalibratedRun& run = set.run;
  print_out("{}: {} plans for the model of sha256 {:.10}\n", path, set.plans.size(),
            printable(set.model_sha256));
  print_out("run         {} {} steps, guidance {}, {}, {}\n", kSamplerNames[run.sampler.kind],
            run.timesteps.size(),
            run.cfg_scale > 1 ? fmt::format("{} on {} channels", run.cfg_scale, run.cfg_channels) : "off",
            kModeNames[run.mode], kModelDtypeNames[run.dtype]);
  print_out("measured    on {} images, seed {}, in {:.0f} s\n", set.measured.images,
            fmt::join(set.measured.seeds, ", "), set.measured.seconds);
  print_measured_plans(set.plans);
}

}  // namespace

json measured_plan_json(const MeasuredPlan& plan) {
  json row = {
      {"cost", plan.cost}, {"cost_max", plan.cost_max}, {"error", plan.error}, {"error_se", plan.error_se}};
  row["psnr"] = plan.psnr ? json(*plan.psnr) : json();
  row["name"] = plan.plan.name;
  return row;
}

void print_measured_plans(const std::vector<MeasuredPlan>& plans) {
  print_out("{:>7} {:>7} {:>8} {:>8} {:>6}  {}\n", "cost", "max", "error", "+- se", "psnr", "plan");
  for (const MeasuredPlan& plan : plans) {
    print_out("{:>7.4f} {:>7.4f} {:>8.5f} {:>8.5f} {:>6}  {}\n", plan.cost, plan.cost_max, plan.error,
              plan.error_se, plan.psnr ? fmt::format("{:.2f}", *plan.psnr) : "-", plan.plan.name);
  }
  print_out(
      "cost: share of the static model's work with full guidance; error: relative distance to the full run's "
      "images, which is not quality\n");
}

bool is_plan_text(std::string_view text) {
  text = text.substr(0, kLookedAt);
  const size_t first = text.find_first_not_of(" \t\r\n");
  return first != text.npos && text[first] == '{' && text.find("\"dydit_plan") != text.npos;
}

void inspect_plan_text(const Cli& cli, const std::string& path, std::string_view text) {
  if (text.find("\"dydit_plans\"") != text.npos) {
    const PlanSet set = parse_plan_set(text, path);
    cli.print(set_json(path, set), [&] { print_set(path, set); });
  } else {
    const json plan = plan_json(path, parse_stated_plan(text, path));
    cli.print(plan, [&] { print_plan(plan); });
  }
}

}  // namespace dydit
