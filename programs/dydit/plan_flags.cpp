#include "plan_flags.h"

#include "dydit/base/error.h"

namespace dydit {
namespace {

constexpr double kMostGigabytes = 1e6;

}  // namespace

void PlanFlags::add(Cli& cli) {
  cli.add_text("--plan", file,
               "Plan file (JSON): which branches every step computes, and when guidance runs");
  cli.add_text("--cache", cache, std::string("Instead: a policy that makes the plan: ") + kPolicyHelp)
      ->type_name("POLICY");
  cli.add_number("--guide-from", guide.from, 0, kNumTrainTimesteps - 1,
                 "Guidance from this timestep on; above it the conditional row alone is run");
  cli.add_number("--guide-to", guide.to, 0, kNumTrainTimesteps - 1, "Guidance down to this timestep");
  cli.add_number("--guide-every", guide.every, 1, 1000,
                 "Guidance at every so many full steps; between them its difference is forecast");
  cli.add_number("--cache-memory", cache_memory_gb, 0, kMostGigabytes,
                 "GB that a batch may keep of branches and guidance (default: a quarter of the memory)");
}

void PlanFlags::resolve(Cli& cli, const DiTConfig& config, bool chosen, Request& request,
                        SamplingOptions& options) const {
  cli.one_of("--plan", "--cache");
  const bool by_file = !file.empty();
  for (const char* flag : {"--guide-from", "--guide-to", "--guide-every"}) {
    cli.needs(flag, request.guided(), "guidance: a --cfg-scale above 1");
    cli.needs(flag, !by_file, "no --plan, whose steps say when guidance runs");
  }
  DYDIT_USAGE_CHECK(guide.to <= guide.from, "{} {}: is above --guide-from {}", cli.named("--guide-to"),
                    guide.to, guide.from);
  if (by_file) {
    const Spacing wanted = run_spacing(request);
    request.plan = read_plan(file, config);
    check_spec(*request.plan, config, request.guided(), file);
    DYDIT_USAGE_CHECK(
        !chosen || wanted.timesteps == request.plan->timesteps(),
        "{}: its {} timesteps are not those of --steps or --timesteps; leave these out, or take a "
        "plan of {} steps ({})",
        file, request.plan->steps.size(), wanted.timesteps.size(), wanted.description);
  } else {
    cli.within("--cache", [&] { plan_by_policy(cache, guide, config, request); });
  }
  cli.needs("--cache-memory", request.plan.has_value(), "--plan or --cache; without them nothing is kept");
  options.cache_memory = static_cast<int64_t>(cache_memory_gb * 1e9);
}

nlohmann::json PlanFlags::said(const Request& request) const {
  if (!request.plan) return {};
  if (!file.empty()) return {{"file", file}};
  nlohmann::json said = {{"cache", cache}};
  if (guide.from != GuideOptions().from) said["guide_from"] = guide.from;
  if (guide.to != GuideOptions().to) said["guide_to"] = guide.to;
  if (guide.every != GuideOptions().every) said["guide_every"] = guide.every;
  return said;
}

}  // namespace dydit
