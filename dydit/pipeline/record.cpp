// JSON and text of a run.
#include "dydit/pipeline/record.h"

#include <algorithm>
#include <limits>
#include <type_traits>

#include <fmt/ranges.h>

#include "dydit/base/dtype.h"
#include "dydit/base/error.h"
#include "dydit/base/version.h"
#include "dydit/diffusion/schedule.h"
#include "dydit/io/file.h"
#include "dydit/io/json.h"
#include "dydit/io/text.h"
#include "dydit/pipeline/decoder.h"

namespace dydit {
namespace {

using nlohmann::json;

constexpr double kGiga = 1e9;
constexpr size_t kHashShown = 10;     // as image tools do
constexpr int kMost = 1'000'000'000;  // more of anything is no run of ours

// An object of a record that anyone may have written.
class Foreign {
 public:
  explicit Foreign(const json& object) : object_(object) {}

  bool has(const char* key) const { return object_.contains(key); }
  Foreign at(const char* key) const {
    if (!has(key) || !object_[key].is_object()) fail(key);
    return Foreign(object_[key]);
  }
  template <typename T>
  T number(const char* key, T low, T high) const {
    const json value = get(key);
    if (!is_within(value, low, high)) fail(key);
    return value.get<T>();
  }
  std::vector<int> numbers(const char* key, int high) const {
    const json values = get(key);
    if (!values.is_array() || values.empty()) fail(key);
    std::vector<int> result;
    for (const json& value : values) {
      if (!is_within(value, 0, high)) fail(key);
      result.push_back(value.get<int>());
    }
    return result;
  }
  std::vector<double> times(const char* key) const {
    const json values = get(key);
    if (!values.is_array() || values.empty()) fail(key);
    std::vector<double> result;
    for (const json& value : values) {
      if (!value.is_number() || value < 0 || value >= kNumTrainTimesteps) fail(key);
      result.push_back(value.get<double>());
    }
    return result;
  }
  std::string text(const char* key) const {
    const json value = get(key);
    const std::string text = value.is_string() ? value.get<std::string>() : "";
    if (text.empty() || printable(text, text.npos) != text) fail(key);
    return text;
  }
  template <typename Names>
  std::string choice(const char* key, const Names& known) const {
    const std::string value = text(key);
    if (!known.find(value)) fail(key);
    return value;
  }

 private:
  template <typename T>  // of whole numbers none is negative
  static bool is_within(const json& value, T low, T high) {
    using Wide = std::conditional_t<std::is_integral_v<T>, uint64_t, double>;
    if (std::is_integral_v<T> ? !value.is_number_integer() : !value.is_number()) return false;
    if (std::is_integral_v<T> && !value.is_number_unsigned() && value.get<int64_t>() < 0) return false;
    return value.get<Wide>() >= static_cast<Wide>(low) && value.get<Wide>() <= static_cast<Wide>(high);
  }
  json get(const char* key) const { return has(key) ? object_[key] : json(); }
  [[noreturn]] void fail(const char* key) const {
    throw Error(fmt::format(
        "'{}' is {}: no dydit writes that, so no command can be given that makes the images again", key,
        has(key) ? printable(json_text(object_[key])) : "missing"));
  }

  const json& object_;
};

struct Command {
  std::string text = "dydit generate";

  template <typename T>
  void add(std::string_view flag, const T& value) {
    text += fmt::format(" {} {}", flag, shell_quote(fmt::format("{}", value)));
  }
  // A name that begins with a dash would be a flag.
  void add_file(std::string_view flag, const std::string& path) {
    add(flag, path.starts_with('-') ? "./" + path : path);
  }
  void add_vae(const Foreign& vae) {
    if (!vae.has("own")) add_file("--vae", vae.text("file"));
    if (vae.has("config")) add_file("--vae-config", vae.text("config"));
    if (const std::string dtype = vae.choice("dtype", kDtypeNames); dtype != "f32") add("--vae-dtype", dtype);
    if (vae.has("tiling")) add("--vae-tiling", vae.choice("tiling", kVaeTilingNames));
  }
};

// Two models on one path: which, and what each of them does.
json stitch_record(const Checkpoint& checkpoint, const GenerateOptions& options) {
  const Stitch& stitch = *options.stitch;
  const StitchedPlan stitched = stitched_plan(checkpoint, stitch, options);
  const StitchedMacs macs = stitched_macs(stitched, stitch.small->config, options.guided());
  const auto part = [&](bool small, int64_t work) {
    json result = {{"steps", 0}, {"gmacs", static_cast<double>(work) / kGiga}};
    for (size_t i = stitched.small.size(); i-- > 0;) {  // as they are taken
      if ((stitched.small[i] != 0) != small) continue;
      const double t = stitched.plan.steps[i].timestep;
      if (result["steps"] == 0) result["first"] = json_number(t);
      result["last"] = json_number(t);
      result["steps"] = result["steps"].get<int>() + 1;
    }
    return result;
  };
  return {{"file", printable(stitch.small->path.filename().string(), std::string::npos)},
          {"name", model_name(stitch.small->config)},
          {"sha256", stitch.small->sha256},
          {"ratio", stitch.ratio},
          {"small", part(true, macs.small)},
          {"large", part(false, macs.large)},
          {"required_share", static_cast<double>(macs.small + macs.large) /
                                 static_cast<double>(static_macs_per_sample(checkpoint.config, options))}};
}

}  // namespace

json run_record(const Checkpoint& checkpoint, const GenerateOptions& options, const json& loading) {
  const DiTConfig& config = checkpoint.config;
  const Mode mode = config.is_dynamic() ? options.mode : Mode::Static;
  const Spacing spacing = run_spacing(options, config.objective);
  // Of a plan file the entries are counted, which need not be what a number of steps would give.
  const bool by_steps =
      options.timesteps.empty() && options.total_steps() == evaluations(options.sampler, options.num_steps);
  json run = {{"version", kVersion},
              {"model",
               {{"file", printable(checkpoint.path.filename().string(), std::string::npos)},
                {"name", model_name(config)},
                {"sha256", checkpoint.sha256},
                {"weights", checkpoint.weights_key}}},
              {"classes", options.classes},
              {"num_images", options.num_images},
              {"seed", options.seed},
              {"noise", kNoiseNames[options.noise]},
              {"steps", by_steps ? options.num_steps : options.total_steps()},
              {"spacing", spacing.description},
              {"sampler", kSamplerNames[options.sampler.kind]},
              {"eta", options.sampler.eta},
              {"cfg_scale", options.cfg_scale},
              {"cfg_channels", options.channels_guided(config)},
              {"mode", kModeNames[mode]},
              {"dtype", kModelDtypeNames[options.dtype]},
              {"arithmetic", arithmetic_text(options.engine, options.dtype)},
              {"engine", kEngineNames[options.engine]},
              {"device", options.where.device.str()},
              {"batch", options.batch},
              {"threads", options.threads},
              {"size", config.input_size},
              {"static_gmacs", static_cast<double>(static_macs_per_sample(config, options)) / kGiga}};
  if (options.stride > 1) run["shard"] = fmt::format("{}/{}", options.first, options.stride);
  if (options.where.device.is_cuda()) {
    run["batch_invariant"] = options.where.batch_invariant;
    run["graphs"] = kGraphModeNames[options.where.graphs];
  }
  if (config.objective.continuous()) {
    run["objective"] = objective_text(config.objective);
    run["evaluations"] = options.total_steps();
  }
  if (is_sde(options.sampler.kind)) {
    const SamplerOptions& sampler = options.sampler;
    json sde = {{"diffusion_norm", sampler.diffusion_norm}, {"last_step", kLastStepNames[sampler.last]}};
    if (sampler.form) sde["diffusion_form"] = kDiffusionFormNames[*sampler.form];
    if (sampler.last_size) sde["last_step_size"] = *sampler.last_size;
    run["sde"] = sde;
  }
  if (options.stitch) run["stitch"] = stitch_record(checkpoint, options);
  if (!options.timesteps.empty()) {
    for (auto t = spacing.timesteps.rbegin(); t != spacing.timesteps.rend(); ++t)
      run["timesteps"].push_back(json_number(*t));
  }
  for (const char* key : {kVaeNote, kLatentScaleNote}) {
    if (const auto found = checkpoint.notes.find(key); found != checkpoint.notes.end())
      run["trained_on"][key] = printable(found->second, std::string::npos);
  }
  for (const auto& [key, value] : loading.items())
    run["loading"][key] =
        value.is_string() ? json(printable(value.get<std::string>(), std::string::npos)) : value;
  return run;
}

json plan_record(const Checkpoint& checkpoint, const GenerateOptions& options, const json& said) {
  return plan_record(
      checkpoint, options,
      complete_plan(options,
                    make_width_plan(checkpoint, run_spacing(options, checkpoint.config.objective).timesteps,
                                    options.mode)),
      said);
}

json plan_record(const Checkpoint& checkpoint, const GenerateOptions& options, const RunPlan& plan,
                 const json& said) {
  const std::string text = plan_text(*options.plan, checkpoint.config);
  json record = {
      {"name", printable(plan.name, std::string::npos)},
      {"sha256", sha256_hex(std::as_bytes(std::span(text)))},
      {"required_share", static_cast<double>(plan_macs(plan, options.guided())) /
                             static_cast<double>(static_macs_per_sample(checkpoint.config, options))},
      {"bytes_per_image", cache_bytes(plan, options, kept_type(options.engine, {.dtype = options.dtype}))}};
  for (const auto& [key, value] : said.items())
    record[key] = value.is_string() ? json(printable(value.get<std::string>(), std::string::npos)) : value;
  return record;
}

json said_policy(const PlanPolicy& policy) {
  const GuideOptions usual, &guide = policy.guide;
  json said = {{"cache", policy.cache}};
  if (!policy.levels.steps.empty()) said["weak_steps"] = policy.levels.steps;
  if (!policy.levels.from.empty()) said["level_from"] = policy.levels.from;
  if (guide.weak) said["guide_weak"] = true;
  if (guide.from != usual.from) said["guide_from"] = guide.from;
  if (guide.to != usual.to) said["guide_to"] = guide.to;
  if (guide.every != usual.every) said["guide_every"] = guide.every;
  return said;
}

std::string class_name_of(const Checkpoint& checkpoint, int label) {
  return checkpoint.class_names.empty() ? "" : printable(checkpoint.class_names[label], std::string::npos);
}

json image_record(const Checkpoint& checkpoint, const GenerateOptions& options,
                  const GeneratedSample& sample) {
  const double required = static_cast<double>(sample.work.required),
               executed = static_cast<double>(sample.work.executed),
               complete = static_cast<double>(static_macs_per_sample(checkpoint.config, options));
  json record = {{"index", sample.index},
                 {"class", sample.label},
                 {"class_name", class_name_of(checkpoint, sample.label)},
                 {"seconds", sample.seconds},
                 {"required_gmacs", required / kGiga},
                 {"executed_gmacs", executed / kGiga},
                 {"required_share", required / complete},
                 {"executed_share", executed / complete}};
  if (sample.token_share.defined()) {
    record["token_share"] = sample.token_share.mean(at::kDouble).item<double>();
  }
  if (sample.decode_seconds > 0) record["decode_seconds"] = sample.decode_seconds;
  return record;
}

PngText png_text(const json& run, const json& images) {
  std::vector<std::string> classes;
  for (const json& image : images) {
    const auto name = image["class_name"].get<std::string>();
    classes.push_back(name.empty() ? fmt::format("class {}", image["class"].get<int>()) : name);
  }
  json record = run;
  record["images"] = images;
  std::string parameters = fmt::format("{}\n", fmt::join(classes, ", "));
  if (run.contains("model")) {  // decoded latents may be anybody's
    const auto file = run["model"]["file"].get<std::string>();
    parameters += fmt::format(
        "Steps: {}, Sampler: {}, CFG scale: {}, Seed: {}, Size: {}x{}, Model hash: {}, Model: {}, ",
        run["steps"].get<int>(), run["sampler"].get<std::string>(), run["cfg_scale"].get<float>(),
        run["seed"].get<uint64_t>(), run["size"].get<int>(), run["size"].get<int>(),
        run["model"]["sha256"].get<std::string>().substr(0, kHashShown), file.substr(0, file.rfind('.')));
  }
  if (run.contains("vae"))
    parameters +=
        fmt::format("VAE hash: {}, VAE: {}, ", run["vae"]["sha256"].get<std::string>().substr(0, kHashShown),
                    run["vae"]["file"].get<std::string>());
  return {{"parameters", parameters + fmt::format("Version: dydit {}", kVersion)},
          {kRecordKey, json_text(record)},
          {"Software", fmt::format("dydit {}", kVersion)}};
}

std::string reproducing_command(const json& run) {
  const Foreign record(run);
  Command command;
  if (run.contains("latents")) {  // decoded
    command.text = "dydit decode";
    command.add_file("--latents", record.at("latents").text("file"));
    command.add_vae(record.at("vae"));
    return command.text;
  }
  command.add_file("--model", record.at("model").text("file"));
  if (run.contains("loading")) {
    const Foreign loading = record.at("loading");
    if (loading.has("num_heads")) command.add("--num-heads", loading.number<int>("num_heads", 1, kMost));
    if (loading.has("weights")) command.add("--weights", loading.text("weights"));
    if (loading.has("path")) command.add("--path", loading.choice("path", kPathNames));
    if (loading.has("prediction"))
      command.add("--prediction", loading.choice("prediction", kPredictionNames));
    if (loading.has("class_names")) command.add_file("--class-names", loading.text("class_names"));
  }
  const int num_images = record.number<int>("num_images", 1, kMost);
  command.add("--classes", fmt::format("{}", fmt::join(record.numbers("classes", kMost), ",")));
  command.add("-n", num_images);
  if (run.contains("shard")) command.add("--shard", record.text("shard"));
  command.add("--seed", record.number<uint64_t>("seed", 0, std::numeric_limits<uint64_t>::max()));
  const bool planned = run.contains("plan"), by_plan_file = planned && record.at("plan").has("file"),
             by_budget = planned && record.at("plan").has("budget");
  if (by_plan_file) {
    command.add_file("--plan", record.at("plan").text("file"));
  } else if (by_budget) {  // whose plan may have fewer steps
    command.add("--steps", record.at("plan").number<int>("steps_of_full", 1, kNumTrainTimesteps));
  } else if (run.contains("timesteps")) {
    command.add("--timesteps", fmt::format("{}", fmt::join(record.times("timesteps"), ",")));
  } else {
    command.add("--steps", record.number<int>("steps", 1, kNumTrainTimesteps));
  }
  command.add("--sampler", record.choice("sampler", kSamplerNames));
  if (run.contains("sde")) {
    const Foreign sde = record.at("sde");
    if (sde.has("diffusion_form"))
      command.add("--diffusion-form", sde.choice("diffusion_form", kDiffusionFormNames));
    command.add("--diffusion-norm", sde.number<float>("diffusion_norm", 0, kMost));
    command.add("--last-step", sde.choice("last_step", kLastStepNames));
    if (sde.has("last_step_size")) command.add("--last-step-size", sde.number<float>("last_step_size", 0, 1));
  }
  const float cfg_scale = record.number<float>("cfg_scale", 0, kMost);
  command.add("--cfg-scale", cfg_scale);
  if (cfg_scale > 1) command.add("--cfg-channels", record.number<int>("cfg_channels", 1, kMost));
  if (run.contains("stitch")) {
    const Foreign stitch = record.at("stitch");
    command.add_file("--stitch",
                     fmt::format("{}:{}", stitch.text("file"), stitch.number<double>("ratio", 0, 1)));
  }
  command.add("--mode", record.choice("mode", kModeNames));
  command.add("--dtype", record.choice("dtype", kModelDtypeNames));
  command.add("--engine", record.choice("engine", kEngineNames));
  if (run.contains("device") && record.text("device") != "cpu")
    command.add("--device", record.text("device"));
  if (run.contains("batch_invariant") && run["batch_invariant"] == false)
    command.text += " --no-batch-invariant";
  if (const float eta = record.number<float>("eta", 0, 1); eta != 0) command.add("--eta", eta);
  if (run.contains("noise") && record.choice("noise", kNoiseNames) != "philox") {
    command.add("--noise", "torch");
    command.add("--batch", num_images);
  }
  if (by_budget) {
    const Foreign plan = record.at("plan");
    command.add("--budget", plan.number<double>("budget", 0, 1));
    if (plan.has("plans")) command.add_file("--plans", plan.text("plans"));
    if (plan.has("force")) command.text += " --force";
  } else if (planned && !by_plan_file) {
    const Foreign plan = record.at("plan");
    command.add("--cache", plan.text("cache"));
    for (const auto& [key, flag] : {std::pair{"guide_from", "--guide-from"},
                                    {"guide_to", "--guide-to"},
                                    {"guide_every", "--guide-every"}}) {
      if (plan.has(key)) command.add(flag, plan.number<int>(key, 0, kNumTrainTimesteps));
    }
    for (const auto& [key, flag] :
         {std::pair{"weak_steps", "--weak-steps"}, {"level_from", "--level-from"}}) {
      if (plan.has(key))
        command.add(flag, fmt::format("{}", fmt::join(plan.numbers(key, kNumTrainTimesteps), ",")));
    }
    if (plan.has("guide_weak")) command.text += " --guide-weak";
  }
  if (run.contains("vae")) {
    command.add_vae(record.at("vae"));
  }
  if (run.contains("preview_step") && run.contains("preview_vae"))
    command.add_file("--preview-vae", record.at("preview_vae").text("file"));
  if (run.contains("preview_step"))
    command.add("--preview-every", record.number<int>("preview_step", 1, kNumTrainTimesteps - 1));
  if (run.contains("cost_map")) command.add("--cost-map", "cost-map.png");
  return command.text;
}

}  // namespace dydit
