// dydit inspect FILE: what a checkpoint is and what it costs; inspect_files.h for files of other kinds.
#include <algorithm>
#include <optional>

#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "cli.h"
#include "dydit/base/error.h"
#include "dydit/data/latents.h"
#include "dydit/diffusion/schedule.h"
#include "dydit/io/file.h"
#include "dydit/io/json.h"
#include "dydit/model/adapters.h"
#include "dydit/model/checkpoint.h"
#include "dydit/model/macs.h"
#include "dydit/model/quantization.h"
#include "dydit/pipeline/record.h"
#include "dydit/plan/policies.h"
#include "dydit/plan/run_plan.h"
#include "dydit/report/model_report.h"
#include "dydit/report/plan_picture.h"
#include "dydit/vae/autoencoder.h"
#include "inspect_autoencoder.h"
#include "inspect_files.h"
#include "inspect_latents.h"
#include "model_flags.h"
#include "targets.h"
#include "vae_flags.h"
#include "verbs.h"

namespace dydit {
namespace {

using nlohmann::json;

// Who says what the network predicts.
std::string objective_source(const Checkpoint& checkpoint) {
  if (!checkpoint.objective_source.empty()) return checkpoint.objective_source;
  return checkpoint.config.time_token ? "as all U-ViTs"
                                      : "nothing says otherwise; of a SiT --path and --prediction do";
}

json plan_json(const RunPlan& plan) {
  json steps = json::array();
  for (size_t s = 0; s < plan.steps.size(); ++s) {
    const StepPlan& step = plan.steps[s];
    json heads = json::array(), groups = json::array();
    for (int l = 0; l < plan.config.depth; ++l) {  // none where nothing is computed
      heads.push_back(step.computes(l, Branch::Attention) ? step.blocks[l].active_heads() : 0);
      groups.push_back(step.computes(l, Branch::Mlp) ? step.blocks[l].active_groups() : 0);
    }
    steps.push_back({{"timestep", json_number(step.timestep)},
                     {"heads", heads},
                     {"groups", groups},
                     {"level", step.level},
                     {"work_share", step_work_share(plan, static_cast<int>(s))}});
  }
  json result = {{"steps", steps}, {"nesting", nesting_share(plan)}};
  if (!plan.name.empty()) result["name"] = plan.name;
  return result;
}

json checkpoint_json(const Checkpoint& checkpoint, const std::optional<RunPlan>& plan) {
  const DiTConfig& config = checkpoint.config;
  json result = {
      {"file", checkpoint.path.string()},
      {"format", checkpoint.format},
      {"sha256", checkpoint.sha256},
      {"weights", checkpoint.weights_key},
      {"model", model_name(config)},
      {"config", config_to_json(config)},
      {"objective",
       {{"prediction", kPredictionNames[config.objective.prediction]},
        {"path", path_name(config.objective)},
        {"source", checkpoint.objective_source.empty() ? json() : json(checkpoint.objective_source)}}},
      {"tdw", config.width_routers},
      {"sdt", config.token_routers},
      {"parameters", checkpoint.num_parameters()},
      {"dtype", checkpoint.quantization
                    ? "int8"
                    : c10::toString(checkpoint.weights.at("blocks.0.attn.qkv.weight").scalar_type())},
      {"static_gmacs", static_cast<double>(static_macs(config)) / 1e9},
      {"router_gmacs", static_cast<double>(router_macs(config)) / 1e9},
      {"class_names", checkpoint.class_names}};
  if (const auto& how = checkpoint.quantization)
    result["quantization"] = {{"scheme", kQuantizationScheme},
                              {"version", kQuantizationVersion},
                              {"smoothing", how->smoothing},
                              {"images", how->images},
                              {"seed", how->seed},
                              {"parent_sha256", how->parent_sha256}};
  if (const AdapterConfig& adapter = config.adapter; adapter.kind != AdapterKind::None)
    result["adapter"] = {{"kind", kAdapterNames[adapter.kind]},
                         {"rank", adapter.rank},
                         {"experts", adapter.experts},
                         {"scale", adapter.scale},
                         {"mix", kAdapterMixNames[adapter.mix]},
                         {"parameters", adapter_parameters(config)},
                         {"base_sha256", checkpoint.adapter_base}};
  if (config.adapter.kind == AdapterKind::TdLora) {
    const Mixing mixing = mixing_of(checkpoint);
    result["adapter"]["mixing"] = {{"entropy", mixing.entropy}, {"range", mixing.range}};
  }
  if (checkpoint.lambda) result["lambda"] = *checkpoint.lambda;
  if (const auto& few = checkpoint.few_step)
    result["few_step"] = {{"kind", few->kind}, {"timesteps", few->timesteps}, {"guidance", few->guidance}};
  if (checkpoint.choices.size() > 1) {
    result["choices"] = json::array();
    for (const WeightsChoice& choice : checkpoint.choices) {
      json entry = {{"key", choice.key}, {"tensors", choice.tensors}, {"parameters", choice.parameters}};
      if (!choice.fault.empty()) entry["unusable"] = choice.fault;
      result["choices"].push_back(entry);
    }
  }
  if (!checkpoint.read_notes.empty()) result["notes"] = checkpoint.read_notes;
  if (plan) result["plan"] = plan_json(*plan);
  return result;
}

void print_plan(const json& plan, const Checkpoint& checkpoint) {
  const DiTConfig& config = checkpoint.config;
  print_out("{} ({} timesteps; a/b = active heads/groups of {} in each block{}; {} tokens counted)\n",
            plan.contains("name") ? fmt::format("plan {}", plan["name"].get<std::string>()) : "width plan",
            plan["steps"].size(), config.num_heads,
            plan.contains("name") ? ", 0 where it is not computed" : "",
            checkpoint.keep_counts ? "kept" : "all");
  print_out("  {:>{}}  {:>5}  blocks 0..{}\n", "t", config.objective.continuous() ? 7 : 4, "work",
            config.depth - 1);
  for (const json& step : plan["steps"]) {
    print_out("  {:>{}.4g}  {:>5.3f} ", step["timestep"].get<double>(), config.objective.continuous() ? 7 : 4,
              step["work_share"].get<double>());
    for (size_t b = 0; b < step["heads"].size(); ++b) {
      print_out(" {:>2}/{:<2}", step["heads"][b].get<int>(), step["groups"][b].get<int>());
    }
    print_out("\n");
  }
  print_out(
      "nesting: {:.3f} of (block, timestep) are prefixes of the parts ordered by how often they are on\n",
      plan["nesting"].get<double>());
}

void print_checkpoint(const json& result, const Checkpoint& checkpoint) {
  const DiTConfig& config = checkpoint.config;
  const double macs = result["static_gmacs"].get<double>();
  print_out("{}: {}{}\n", checkpoint.path.string(), checkpoint.format,
            checkpoint.weights_key.empty() ? "" : fmt::format(", weights '{}'", checkpoint.weights_key));
  if (checkpoint.choices.size() > 1) {
    for (const WeightsChoice& choice : checkpoint.choices) {
      print_out("weights     {:<20} {}\n", choice.key,
                choice.fault.empty() ? fmt::format("{} tensors, {:.2f} M parameters", choice.tensors,
                                                   static_cast<double>(choice.parameters) / 1e6)
                                     : "unusable");
    }
  }
  print_out("model       {}\n", result["model"].get<std::string>());
  print_out("blocks      {} x hidden {}, {} heads of {}, MLP {} in {} groups\n", config.depth,
            config.hidden_size, config.num_heads, config.head_size(), config.mlp_hidden, config.num_heads);
  print_out("input       {} channels, {}x{}, patch {} = {} tokens{}; {}; {}\n", config.in_channels,
            config.input_size, config.input_size, config.patch_size, config.num_tokens(),
            config.extras() > 1   ? ", behind those of label and time"
            : config.extras() > 0 ? ", behind that of time"
                                  : "",
            config.num_classes == 0 ? "no classes"
            : config.has_null_class ? fmt::format("{} classes", config.num_classes)
                                    : fmt::format("{} classes, no null class", config.num_classes),
            config.drops_variance ? "a learned sigma that is not used"
            : config.learn_sigma  ? "learned sigma"
                                  : "fixed sigma");
  print_out("predicts    {} ({})\n", objective_text(config.objective), objective_source(checkpoint));
  if (config.levels() > 1) print_out("patch sizes {}\n", levels_text(config));
  if (config.join != Join::None)
    print_out("long skips  {}, from block {} on\n", config.num_joins(), config.depth - config.num_joins());
  print_out("routers     width (TDW) {}, token (SDT) {}{}\n", config.width_routers ? "yes" : "no",
            config.token_routers ? "yes" : "no",
            checkpoint.lambda ? fmt::format(", lambda {}", *checkpoint.lambda) : "");
  print_out("parameters  {:.2f} M, {}\n", static_cast<double>(checkpoint.num_parameters()) / 1e6,
            result["dtype"].get<std::string>());
  if (config.adapter.kind == AdapterKind::TdLora) {
    const json& mixing = result["adapter"]["mixing"];
    print_out(
        "mixing      entropy of the experts' shares {:.3f} of the largest, by quarter of t; a share moves by "
        "{:.3f} over t\n",
        fmt::join(mixing["entropy"].get<std::vector<double>>(), " "), mixing["range"].get<double>());
  }
  if (config.adapter.kind != AdapterKind::None)
    print_out("adapters    {}, {:.4g} M parameters; base sha256 {}\n", adapter_text(config.adapter),
              static_cast<double>(adapter_parameters(config)) / 1e6, checkpoint.adapter_base);
  if (const auto& how = checkpoint.quantization) {
    print_out("quantised   {}, version {}, {}; of sha256 {}\n", kQuantizationScheme, kQuantizationVersion,
              how->images > 0 ? fmt::format("smoothed by {} of its images, exponent {}, seed {}", how->images,
                                            how->smoothing, how->seed)
                              : "not smoothed",
              how->parent_sha256);
  }
  print_out("forward     {:.4g} GMACs = {:.4g} GFLOPs a sample (complete model{})\n", macs, 2 * macs,
            config.is_dynamic()
                ? fmt::format("; routers add {:.3g} GMACs", result["router_gmacs"].get<double>())
                : "");
  if (const auto& few = checkpoint.few_step)
    print_out("few steps   distilled ({}) at {} timesteps, {} to {}, with guidance {} in its one row\n",
              few->kind, few->timesteps.size(), few->timesteps.front(), few->timesteps.back(), few->guidance);
  if (semantics_of(config) == Semantics::Diffusers)
    print_out("computed    as diffusers does, not as the original (docs/formats.md)\n");
  if (!checkpoint.class_names.empty()) {
    print_out("classes     {}\n", fmt::join(checkpoint.class_names, ", "));
  }
  print_out("sha256      {}\n", checkpoint.sha256);
  if (result.contains("plan")) print_plan(result["plan"], checkpoint);
}

}  // namespace

int run_inspect(const Args& args, Isa isa) {
  Cli cli("inspect",
          "Say what a checkpoint or autoencoder is and costs, what made images, or what a log holds.");
  std::string path, svg, csv, plan_file, vae_config, weak_steps, level_from;
  PlanPolicy policy;
  CheckpointOptions options;
  int plan_steps = 20;
  cli.app
      .add_option("file", path,
                  "Checkpoint, autoencoder, folder of latents, plan, PNG, npz or TensorBoard event file")
      ->required();
  add_checkpoint_options(cli, options);
  cli.add_number("--plan-steps", plan_steps, 1, 1000,
                 "Timesteps of the width plan shown for a DyDiT, spread over 0..999");
  cli.add_text("--plan", plan_file, "Plan file whose steps are shown with the model's widths");
  cli.add_text("--cache", policy.cache,
               std::string("Instead: a policy, for the timesteps of --plan-steps: ") + kPolicyHelp)
      ->type_name("POLICY");
  cli.add_text(
      "--weak-steps", weak_steps,
      "So many of their first steps with the larger patches of a model that has levels; of several a list");
  cli.add_text("--level-from", level_from, "Instead: from which timestep on; of several levels a list");
  add_vae_config(cli, vae_config);
  cli.add_text("--svg", svg, "Also draw the plan: heads, groups, actions and work over the timesteps");
  cli.add_text("--csv", csv, "Also write the plan's numbers");
  cli.parse(args);
  cli.one_of("--plan", "--cache");
  cli.one_of("--weak-steps", "--level-from");
  for (const char* flag : {"--weak-steps", "--level-from"})
    cli.needs(flag, plan_file.empty(), "no --plan, whose steps say their level");
  cli.within("--weak-steps", [&] { policy.levels.steps = whole_numbers(weak_steps); });
  cli.within("--level-from", [&] { policy.levels.from = whole_numbers(level_from); });
  cli.needs("--plan-steps", plan_file.empty(), "no --plan, which has steps of its own");

  const auto plan_flags_need = [&](bool met, const std::string& what) {
    for (const char* flag : {"--plan-steps", "--svg", "--csv"}) cli.needs(flag, met, what);
  };
  const auto checkpoint_flags_need = [&](bool met) {
    const std::string what = fmt::format("a checkpoint; {} is none", path);
    for (const char* flag : {"--num-heads", "--weights", "--path", "--prediction", "--plan", "--cache",
                             "--weak-steps", "--level-from"})
      cli.needs(flag, met, what);
    plan_flags_need(met, what);
  };
  std::error_code unreadable;              // is told when it is read
  std::shared_ptr<const MappedFile> file;  // held until all is read: it may change in between
  if (std::filesystem::is_regular_file(path, unreadable)) file = MappedFile::open(path);
  const bool autoencoder = is_autoencoder(path);
  cli.needs("--vae-config", autoencoder, fmt::format("an autoencoder; {} is none", path));
  if (autoencoder) {
    checkpoint_flags_need(false);
    inspect_autoencoder(cli, path, vae_config);
    return 0;
  }
  const bool has_spec = !plan_file.empty() || !policy.is_default();
  if (!std::filesystem::is_directory(path)) {  // else of shards
    if (!file) file = MappedFile::open(path);
    const InspectFile other = inspector_of(file->bytes());
    checkpoint_flags_need(!other);
    if (other) {
      other(cli, path, file->bytes());
      return 0;
    }
  } else if (latent_layout(path)) {
    checkpoint_flags_need(false);
    inspect_latents(cli, path);
    return 0;
  }
  const Checkpoint checkpoint = [&] {
    try {
      return load_model(cli, path, options);
    } catch (const Error&) {
      if (file) file->check_unchanged();  // says the cause where the fault is its effect
      throw;
    }
  }();
  plan_flags_need(
      checkpoint.config.is_dynamic() || has_spec,
      fmt::format("a width plan; {} is a static DiT, it has none, and no --plan or --cache", path));
  check_targets(cli, {{"--svg", svg}, {"--csv", csv}}, inputs_of(checkpoint, {plan_file}));
  std::optional<RunPlan> plan;
  if (has_spec) {
    const DiTConfig& config = checkpoint.config;
    PlanSpec spec = !plan_file.empty()
                        ? read_plan(plan_file, config)
                        : policy_plan(policy.cache, config, even_times(config.objective, plan_steps));
    cli.within("--weak-steps", [&] { apply_levels(policy.levels, config, spec); });
    check_spec(spec, config, /*guided=*/true, spec.name);
    plan = make_width_plan(checkpoint, spec.timesteps(), Mode::Dynamic);
    apply_spec(spec, /*guided=*/true, *plan);
  } else if (checkpoint.config.is_dynamic()) {
    plan = make_width_plan(checkpoint, even_times(checkpoint.config.objective, plan_steps), Mode::Dynamic);
  }
  const json result = checkpoint_json(checkpoint, plan);
  if (file) file->check_unchanged();
  checkpoint.check_unchanged();
  cli.print(result, [&] { print_checkpoint(result, checkpoint); });  // first: the files may fail
  if (!svg.empty()) write_output_file(svg, plan_svg(*plan, model_title(checkpoint)));
  if (!csv.empty()) write_output_file(csv, plan_csv(*plan));
  return 0;
}

}  // namespace dydit
