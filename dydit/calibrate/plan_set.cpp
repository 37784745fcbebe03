#include "dydit/calibrate/plan_set.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>

#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "dydit/base/error.h"
#include "dydit/io/bytes.h"
#include "dydit/io/file.h"
#include "dydit/io/json.h"
#include "dydit/io/json_object.h"
#include "dydit/io/text.h"
#include "dydit/plan/stated_plan.h"

namespace dydit {
namespace {

using Json = nlohmann::json;

constexpr int kVersion = 1;
constexpr size_t kMaxBytes = 16 << 20;
constexpr int kMaxDepth = 11;  // a plan's, three levels down
constexpr int kMostPlans = 10'000;
constexpr double kScaleTolerance =
    0.1 + 1e-6;  // 2.2 is a float; of the guidance scale: plans are good beside the one calibrated

const std::array<std::string, 5> kTopKeys = {"dydit_plans", "model_sha256", "run", "measured", "plans"};
const std::array<std::string, 4> kSdeKeys = {"diffusion_form", "diffusion_norm", "last_step",
                                             "last_step_size"};
const std::array<std::string, 9> kRunKeys = {"sde",          "sampler", "eta",   "timesteps", "cfg_scale",
                                             "cfg_channels", "mode",    "dtype", "path"};
const std::array<std::string, 4> kMeasuredKeys = {"images", "seeds", "classes", "seconds"};
const std::array<std::string, 6> kPlanKeys = {"cost", "cost_max", "error", "error_se", "psnr", "plan"};

double not_negative(const JsonObject& object, const char* key) {
  const Json& value = object.get(key);
  DYDIT_CHECK(value.is_number() && value.get<double>() >= 0, "{}: {} is {}; a number from 0 is wanted",
              object.at(), key, shown(value));
  return value.get<double>();
}

template <typename Names>
auto choice(const JsonObject& object, const char* key, const Names& names) {
  const std::string word = object.text(object.get(key), key);
  const auto value = names.find(word);
  DYDIT_CHECK(value, "{}: {} is {}; {} are known", object.at(), key, quote(word),
              fmt::join(names.names(), ", "));
  return *value;
}

CalibratedRun parse_run(const Json& json, const std::string& name) {
  const JsonObject in(json, name + ": run", kRunKeys);
  CalibratedRun run;
  run.sampler.kind = choice(in, "sampler", kSamplerNames);
  run.sampler.eta = static_cast<float>(not_negative(in, "eta"));
  if (const Json* sde = in.find("sde")) {
    const JsonObject of(*sde, in.at() + ": sde", kSdeKeys);
    if (of.find("diffusion_form")) run.sampler.form = choice(of, "diffusion_form", kDiffusionFormNames);
    run.sampler.diffusion_norm = static_cast<float>(not_negative(of, "diffusion_norm"));
    run.sampler.last = choice(of, "last_step", kLastStepNames);
    if (of.find("last_step_size"))
      run.sampler.last_size = static_cast<float>(not_negative(of, "last_step_size"));
  }
  const std::string path = in.text("path").value_or("table");
  const auto known = kPathNames.find(path);
  DYDIT_CHECK(known, "{}: path is {}; {} are known", in.at(), quote(path),
              fmt::join(kPathNames.names(), ", "));
  const Objective objective = {known->path, Prediction::Noise, known->clock};
  for (const Json& value : in.list(in.get("timesteps"), "timesteps")) {
    DYDIT_CHECK(!objective.continuous() || (value.is_number() && is_time(objective, value.get<double>())),
                "{}: timesteps holds {}; a number from 0 to {} is wanted", in.at(), shown(value),
                last_time(objective));
    const double t = objective.continuous() ? value.get<double>()
                                            : in.whole(value, "timesteps", 0, kNumTrainTimesteps - 1);
    DYDIT_CHECK(run.timesteps.empty() ||
                    noise_share(objective, t) < noise_share(objective, run.timesteps.back()) ||
                    (objective.continuous() && t == run.timesteps.back()),
                "{}: timesteps holds {} after {}; they fall{}", in.at(), t, run.timesteps.back(),
                objective.continuous() ? " in their noise" : "");
    run.timesteps.push_back(t);
  }
  DYDIT_CHECK(!run.timesteps.empty(), "{}: timesteps is empty", in.at());
  std::reverse(run.timesteps.begin(), run.timesteps.end());
  run.cfg_scale = static_cast<float>(not_negative(in, "cfg_scale"));
  run.cfg_channels = in.whole("cfg_channels", 1);
  run.mode = choice(in, "mode", kModeNames);
  run.dtype = choice(in, "dtype", kModelDtypeNames);
  return run;
}

void parse_measured(const Json& json, const std::string& name, PlanSet& set) {
  const JsonObject in(json, name + ": measured", kMeasuredKeys);
  set.measured.images = in.whole("images", 1);
  for (const Json& seed : in.list(in.get("seeds"), "seeds")) {
    DYDIT_CHECK(seed.is_number_unsigned(), "{}: seeds holds {}; whole numbers from 0 are wanted", in.at(),
                shown(seed));
    set.measured.seeds.push_back(seed.get<uint64_t>());
  }
  for (const Json& label : in.list(in.get("classes"), "classes"))
    set.measured.classes.push_back(in.whole(label, "classes", 0));
  set.measured.seconds = not_negative(in, "seconds");
}

MeasuredPlan parse_measured_plan(const Json& json, const std::string& at) {
  const JsonObject in(json, at, kPlanKeys);
  MeasuredPlan plan{.cost = not_negative(in, "cost"),
                    .cost_max = not_negative(in, "cost_max"),
                    .error = not_negative(in, "error"),
                    .error_se = not_negative(in, "error_se")};
  if (const std::optional<float> psnr = in.real("psnr")) plan.psnr = *psnr;
  DYDIT_CHECK(plan.cost <= plan.cost_max, "{}: cost is {}, above cost_max, {}", at, plan.cost, plan.cost_max);
  plan.plan = parse_stated_plan(in.get("plan"), at + ": plan").spec;
  return plan;
}

// What belongs to an SDE sampler, as a key of the run; nothing for others.
std::string sde_text(const SamplerOptions& sampler) {
  if (!is_sde(sampler.kind)) return "";
  std::string text = fmt::format(", \"sde\": {{\"diffusion_norm\": {}, \"last_step\": \"{}\"",
                                 sampler.diffusion_norm, kLastStepNames[sampler.last]);
  if (sampler.form) text += fmt::format(", \"diffusion_form\": \"{}\"", kDiffusionFormNames[*sampler.form]);
  if (sampler.last_size) text += fmt::format(", \"last_step_size\": {}", *sampler.last_size);
  return text + "}";
}

std::string number(double value) { return fmt::format("{:.6g}", value); }

}  // namespace

CalibratedRun calibrated_run(const DiTConfig& config, const GenerateOptions& options) {
  return {.sampler = options.sampler,
          .timesteps = run_spacing(options, config.objective).timesteps,
          .cfg_scale = options.cfg_scale,
          .cfg_channels = options.channels_guided(config),
          .mode = config.is_dynamic() ? options.mode : Mode::Static,
          .dtype = options.dtype};
}

std::filesystem::path plan_set_path(const std::filesystem::path& model) {
  std::filesystem::path path = model.has_filename() ? model : model.parent_path();
  if (!std::filesystem::is_directory(path)) path.replace_extension();
  return path += ".plans.json";
}

std::string plan_set_text(const PlanSet& set, const DiTConfig& config) {
  const CalibratedRun& run = set.run;
  std::string text = fmt::format(
      "{{\"dydit_plans\": {}, \"model_sha256\": \"{}\",\n"
      " \"run\": {{\"sampler\": \"{}\", \"eta\": {}, \"timesteps\": [{}], \"cfg_scale\": {}, "
      "\"cfg_channels\": {}, \"mode\": \"{}\", \"dtype\": \"{}\"{}}},\n"
      " \"measured\": {{\"images\": {}, \"seeds\": [{}], \"classes\": [{}], \"seconds\": {:.1f}}},\n"
      " \"plans\": [",
      kVersion, set.model_sha256, kSamplerNames[run.sampler.kind], run.sampler.eta,
      fmt::join(run.timesteps.rbegin(), run.timesteps.rend(), ", "), run.cfg_scale, run.cfg_channels,
      kModeNames[run.mode], kModelDtypeNames[run.dtype],
      (config.objective.continuous() ? fmt::format(", \"path\": \"{}\"", path_name(config.objective)) : "") +
          sde_text(run.sampler),
      set.measured.images, fmt::join(set.measured.seeds, ", "), fmt::join(set.measured.classes, ", "),
      set.measured.seconds);
  const char* between = "\n";
  for (const MeasuredPlan& plan : set.plans) {
    text += fmt::format("{}{{\"cost\": {}, \"cost_max\": {}, \"error\": {}, \"error_se\": {}, ", between,
                        number(plan.cost), number(plan.cost_max), number(plan.error), number(plan.error_se));
    if (plan.psnr) text += fmt::format("\"psnr\": {}, ", number(*plan.psnr));
    std::string own = plan_text(plan.plan, config);
    own.pop_back();  // its last line's end
    text += "\"plan\": " + own + "}";
    between = ",\n";
  }
  return text + "]}\n";
}

PlanSet parse_plan_set(std::string_view text, const std::string& name) {
  DYDIT_CHECK(text.size() <= kMaxBytes, "{}: plans of {} bytes; at most {} are read", name, text.size(),
              kMaxBytes);
  const Json json = read_json(text, kMaxDepth, name);
  DYDIT_CHECK(json.is_object() && json.contains("dydit_plans"),
              "{}: holds no plans: an object with dydit_plans is wanted, as dydit calibrate writes it", name);
  DYDIT_CHECK(is_whole(json["dydit_plans"], kVersion),
              "{}: dydit_plans is {}, but this program reads {}; use a newer dydit", name,
              shown(json["dydit_plans"]), kVersion);
  const JsonObject top(json, name, kTopKeys);
  PlanSet set{.model_sha256 = top.text(top.get("model_sha256"), "model_sha256"),
              .run = parse_run(top.get("run"), name)};
  parse_measured(top.get("measured"), name, set);
  const Json& plans = top.list(top.get("plans"), "plans");
  DYDIT_CHECK(!plans.empty() && plans.size() <= kMostPlans, "{}: holds {} plans; 1 to {} are wanted", name,
              plans.size(), kMostPlans);
  for (size_t i = 0; i < plans.size(); ++i)
    set.plans.push_back(parse_measured_plan(plans[i], fmt::format("{}: plan {}", name, i + 1)));
  std::stable_sort(set.plans.begin(), set.plans.end(),
                   [](const MeasuredPlan& a, const MeasuredPlan& b) { return a.cost_max < b.cost_max; });
  return set;
}

PlanSet read_plan_set(const std::filesystem::path& path) {
  return parse_plan_set(text_of(MappedFile::open(path)->bytes()), path.string());
}

void check_plan_set(const PlanSet& set, const Checkpoint& checkpoint, const GenerateOptions& options,
                    const std::string& name) {
  DYDIT_USAGE_CHECK(set.model_sha256 == checkpoint.sha256,
                    "{}: its plans are for the model of SHA-256 {:.10}, {} is of {:.10}; calibrate this one",
                    name, printable(set.model_sha256), checkpoint.path.string(), checkpoint.sha256);
  const CalibratedRun run = calibrated_run(checkpoint.config, options);
  const auto check = [&](bool good, const char* what, const auto& wanted, const auto& got) {
    DYDIT_USAGE_CHECK(good, "{}: its plans are for {} {}, this run has {}; calibrate it", name, what, wanted,
                      got);
  };
  const auto steps_text = [](const CalibratedRun& run) {
    return fmt::format("{}, {} to {}", run.timesteps.size(), run.timesteps.back(), run.timesteps.front());
  };
  check(set.run.sampler.kind == run.sampler.kind, "sampler", kSamplerNames[set.run.sampler.kind],
        kSamplerNames[run.sampler.kind]);
  check(set.run.sampler == run.sampler || !is_sde(run.sampler.kind), "SDE", quote(sde_text(set.run.sampler)),
        quote(sde_text(run.sampler)));
  check(set.run.sampler.eta == run.sampler.eta, "eta", set.run.sampler.eta, run.sampler.eta);
  check(set.run.timesteps == run.timesteps, "timesteps", steps_text(set.run), steps_text(run));
  check(set.run.mode == run.mode, "mode", kModeNames[set.run.mode], kModeNames[run.mode]);
  check(std::abs(set.run.cfg_scale - run.cfg_scale) <= kScaleTolerance * set.run.cfg_scale &&
            (set.run.cfg_scale > 1) == (run.cfg_scale > 1),
        "guidance scale", set.run.cfg_scale, run.cfg_scale);
  check(run.cfg_scale <= 1 || set.run.cfg_channels == run.cfg_channels, "guided channels",
        set.run.cfg_channels, run.cfg_channels);
}

nlohmann::json said_budget(double budget, int steps, const MeasuredPlan& chosen) {
  return {{"budget", budget},
          {"steps_of_full", steps},
          {"cost", chosen.cost},
          {"error", chosen.error},
          {"error_se", chosen.error_se}};
}

const MeasuredPlan* plan_within(const PlanSet& set, double budget) {
  const MeasuredPlan* best = nullptr;
  for (const MeasuredPlan& plan : set.plans) {
    if (plan.cost_max <= budget && (!best || plan.error < best->error)) best = &plan;
  }
  return best;
}

}  // namespace dydit
