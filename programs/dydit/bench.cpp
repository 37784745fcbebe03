// dydit bench: time against work. The dynamic model and its own static model take turns in one run, forward
// by forward, so that the realised share compares like with like: a busy moment of the machine hits both.
#include <fstream>

#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "bench_contestant.h"
#include "bench_parts.h"
#include "cli.h"
#include "dydit/base/error.h"
#include "dydit/base/isa.h"
#include "dydit/base/machine.h"
#include "dydit/base/version.h"
#include "dydit/engine/torch/cuda.h"
#include "dydit/io/csv.h"
#include "dydit/io/file.h"
#include "dydit/model/edit.h"
#include "dydit/model/macs.h"
#include "dydit/pipeline/generate.h"
#include "model_flags.h"
#include "plan_flags.h"
#include "targets.h"
#include "verbs.h"

namespace dydit {
namespace {

using nlohmann::json;

// The complete model, the same by its routers, and both by a plan.
constexpr const char* kContestants[] = {"static", "static cached", "dynamic", "dynamic cached"};
// Of forwards; an autoencoder has none of it.
constexpr const char* kModelFlags[] = {"--input-size",
                                       "--num-heads",
                                       "--weights",
                                       "--heads",
                                       "--groups",
                                       "--tokens",
                                       "--steps",
                                       "--run",
                                       "--sampler",
                                       "--engine",
                                       "--device",
                                       "--graphs",
                                       "--no-batch-invariant",
                                       "--cfg-scale",
                                       "--profile",
                                       "--csv",
                                       "--plan",
                                       "--cache",
                                       "--guide-from",
                                       "--guide-to",
                                       "--guide-every",
                                       "--cache-memory",
                                       "--levels"};

struct BenchFlags : LapFlags {
  std::string model, size, dtype = "auto", sampler = "ddim", csv;
  int input_size = 32, steps = 8;
  double heads = 1, groups = 1, tokens = 1;
  float cfg_scale = 4.0f;
  bool profile = false, levels = false;
  DeviceFlags where;
  CheckpointOptions checkpoint;
  PlanFlags plan;
  BenchVaeFlags vae;
  ExtractorFlags extractor;
};

double peak_rss_mb() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmHWM:")) return std::stod(line.substr(6)) * 1024 / 1e6;
  }
  return 0;
}

// The model of the flags; with shares, routers whose capacity counts are those shares.
Checkpoint make_checkpoint(Cli& cli, const BenchFlags& flags, at::ScalarType dtype) {
  Checkpoint checkpoint = flags.model.empty() ? random_model(flags.size, flags.input_size)
                                              : load_model(cli, flags.model, flags.checkpoint);
  const DiTConfig& given = checkpoint.config;
  for (const char* flag : {"--heads", "--groups"})
    cli.needs(flag, given.width_routers || !given.is_dynamic(), "width routers; this DyDiT has none");
  cli.needs("--tokens", given.token_routers || !given.is_dynamic(), "token routers; this DyDiT has none");
  if (cli.given("--heads") || cli.given("--groups") || cli.given("--tokens")) {
    checkpoint = keep_shares(std::move(checkpoint), {flags.heads, flags.groups, flags.tokens});
  }
  return flags.model.empty() && dtype != at::kChar ? in_dtype(checkpoint, dtype) : checkpoint;
}

// At how many steps the active set of the block that changes least differs from the step before.
int least_changes(const RunPlan& plan) {
  int least = static_cast<int>(plan.steps.size());
  for (int b = 0; b < plan.config.depth; ++b) {
    int changes = 0;
    for (size_t s = 1; s < plan.steps.size(); ++s)
      changes += plan.steps[s].blocks[b] != plan.steps[s - 1].blocks[b];
    least = std::min(least, changes);
  }
  return least;
}

json operators_json(const Contestant& contestant, int depth, bool by_block) {
  json operators = json::object(), blocks = json::array();
  for (int op = 0; op < kOperators; ++op) {
    double sum = 0;
    for (int row = 0; row <= depth; ++row) sum += contestant.operator_ms(row, op);
    if (sum == 0 && op == static_cast<int>(Operator::Join)) continue;  // most models have none
    operators[std::string(kOperatorNames[op])] = sum;
  }
  for (int row = 0; by_block && row < depth; ++row) {
    json block = json::object();
    for (int op = 0; op < kOperators; ++op) {
      if (contestant.operator_ms(row, op) > 0)
        block[std::string(kOperatorNames[op])] = contestant.operator_ms(row, op);
    }
    blocks.push_back(block);
  }
  return by_block ? json{{"all", operators}, {"blocks", blocks}} : json{{"all", operators}};
}

void print_contestant(const std::string& name, const json& result) {
  print_out(
      "{:<14} {:>9.2f} ms/sample ({:.2f} to {:.2f})  {:>7.1f} GFLOP/s  {:>5.1f} % of peak  required {:.3f}, "
      "executed {:.3f} of static\n",
      name, result["ms_per_sample"].get<double>(), result["ms_low"].get<double>(),
      result["ms_high"].get<double>(), result["gflops"].get<double>(),
      100 * result["peak_share"].get<double>(), result["required_share"].get<double>(),
      result["executed_share"].get<double>());
}

void print_operators(const std::string& name, const json& operators) {
  print_out("{:<14}", name);
  for (const auto& [op, ms] : operators.items()) print_out(" {} {:.3f}", op, ms.get<double>());
  print_out("\n");
}

void print_result(const json& result) {
  print_out("{}, {}, {}, batch {}, {} threads, {}\npeak     {:.1f} GFLOP/s ({})\n",
            result["model"].get<std::string>(),
            result["device"] == "cpu" ? result["processor"].get<std::string>()
                                      : result["device"].get<std::string>(),
            result["arithmetic"].get<std::string>(), result["batch"].get<int>(), result["threads"].get<int>(),
            result["unit"].get<std::string>(), result["peak_gflops"].get<double>(),
            result["device"] == "cpu" ? "multiply-adds of the cpu engine from registers" : "a large product");
  std::vector<std::string> names;
  for (const char* name : kContestants) {
    if (result.contains(name)) names.emplace_back(name);
  }
  for (const std::string& name : names) print_contestant(name, result[name]);
  if (result["static"].contains("operators")) {
    print_out("milliseconds by operator\n");
    for (const std::string& name : names) print_operators(name, result[name]["operators"]["all"]);
    const json& operators = result[names.back()]["operators"];
    if (operators.contains("blocks")) {
      int index = 0;
      for (const json& block : operators["blocks"]) print_operators(fmt::format("block {}", index++), block);
    }
  }
  for (const std::string& name : names) {
    if (name == "static") continue;
    print_out("{}: realised share {:.3f}: {:.2f}x faster where the work promises {:.2f}x\n", name,
              result[name]["realised_share"].get<double>(), result[name]["speedup"].get<double>(),
              1 / result[name]["required_share"].get<double>());
  }
  if (result.contains("least_changes")) {
    print_out("a block's active set changes at {} of {} steps or more\n", result["least_changes"].get<int>(),
              result["steps"].get<int>());
  }
  if (result.contains("plan")) {
    print_out("plan {} keeps {} of branches and guidance\n", result["plan"].get<std::string>(),
              memory_text(result["cache_bytes"].get<double>()));
  }
  print_out("peak memory {:.0f} MB (of this whole process)\n", result["peak_rss_mb"].get<double>());
}

void write_csv(const std::string& path, const json& result) {
  CsvCells header = {"model", "mode", "unit", "processor", "dtype", "batch", "threads", "steps"};
  const std::vector<std::string> keys = {"ms_per_sample",  "ms_low",         "ms_high",
                                         "gflops",         "peak_share",     "required_gmacs",
                                         "executed_gmacs", "required_share", "executed_share"};
  header.insert(header.end(), keys.begin(), keys.end());
  std::string csv = csv_line(header);
  for (const std::string mode : kContestants) {
    if (!result.contains(mode)) continue;
    CsvCells row = {csv_text(result["model"]), mode, result["unit"], csv_text(result["processor"]),
                    result["dtype"]};
    for (const char* key : {"batch", "threads", "steps"}) row.push_back(result[key].dump());
    for (const std::string& key : keys) row.push_back(fmt::format("{}", result[mode][key].get<double>()));
    csv += csv_line(row);
  }
  write_output_file(path, csv);
}

void add_flags(Cli& cli, BenchFlags& flags) {
  cli.add_text("--model,--ckpt", flags.model, kCheckpointHelp);
  cli.add_text("--size", flags.size,
               "Instead: a published size with random weights, e.g. DiT-XL/2; DyDiT-XL/2 has random "
               "routers, which decide by the timestep");
  cli.add_number("--input-size", flags.input_size, 2, 4096, "Side of the latent of --size");
  add_checkpoint_options(cli, flags.checkpoint);
  flags.vae.add(cli);
  flags.extractor.extractor.clear();
  flags.extractor.add(cli);
  cli.add_number("--batch", flags.batch, 1, 65536,
                 "Samples of a forward; with --run, --vae or --extractor images");
  cli.add_number("--heads", flags.heads, 0, 1, "Share of heads that is on, instead of the routers' own");
  cli.add_number("--groups", flags.groups, 0, 1, "Share of channel groups");
  cli.add_number("--tokens", flags.tokens, 0, 1, "Share of tokens that enter the MLP");
  cli.add_number("--steps", flags.steps, 1, 1000, "Timesteps of a lap");
  cli.add_number("--repeats", flags.repeats, 1, 10000, "Laps that are timed; the median counts");
  cli.add_switch("--run", flags.run, "Time whole sampling runs instead of forwards");
  cli.add_choice("--sampler", flags.sampler, kSamplerNames.names({"auto"}),
                 "Whose timesteps the plan is for; auto: ddim, in continuous time euler");
  cli.add_number("--cfg-scale", flags.cfg_scale, 0, 1000, "Guidance of --run");
  flags.plan.add(cli);
  cli.add_choice("--dtype", flags.dtype, kModelDtypeNames.names({"auto"}), kDtypeHelp);
  cli.add_switch("--levels", flags.levels,
                 "Instead: forwards at every level of arithmetic that the processor has, in turns");
  flags.where.add(cli);
  cli.add_switch("--profile", flags.profile, "Time of every block and operator");
  cli.add_text("--csv", flags.csv, "Also write the rows here");
  cli.add_threads(flags.threads);
}

}  // namespace

int run_bench(const Args& args, Isa isa) {
  Cli cli("bench", "Time a model's forwards or sampling runs, and how much of the saved work is saved time.");
  BenchFlags flags;
  add_flags(cli, flags);
  cli.parse(args);
  DYDIT_USAGE_CHECK(
      !flags.model.empty() || !flags.size.empty() || !flags.vae.path.empty() ||
          !flags.extractor.extractor.empty(),
      "nothing to time: give --model FILE, or --size, e.g. DiT-XL/2, for random weights, or --vae FILE, or "
      "--extractor NAME");
  cli.one_of("--model", "--size");
  cli.one_of("--model", "--vae");
  cli.one_of("--size", "--vae");
  for (const char* other : {"--model", "--size", "--vae"}) cli.one_of(other, "--extractor");
  const bool extracts = !flags.extractor.extractor.empty();
  cli.needs("--side", !flags.vae.path.empty() || extracts, "--vae or --extractor");
  for (const char* flag : {"--resize", "--extractor-dtype"}) cli.needs(flag, extracts, "--extractor");
  if (extracts) {
    for (const char* flag : kModelFlags) {
      if (flag != std::string_view(kWeightsFlag)) cli.needs(flag, false, "--model or --size");
    }
    cli.needs("--dtype", false, "--model, --size or --vae; of --extractor it is --extractor-dtype");
    flags.extractor.weights = flags.checkpoint.weights;
    return bench_extractor(cli, flags.extractor, flags.vae.side,
                           {flags.dtype, flags.batch, flags.threads, flags.repeats}, isa);
  }
  if (!flags.vae.path.empty()) {
    for (const char* flag : kModelFlags) cli.needs(flag, false, "--model or --size");
    cli.needs("--dtype", flags.dtype != "int8",
              "--model or --size where it is int8; --vae takes f32 and bf16");
    return bench_vae(cli, flags.vae, {flags.dtype, flags.batch, flags.threads, flags.repeats}, isa);
  }
  cli.needs("--input-size", !flags.size.empty(), "--size; a model has its own");
  cli.needs("--num-heads", !flags.model.empty(), "--model; a --size has its own");
  cli.needs("--weights", !flags.model.empty(), "--model; a --size has random ones");
  for (const char* flag : {"--path", "--prediction"})
    cli.needs(flag, !flags.model.empty(), "--model; the name of a --size says it");
  for (const char* flag :
       {"--run", "--profile", "--plan", "--cache", "--guide-from", "--guide-to", "--guide-every",
        "--cache-memory", "--engine", "--device", "--graphs", "--no-batch-invariant", "--dtype", "--csv"}) {
    if (flags.levels) cli.needs(flag, false, "a bench of one level: leave out --levels");
  }
  cli.needs("--cfg-scale", flags.run, "--run; a forward has no guidance");
  const EngineKind kind = flags.where.resolve_engine();
  flags.where.check(cli);
  cli.needs("--profile", !flags.run && kind != EngineKind::Reference,
            "forwards of an engine that skips: leave out --run and --engine reference");
  flags.times_operators = kind == EngineKind::Cpu || flags.profile;

  cli.console.info("preparing the model");
  const auto dtype_for = [&](const Checkpoint& of) {
    const at::DeviceType type = flags.where.resolve().device.type();
    return flags.dtype == "auto" ? auto_dtype(of, kind, type) : dtype_of(flags.dtype, type);
  };
  const Checkpoint checkpoint = make_checkpoint(cli, flags, dtype_for({}));
  const at::ScalarType dtype = dtype_for(checkpoint);
  check_targets(cli, {{"--csv", flags.csv}}, inputs_of(checkpoint));
  const DiTConfig& config = checkpoint.config;
  cli.needs("--cfg-scale", config.can_guide(), fmt::format("a null class; {} has none", model_name(config)));
  const SamplerKind sampler = flags.sampler != "auto"         ? kSamplerNames.at(flags.sampler)
                              : checkpoint.few_step           ? SamplerKind::Lcm
                              : config.objective.continuous() ? SamplerKind::Euler
                                                              : SamplerKind::Ddim;
  if (flags.levels) return bench_levels(cli, flags, {flags.steps, sampler}, checkpoint, isa);
  EngineOptions options = {.dtype = dtype, .threads = flags.threads, .where = flags.where.resolve()};
  options.where.rows = int64_t{flags.batch} * (flags.run ? 2 : 1);
  const auto check_fits = [&](int ranges) {
    check_memory(least_engine_bytes(kind, checkpoint, options, flags.batch, ranges),
                 fmt::format("a batch of {} {}", flags.batch, flags.run ? "images" : "samples"),
                 flags.run ? "take a smaller --batch" : "take a smaller --batch, --input-size or model");
  };
  check_fits(0);
  const Pipeline pipeline(checkpoint, kind, options);
  GenerateOptions run{{.num_images = flags.batch,
                       .num_steps = flags.steps,
                       .sampler = {sampler},
                       .cfg_scale = flags.run && config.can_guide() ? flags.cfg_scale : 1.0f,
                       .mode = Mode::Static},
                      {.batch = flags.batch, .threads = flags.threads},
                      dtype,
                      kind,
                      options.where};
  take_few_step(checkpoint.few_step,
                {.sampler = false, .cfg_scale = !cli.given("--cfg-scale"), .steps = !cli.given("--steps")},
                run);
  // The complete model first: the others are held against it.
  std::vector<std::unique_ptr<Contestant>> contestants;
  std::vector<std::string> names;
  const auto add = [&](const std::string& name, const GenerateOptions& options) {
    contestants.push_back(std::make_unique<Contestant>(pipeline, flags, options));
    names.push_back(name);
    check_fits(contestants.back()->plan().ranges);
  };
  GenerateOptions planned = run;
  flags.plan.resolve(cli, checkpoint, cli.given("--steps"), planned);
  const bool cached = planned.plan.has_value();
  if (cached) run.timesteps = planned.plan->timesteps();  // all go the same steps
  add("static", run);
  if (cached && !planned.plan->for_dynamic()) add("static cached", planned);
  run.mode = planned.mode = Mode::Dynamic;
  if (config.is_dynamic()) add("dynamic", run);
  if (config.is_dynamic() && cached) add("dynamic cached", planned);
  checkpoint.check_unchanged();  // the engine has its weights
  run_laps(cli, flags, contestants, run.total_steps());

  const double peak = options.where.device.is_cuda()
                          ? measure_device_peak_macs(options.where.device, dtype, kPeakSeconds)
                          : measure_peak_macs(level_of(dtype), flags.threads, kPeakSeconds);
  const Contestant& complete = *contestants[0];
  const double complete_macs = complete.macs(&Work::required);
  json result = {{"model", fmt::format("{} ({})", model_name(config), checkpoint.path.filename().string())},
                 {"version", kVersion},
                 {"processor", fmt::format("{} ({})", cpu_model_name(), isa_name(isa))},
                 {"dtype", kModelDtypeNames[dtype]},
                 {"arithmetic", arithmetic_text(kind, dtype)},
                 {"engine", kEngineNames[kind]},
                 {"device", options.where.device.str()},
                 {"unit", flags.run ? "sampling runs" : "forwards"},
                 {"batch", flags.batch},
                 {"threads", flags.threads},
                 {"sampler", flags.sampler},
                 {"steps", run.total_steps()},
                 {"repeats", flags.repeats},
                 {"peak_gflops", 2 * peak / 1e9}};
  if (options.where.device.is_cuda()) {
    const aten::DeviceFacts facts = aten::cuda_facts(options.where.device.index());
    result["card"] = facts.name;
    result["capability"] = facts.capability;
    result["driver_cuda"] = facts.driver;
    result["runtime_cuda"] = facts.runtime;
    result["graphs"] = kGraphModeNames[options.where.graphs];
    result["batch_invariant"] = options.where.batch_invariant;
  }
  if (flags.run) result["cfg_scale"] = run.cfg_scale;
  if (cached) {
    result["plan"] = planned.plan->name;
    result["cache_bytes"] =
        cache_bytes(contestants.back()->plan(), planned, kept_type(kind, options)) * flags.batch;
  }
  for (size_t i = 0; i < names.size(); ++i) {
    const std::string& name = names[i];
    const Contestant* const c = contestants[i].get();
    json& entry = result[name];
    entry = contestant_json(*c, complete_macs, peak);
    if (const std::optional<EngineStatistics> done = c->statistics()) {
      entry["forwards"] = done->forwards;
      entry["redone_forwards"] = done->redone_forwards;
      entry["slot_bytes_copied"] = done->slot_bytes_copied;
    }
    if (!flags.run && kind != EngineKind::Reference && flags.times_operators)
      entry["operators"] = operators_json(*c, config.depth, flags.profile);
    if (name == "dynamic") result["least_changes"] = least_changes(c->plan());
    if (name == "static") continue;
    entry["speedup"] = complete.milliseconds().median / c->milliseconds().median;
    entry["realised_share"] = entry["speedup"].get<double>() * entry["required_share"].get<double>();
  }
  // The numbers of the last, which has all that was asked for, where scripts look for them.
  for (const auto& [key, value] : result[names.back()].items()) {
    if (value.is_number()) result[key] = value;
  }
  result["peak_rss_mb"] = peak_rss_mb();
  cli.print(result, [&] { print_result(result); });
  if (!flags.csv.empty()) write_csv(flags.csv, result);  // after the result is out: it may fail
  return 0;
}

}  // namespace dydit
