// dydit calibrate: plans of caches and guidance, measured on a model, and those that no other beats as a
// file.
#include "dydit/calibrate/calibrate.h"

#include <algorithm>
#include <optional>

#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "cli.h"
#include "dydit/base/error.h"
#include "dydit/io/csv.h"
#include "dydit/io/file.h"
#include "dydit/io/json.h"
#include "dydit/io/text.h"
#include "inspect_plans.h"
#include "model_flags.h"
#include "sampling_flags.h"
#include "signals.h"
#include "targets.h"
#include "verbs.h"

namespace dydit {
namespace {

struct CalibrateFlags {
  ModelFlags model;
  std::string families, out, csv;
  SamplingFlags sampling;
  double cache_memory_gb = 0;
  CalibrateOptions options;
};

void add_flags(Cli& cli, CalibrateFlags& flags) {
  flags.options.num_images = 8;
  flags.options.seed = 1000;
  flags.model.add(cli);
  flags.sampling.add(cli, flags.options, /*least_steps=*/2);
  cli.add_number("--images", flags.options.num_images, 1, 100'000,
                 "Images that are compared, of all classes in turn");
  cli.add_number("--search-images", flags.options.search_images, 1, 1000,
                 "Images of other noise that schedules are searched on");
  cli.add_seed("--seed", flags.options.seed, "Seed of their noise; the search looks at that of the next one");
  cli.add_number("--cache-memory", flags.cache_memory_gb, 0, 1e6,
                 "GB that a batch, and the search, may keep of branches (default: a quarter of the memory)");
  cli.add_text(
      "--families", flags.families,
      "What is tried, comma-separated, of fora, taylor, lagrange, stack, threshold, steps (fewer of the same "
      "sampler), search, levels (the best of these with larger patches in the first steps) and guide (the "
      "best "
      "of the others with less guidance) (default: all)");
  cli.add_text("-o,--out", flags.out, "The file of the plans (default: MODEL.plans.json beside the model)");
  cli.add_text("--csv", flags.csv, "Also write all that was measured");
}

std::vector<Family> parse_families(const std::string& list) {
  std::vector<Family> families;
  for (const std::string_view name : comma_parts(list)) {
    const auto family = kFamilyNames.find(name);
    DYDIT_USAGE_CHECK(family, "{} is no family; choose from {}", quote(name),
                      fmt::join(kFamilyNames.names(), ", "));
    families.push_back(*family);
  }
  return families;
}

void write_csv(const std::string& path, const std::vector<MeasuredPlan>& plans) {
  std::string csv =
      csv_line({"cost", "cost_max", "executed", "seconds", "error", "error_se", "psnr", "name"});
  for (const MeasuredPlan& plan : plans) {
    csv += csv_line({fmt::format("{:.6g}", plan.cost), fmt::format("{:.6g}", plan.cost_max),
                     fmt::format("{:.6g}", plan.executed), fmt::format("{:.6g}", plan.seconds),
                     fmt::format("{:.6g}", plan.error), fmt::format("{:.6g}", plan.error_se),
                     plan.psnr ? fmt::format("{:.6g}", *plan.psnr) : "", csv_text(plan.plan.name)});
  }
  write_output_file(path, csv);
}

}  // namespace

int run_calibrate(const Args& args, Isa isa) {
  Cli cli("calibrate", "Measure what plans of caches and guidance cost and change, for generate --budget.");
  CalibrateFlags flags;
  add_flags(cli, flags);
  cli.parse(args);
  flags.sampling.check(cli, flags.options);
  const CancelFlag& cancel = install_cancel_handler();

  const Checkpoint checkpoint = flags.model.load(cli);
  const DiTConfig& config = checkpoint.config;
  CalibrateOptions& options = flags.options;
  flags.sampling.resolve(cli, checkpoint, flags.model, options);
  options.cache_memory = static_cast<int64_t>(flags.cache_memory_gb * 1e9);
  options.classes.clear();
  for (int label = 0; label < std::max(config.num_classes, 1); ++label) options.classes.push_back(label);
  for (const std::string& name : kFamilyNames.names()) options.families.push_back(kFamilyNames.at(name));
  if (!flags.families.empty())
    cli.within("--families", [&] { options.families = parse_families(flags.families); });
  if (flags.out.empty()) flags.out = plan_set_path(flags.model.path).string();
  check_targets(cli, {{"--out", flags.out}, {"--csv", flags.csv}}, inputs_of(checkpoint));
  cli.console.info(
      fmt::format("model    {} ({}), {}", model_name(config), flags.model.path, kModeNames[options.mode]));
  cli.console.info(fmt::format(
      "run      {} {} steps, guidance {}, {} images, seed {}", flags.sampling.sampler, options.num_steps,
      options.guided() ? fmt::format("{}", options.cfg_scale) : "off", options.num_images, options.seed));
  cli.console.info(fmt::format("engine   {}, {}, {} threads, batches of {}", kEngineNames[options.engine],
                               arithmetic_text(options.engine, options.dtype), options.threads,
                               options.batch));

  std::vector<MeasuredPlan> measured;
  std::string phase;
  std::optional<Console> console;  // of the phase: each has its rate
  const auto tell = [&](const Progress& progress) {
    if (phase != progress.what) console.emplace().quiet = cli.console.quiet;
    phase = progress.what;
    console->progress(progress);
  };
  const PlanSet set = calibrate(checkpoint, options,
                                {.on_plan = [&](const MeasuredPlan& plan) { measured.push_back(plan); },
                                 .on_progress = tell,
                                 .cancel = &cancel});
  console.reset();
  checkpoint.check_unchanged();
  nlohmann::json result = {{"file", flags.out},
                           {"seconds", set.measured.seconds},
                           {"plans", nlohmann::json::array()},
                           {"measured", nlohmann::json::array()}};
  for (const MeasuredPlan& plan : set.plans) result["plans"].push_back(measured_plan_json(plan));
  for (const MeasuredPlan& plan : measured) result["measured"].push_back(measured_plan_json(plan));
  // Printed first: the files may fail.
  cli.print(result, [&] { print_measured_plans(cli.verbose ? measured : set.plans); });
  write_output_file(flags.out, plan_set_text(set, config));
  if (!flags.csv.empty()) write_csv(flags.csv, measured);
  if (!cli.json) print_out("wrote {}\n", flags.out);
  return 0;
}

}  // namespace dydit
