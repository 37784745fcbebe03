#include "plan_flags.h"

#include <algorithm>
#include <filesystem>

#include "dydit/base/error.h"
#include "dydit/io/text.h"
#include "dydit/pipeline/record.h"

namespace dydit {
namespace {

constexpr double kMostGigabytes = 1e6;
constexpr double kLeastBudget = 0.001;

}  // namespace

void PlanFlags::add(Cli& cli) {
  cli.add_text("--plan", file,
               "Plan file (JSON): which branches every step computes, and when guidance runs");
  GuideOptions& guide = policy.guide;
  cli.add_text("--cache", policy.cache, std::string("Instead: a policy that makes the plan: ") + kPolicyHelp)
      ->type_name("POLICY");
  cli.add_number("--guide-from", guide.from, 0, kNumTrainTimesteps - 1,
                 "Guidance from this timestep on, in continuous time from this thousandth of the noise "
                 "share; above it the "
                 "conditional row alone is run");
  cli.add_number("--guide-to", guide.to, 0, kNumTrainTimesteps - 1, "Guidance down to this timestep");
  cli.add_number("--guide-every", guide.every, 1, 1000,
                 "Guidance at every so many full steps; between them its difference is forecast");
  cli.add_switch(
      "--guide-weak", guide.weak,
      "Guide by the model's own prediction at its largest patches, for the same label, in place of the "
      "null class's; of --cfg-scale s, 1 + (s - 1) / 2.5 then");
  cli.add_text(
      "--weak-steps", weak_steps_,
      "So many of the first steps with the larger patches of a model that has levels; of several levels "
      "a list, e.g. 20,10: the first 10 with the largest");
  cli.add_text("--level-from", level_from_, "Instead: from which timestep on; of several levels a list");
  cli.add_number("--cache-memory", cache_memory_gb, 0, kMostGigabytes,
                 "GB that a batch may keep of branches and guidance (default: a quarter of the memory)");
}

void PlanFlags::add_budget(Cli& cli) {
  has_budget_ = true;
  cli.add_number("--budget", budget, kLeastBudget, 1,
                 "Instead: the best plan of dydit calibrate that costs at most this share of the static "
                 "model's work");
  cli.add_text("--plans", plans, "Its file (default: MODEL.plans.json beside the model)");
  cli.add_switch("--force", force, "Where all plans cost more than --budget, take the cheapest");
}

void PlanFlags::resolve(Cli& cli, const Checkpoint& checkpoint, bool chosen, GenerateOptions& options) {
  cli.one_of("--plan", "--cache");
  if (has_budget_) {
    cli.one_of("--plan", "--budget");
    cli.one_of("--cache", "--budget");
    for (const char* flag : {"--plans", "--force"}) cli.needs(flag, budget > 0, "--budget");
    cli.needs("--timesteps", budget == 0, "no --budget, whose plans are for --steps");
  }
  const bool by_file = !file.empty(), by_budget = budget > 0;
  check_policy(cli, options);
  cli.within("--weak-steps", [&] { policy.levels.steps = whole_numbers(weak_steps_); });
  cli.within("--level-from", [&] { policy.levels.from = whole_numbers(level_from_); });
  const DiTConfig& config = checkpoint.config;
  if (by_budget) {
    take_budget(cli, checkpoint, options);
  } else if (by_file) {
    const Spacing wanted = run_spacing(options, config.objective);
    options.plan = read_plan(file, config);
    check_spec(*options.plan, config, options.guided(), file);
    DYDIT_USAGE_CHECK(
        !chosen || wanted.timesteps == options.plan->timesteps(),
        "{}: its {} timesteps are not those of --steps or --timesteps; leave these out, or take a "
        "plan of {} steps ({})",
        file, options.plan->steps.size(), wanted.timesteps.size(), wanted.description);
    const std::vector<StepSpec>& steps = options.plan->steps;
    if (!options.guided() && std::any_of(steps.begin(), steps.end(), [](const StepSpec& step) {
          return step.guide != GuideKind::Full || step.scale;
        }))
      cli.console.info(fmt::format("passed over: what {} says of guidance, for this run has none", file));
  } else {
    cli.within("--cache", [&] { plan_by_policy(policy, config, options); });
  }
  cli.needs("--cache-memory", options.plan.has_value(), "--plan or --cache; without them nothing is kept");
  options.cache_memory = static_cast<int64_t>(cache_memory_gb * 1e9);
}

void PlanFlags::check_policy(Cli& cli, const GenerateOptions& options) const {
  const GuideOptions& guide = policy.guide;
  cli.one_of("--weak-steps", "--level-from");
  for (const char* flag : {"--guide-from", "--guide-to", "--guide-every", "--guide-weak"}) {
    cli.needs(flag, options.guided(), "guidance: a --cfg-scale above 1");
    cli.needs(flag, file.empty(), "no --plan, whose steps say when guidance runs");
    cli.needs(flag, budget == 0, "no --budget, whose plan says when guidance runs");
  }
  for (const char* flag : {"--weak-steps", "--level-from"}) {
    cli.needs(flag, file.empty(), "no --plan, whose steps say their level");
    cli.needs(flag, budget == 0, "no --budget, whose plan says the level of its steps");
  }
  DYDIT_USAGE_CHECK(guide.to <= guide.from, "{} {}: is above --guide-from {}", cli.named("--guide-to"),
                    guide.to, guide.from);
}

std::string PlanFlags::input(const Checkpoint& checkpoint) const {
  if (budget == 0) return file;
  return plans.empty() ? plan_set_path(checkpoint.path).string() : plans;
}

void PlanFlags::take_budget(Cli& cli, const Checkpoint& checkpoint, GenerateOptions& options) {
  const std::string name = input(checkpoint);
  const auto calibrate = [&] {
    return fmt::format("dydit calibrate --model {} --sampler {} --steps {} --cfg-scale {}",
                       checkpoint.path.string(), kSamplerNames[options.sampler.kind], options.num_steps,
                       options.cfg_scale);
  };
  DYDIT_CHECK(!plans.empty() || std::filesystem::exists(name),
              "{}: there is no such file, so no plan is known for --budget; make it with: {}", name,
              calibrate());
  const PlanSet set = read_plan_set(name);
  check_plan_set(set, checkpoint, options, name);
  const MeasuredPlan* best = plan_within(set, budget);
  const MeasuredPlan& cheapest = set.plans.front();
  DYDIT_USAGE_CHECK(best || force,
                    "{} {}: no plan of {} costs as little; the cheapest costs {:.4f} ({}, error {:.4f}); "
                    "--force takes it",
                    cli.named("--budget"), budget, name, cheapest.cost_max, quote(cheapest.plan.name),
                    cheapest.error);
  if (!best)
    cli.console.info(fmt::format("--budget {}: no plan costs as little; taken: the cheapest, {:.4f}", budget,
                                 cheapest.cost_max));
  chosen_ = best ? *best : cheapest;
  options.plan = chosen_.plan;
  check_spec(*options.plan, checkpoint.config, options.guided(), name);
}

nlohmann::json PlanFlags::said(const Request& request) const {
  if (!request.plan) return {};
  if (!file.empty()) return {{"file", file}};
  if (budget > 0) {
    nlohmann::json said = said_budget(budget, request.num_steps, chosen_);
    if (!plans.empty()) said["plans"] = plans;
    if (force) said["force"] = true;
    return said;
  }
  return said_policy(policy);
}

}  // namespace dydit
