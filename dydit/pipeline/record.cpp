// JSON and text of a run.
#include "dydit/pipeline/record.h"

#include <fmt/ranges.h>

#include "dydit/base/error.h"
#include "dydit/io/json.h"
#include "dydit/io/text.h"

namespace dydit {
namespace {

using nlohmann::json;

constexpr double kGiga = 1e9;

}  // namespace

std::string_view sampler_name(SamplerKind kind) {
  switch (kind) {
    case SamplerKind::Ddpm:
      return "ddpm";
    case SamplerKind::Ddim:
      return "ddim";
    case SamplerKind::Dpm:
      break;
  }
  return "dpm++";
}
SamplerKind sampler_of(std::string_view name) {
  for (const SamplerKind kind : {SamplerKind::Ddpm, SamplerKind::Ddim, SamplerKind::Dpm}) {
    if (name == sampler_name(kind)) return kind;
  }
  throw UsageError(fmt::format("sampler '{}' is unknown; choose from ddpm, ddim, dpm++", name));
}
std::string_view noise_name(NoiseKind kind) { return kind == NoiseKind::Philox ? "philox" : "torch"; }
std::string_view dtype_flag(at::ScalarType dtype) { return dtype == at::kFloat ? "f32" : "bf16"; }
std::string_view mode_name(Mode mode) { return mode == Mode::Dynamic ? "dynamic" : "static"; }

json run_record(const Checkpoint& checkpoint, const GenerateOptions& options) {
  const DiTConfig& config = checkpoint.config;
  const Mode mode = config.is_dynamic() ? options.mode : Mode::Static;
  const Spacing spacing = run_spacing(options);
  json run = {{"version", kVersion},
              {"model",
               {{"file", checkpoint.path.filename().string()},
                {"name", model_name(config)},
                {"sha256", checkpoint.sha256},
                {"weights", checkpoint.weights_key}}},
              {"classes", options.classes},
              {"num_images", options.num_images},
              {"seed", options.seed},
              {"noise", noise_name(options.noise)},
              {"steps", options.total_steps()},
              {"spacing", spacing.description},
              {"sampler", sampler_name(options.sampler.kind)},
              {"eta", options.sampler.eta},
              {"cfg_scale", options.cfg_scale},
              {"cfg_channels", options.channels_guided(config)},
              {"mode", mode_name(mode)},
              {"dtype", dtype_flag(options.dtype)},
              {"engine", engine_name(options.engine)},
              {"device", "cpu"},
              {"batch", options.batch},
              {"threads", options.threads},
              {"size", config.input_size},
              {"static_gmacs", static_cast<double>(static_macs_per_sample(config, options)) / kGiga}};
  if (!options.timesteps.empty()) {
    run["timesteps"] = std::vector<int>(spacing.timesteps.rbegin(), spacing.timesteps.rend());
  }
  return run;
}

json image_record(const Checkpoint& checkpoint, const GenerateOptions& options,
                  const GeneratedSample& sample) {
  const double required = static_cast<double>(sample.work.required),
               executed = static_cast<double>(sample.work.executed),
               complete = static_cast<double>(static_macs_per_sample(checkpoint.config, options));
  const std::string class_name = checkpoint.class_names.empty() ? "" : checkpoint.class_names[sample.label];
  json record = {{"index", sample.index},
                 {"class", sample.label},
                 {"class_name", class_name},
                 {"seconds", sample.seconds},
                 {"required_gmacs", required / kGiga},
                 {"executed_gmacs", executed / kGiga},
                 {"required_share", required / complete},
                 {"executed_share", executed / complete}};
  if (sample.token_share.defined()) {
    record["token_share"] = sample.token_share.mean(at::kDouble).item<double>();
  }
  return record;
}

PngText png_text(const json& run, const json& images) {
  std::vector<std::string> classes;
  for (const json& image : images) {
    const auto name = image["class_name"].get<std::string>();
    classes.push_back(name.empty() ? fmt::format("class {}", image["class"].get<int>()) : name);
  }
  const auto file = run["model"]["file"].get<std::string>();
  const auto sha256 = run["model"]["sha256"].get<std::string>();
  json record = run;
  record["images"] = images;
  return {{"parameters",
           fmt::format(
               "{}\nSteps: {}, Sampler: {}, CFG scale: {}, Seed: {}, Size: {}x{}, Model hash: {}, Model: {}, "
               "Version: dydit {}",
               fmt::join(classes, ", "), run["steps"].get<int>(), run["sampler"].get<std::string>(),
               run["cfg_scale"].get<float>(), run["seed"].get<uint64_t>(), run["size"].get<int>(),
               run["size"].get<int>(), sha256.substr(0, 10), file.substr(0, file.rfind('.')), kVersion)},
          {kRecordKey, json_text(record)},
          {"Software", fmt::format("dydit {}", kVersion)}};
}

std::string reproducing_command(const json& run) {
  const std::string steps =
      run.contains("timesteps")
          ? fmt::format("--timesteps {}", fmt::join(run["timesteps"].get<std::vector<int>>(), ","))
          : fmt::format("--steps {}", run.at("steps").get<int>());
  std::string command = fmt::format(
      "dydit generate --model {} --classes {} -n {} --seed {} {} --sampler {} --cfg-scale {} "
      "--cfg-channels {} --mode {} --dtype {} --engine {}",
      shell_quote(run.at("model").at("file").get<std::string>()),
      fmt::join(run.at("classes").get<std::vector<int>>(), ","), run.at("num_images").get<int>(),
      run.at("seed").get<uint64_t>(), steps, run.at("sampler").get<std::string>(),
      run.at("cfg_scale").get<float>(), run.at("cfg_channels").get<int>(), run.at("mode").get<std::string>(),
      run.at("dtype").get<std::string>(), run.at("engine").get<std::string>());
  if (run.at("eta").get<float>() != 0) command += fmt::format(" --eta {}", run.at("eta").get<float>());
  if (run.value("noise", "philox") != "philox") {
    command += fmt::format(" --noise {} --batch {}", run.at("noise").get<std::string>(),
                           run.at("num_images").get<int>());
  }
  return command;
}

}  // namespace dydit
