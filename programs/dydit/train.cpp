// dydit train and dydit finetune: flags -> a starting checkpoint and options -> the one trainer.
#include <optional>

#include <ATen/Parallel.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>
#include <torch/headeronly/version.h>

#include "dydit/base/dtype.h"
#include "dydit/base/error.h"
#include "dydit/base/isa.h"
#include "dydit/base/version.h"
#include "dydit/io/file.h"
#include "dydit/io/png.h"
#include "dydit/model/adapters.h"
#include "dydit/model/edit.h"
#include "dydit/model/macs.h"
#include "dydit/model/quantization.h"
#include "dydit/pipeline/generate.h"
#include "dydit/pipeline/pixels.h"
#include "dydit/pipeline/sink.h"
#include "model_flags.h"
#include "run_folder.h"
#include "signals.h"
#include "train_flags.h"
#include "verbs.h"

namespace dydit {
namespace {

// A grid of the EMA's samples, the same seeds every time, as RUN/samples/STEP.png and in the events.
void write_sample_grid(const Checkpoint& ema, int64_t step, const TrainFlags& flags, Watch& watch) {
  const GenerateOptions options{
      flags.sample_request(ema.config),
      {.threads = flags.threads},
      flags.options.dtype,
      ema.config.adapter.kind == AdapterKind::TdLora ? EngineKind::Reference : EngineKind::Cpu};
  std::vector<Image> images;
  GenerateCallbacks callbacks;
  callbacks.on_sample = [&](GeneratedSample&& sample) { images.push_back(to_image(sample.sample)); };
  generate(ema, options, callbacks);
  const Image grid = make_grid(images, kGridColumns);
  const std::string path = (flags.run.run / "samples" / fmt::format("{:07}.png", step)).string();
  write_png(path, grid, {{"Software", "dydit"}});
  watch.add_image(step, grid.width, grid.height, MappedFile::open(path)->bytes());
}

// "DiT-S/2" or "DiT (8 blocks, hidden 256, ...)" -> a folder's name
std::string folder_name(const DiTConfig& config) {
  std::string name = model_name(config);
  if (const size_t end = name.find(' '); end != name.npos)
    name =
        fmt::format("{}-{}x{}/{}", name.substr(0, end), config.depth, config.hidden_size, config.patch_size);
  std::replace(name.begin(), name.end(), '/', '-');
  return name;
}

// What a resumed run is told when it is otherwise: bits depend on it.
nlohmann::json surroundings_of(const TrainFlags& flags, int processes) {
  return {{"threads", flags.threads},      {"processes", processes},
          {"device", flags.device},        {"instructions", isa_name(active_isa())},
          {"processor", cpu_model_name()}, {"dydit", kVersion},
          {"libtorch", TORCH_VERSION}};
}

// The last row of the log and where the run lies. A resumed run that had done what was asked, or more,
// trained nothing and wrote nothing.
void print_result(const Cli& cli, const TrainFlags& flags, const Dataset& dataset, int64_t done,
                  const std::optional<LogRow>& row) {
  const std::string model = model_path(flags.run.run, done).string();
  nlohmann::json result = {{"run", flags.run.run.string()},
                           {"checkpoint", model},
                           {"steps", done},
                           {"trained", row.has_value()},
                           {"images", dataset.size()},
                           {"left_out", dataset.left_out().kinds},
                           {"options", options_to_json(flags.options)}};
  const LogRow last = row.value_or(LogRow());
  const nlohmann::json numbers = {
      {"loss", last.terms.loss()},   {"mse", last.terms.mse},
      {"vb", last.terms.vb},         {"ratio_training", last.terms.ratio},
      {"grad_norm", last.grad_norm}, {"ratio_inference", last.terms.inference_ratio},
      {"skipped", last.skipped},     {"images_per_second", last.images_per_second}};
  for (const auto& [name, value] : numbers.items()) result[name] = row ? value : nlohmann::json();
  const std::vector<std::string> hooks = hook_names(flags.options.hooks);
  for (size_t i = 0; i < hooks.size(); ++i)
    result[hooks[i]] = row ? nlohmann::json(last.terms.hooks[i]) : nlohmann::json();
  if (flags.options.distill.kind != DistillKind::None) {
    result["consistency"] = result["mse"];
    for (const char* name : {"mse", "vb"}) result.erase(name);
  }
  cli.print(result, [&] {
    if (row) return print_out("wrote {}\n", model);
    print_out("already at step {}, {} asked; nothing to train: {}\n", done, flags.options.total_steps, model);
  });
}

std::string timesteps_text(const TrainOptions& options, const Objective& objective) {
  const TimestepSampler sampler(options.timesteps, objective);
  std::vector<double> shares;
  for (int q = 0; q < kQuarters; ++q) shares.push_back(sampler.share_of(q, kQuarters));
  return fmt::format("times    {}: {:.3f} of the samples in the quarters of the noise share{}",
                     kTimestepDrawNames[options.timesteps.draw], fmt::join(shares, " "),
                     options.dynamic && !sampler.evenly() ? "; work is counted as over even times" : "");
}

// What is trained where not all of the model is.
std::string trained_text(const Checkpoint& start) {
  const DiTConfig& config = start.config;
  const auto millions = [](int64_t count) { return static_cast<double>(count) / 1e6; };
  const int64_t adapters = adapter_parameters(config), routers = router_parameters(config),
                all = start.num_parameters();
  std::vector<std::string> parts;
  if (adapters > 0)
    parts.push_back(fmt::format("adapters {:.4g} M ({})", millions(adapters), adapter_text(config.adapter)));
  if (routers > 0) parts.push_back(fmt::format("routers {:.4g} M", millions(routers)));
  return fmt::format("trains   {:.4g} M of {:.4g} M parameters ({:.1f} %): {}; all else rests",
                     millions(adapters + routers), millions(all),
                     100.0 * static_cast<double>(adapters + routers) / static_cast<double>(all),
                     fmt::join(parts, ", "));
}

std::string hooks_text(const HookOptions& hooks) {
  std::vector<std::string> parts;
  if (hooks.align != Align::None)
    parts.push_back(fmt::format(
        "{} of block {}{}, weight {:g}{}", kAlignNames[hooks.align], hooks.block,
        hooks.align == Align::Self ? fmt::format(" to block {} of the average", hooks.teacher_block) : "",
        hooks.align_weight(), hooks.until > 0 ? fmt::format(", until step {}", hooks.until) : ""));
  if (hooks.plr > 0) parts.push_back(fmt::format("every block predicts the target, weight {:g}", hooks.plr));
  return fmt::format("features {}", fmt::join(parts, "; "));
}

void run_training(Cli& cli, TrainFlags& flags, const Checkpoint& start, const Dataset& dataset,
                  Communicator& processes) {
  check_training(dataset, start.config, flags.options, processes.size());  // before there is a folder
  Console& console = cli.console;
  const bool root = processes.rank() == 0;
  TrainCallbacks callbacks;
  if (root) {
    callbacks.on_text = [&](const std::string& line) { console.info(line); };
    callbacks.on_warning = [&](const std::string& line) { console.warning(line); };
    callbacks.on_progress = [&](const Progress& progress) { console.progress(progress); };
  }
  flags.run.identity = run_identity(start, dataset, flags.options);
  if (flags.run.resume) {
    flags.run.run =
        find_run_folder(flags.results_dir, flags.resume, flags.run.identity, callbacks.on_warning);
    processes.barrier();  // nobody changes the folder before all have looked
  } else {
    flags.run.run = make_run_folder(flags.results_dir, folder_name(start.config), processes);
  }
  flags.run.surroundings = surroundings_of(flags, processes.size());
  callbacks.cancel = &install_cancel_handler(SecondSignal::Waits);
  if (root) {
    console.info(fmt::format("run      {}", flags.run.run.string()));
    console.info(fmt::format("model    {}, {:.2f} M parameters, {:.4g} GMACs a forward",
                             model_name(start.config), static_cast<double>(start.num_parameters()) / 1e6,
                             static_cast<double>(static_macs(start.config)) / 1e9));
    console.info(fmt::format("data     {}: {} {} {}x{}x{}, {} classes{}", flags.data.path, dataset.size(),
                             dataset.latents() ? "latents" : "images", dataset.channels(), dataset.side(),
                             dataset.side(), start.config.num_classes, left_out_text(dataset, cli.verbose)));
    tell_notes(dataset, console);
    console.info(fmt::format("training {} steps of {} images, {} process(es) x {} threads, {}, {}, seed {}",
                             flags.options.total_steps, flags.options.global_batch, processes.size(),
                             flags.threads, flags.device, kDtypeNames[flags.options.dtype],
                             flags.options.seed));
    if (start.config.levels() > 1) console.info(fmt::format("patches  {}", levels_text(start.config)));
    if (start.config.adapter.kind != AdapterKind::None || flags.options.trained != TrainedPart::All)
      console.info(trained_text(start));
    if (const DistillOptions& distill = flags.options.distill; distill.kind != DistillKind::None)
      console.info(fmt::format("teacher  {}: {}, sha256 {:.10}; guidance {}, loss {}, average's decay {}",
                               distill.teacher->path.string(), model_name(distill.teacher->config),
                               distill.teacher->sha256, distill.guidance, kConsistencyLossNames[distill.loss],
                               flags.options.ema_decay));
    if (flags.options.timesteps.draw != TimestepDraw::Stratified)
      console.info(timesteps_text(flags.options, start.config.objective));
    if (flags.options.hooks.any()) console.info(hooks_text(flags.options.hooks));
  }
  std::optional<LogRow> last;
  callbacks.on_row = [&](const LogRow& row) {
    console.info(log_line(row));
    last = row;
  };
  callbacks.on_sample = [&](const Checkpoint& ema, int64_t step, Watch& watch) {
    write_sample_grid(ema, step, flags, watch);
  };
  const int64_t done = train(start, dataset, flags.options, flags.run, processes, callbacks);
  if (root) print_result(cli, flags, dataset, done, last);
}

// What train and finetune share once the flags are known. `prepare` makes the start of what --model holds
// (without one: nothing) and of the data.
int run_from(Cli& cli, TrainFlags& flags, std::string_view why_no_routers,
             const std::function<Checkpoint(const Checkpoint& given, const Dataset&)>& prepare) {
  const auto processes = make_communicator();
  flags.choose_device(processes->size());
  at::set_num_threads(flags.threads);
  Checkpoint given;
  if (!flags.model.empty()) {
    given = load_model(cli, flags.model, flags.checkpoint);
    refuse_quantized(given, "training");
    DYDIT_USAGE_CHECK(!given.config.is_dynamic(), "{}: has routers{}", flags.model, why_no_routers);
    DYDIT_USAGE_CHECK(
        !given.few_step || flags.options.distill.kind != DistillKind::None,
        "{}: is distilled to few steps, which plain training would undo; give --distill lcm, or "
        "start from its teacher",
        flags.model);
    flags.fit_data_to(given);
  }
  flags.load_teacher(cli);
  const auto dataset = flags.data.load(flags.threads);
  cli.needs("--skip-broken", dataset->latents() == nullptr, "images; these are latents");
  Checkpoint start = flags.with_parts(cli, prepare(given, *dataset));
  note_latents(*dataset, start, cli.console);
  cli.needs("--sample-every", makes_pixels(start.config),
            "a model of pixels; make images of its checkpoints with dydit generate --vae");
  flags.load_encoder(cli);
  flags.resolve(*dataset);
  run_training(cli, flags, start, *dataset, *processes);
  return 0;
}

struct SizeFlags {
  std::string size, family = "dit";
  bool unconditional = false;
  int hidden = 0, depth = 0, heads = 0, patch = 0;
};

// What a new model is beside its size.
DiTConfig with_family(DiTConfig config, const SizeFlags& flags, const CheckpointOptions& options) {
  if (flags.family == "uvit") {
    DYDIT_USAGE_CHECK(config.depth % 2 == 1 && config.depth > 1,
                      "--depth {}: a U-ViT has an odd number of blocks above 1, one of them in the middle",
                      config.depth);
  }
  if (flags.family == "skip-dit") {
    config.join = Join::Normed;
    DYDIT_USAGE_CHECK(config.depth % 2 == 0, "--depth {}: a Skip-DiT has an even number of blocks",
                      config.depth);
  }
  const bool sit = flags.family == "sit";
  const PathName path = kPathNames.at(!options.path.empty() ? options.path : sit ? "linear" : "table");
  const Prediction prediction = !options.prediction.empty() ? kPredictionNames.at(options.prediction)
                                : only_noise(path)          ? Prediction::Noise
                                                            : Prediction::Velocity;
  DYDIT_USAGE_CHECK(!only_noise(path) || prediction == Prediction::Noise,
                    "--prediction velocity: of which path? --path linear, gvp or vp says it");
  DYDIT_USAGE_CHECK(!sit || path.path != Path::Table,
                    "--path table: is a DiT's; a SiT has linear, gvp or vp");
  return with_objective(config, {path.path, prediction, path.clock});
}

DiTConfig config_from_flags(const SizeFlags& flags, const CheckpointOptions& options,
                            const Dataset& dataset) {
  DiTConfig config;
  if (!flags.size.empty()) {
    config = named_config(flags.size);
  } else {
    DYDIT_USAGE_CHECK(
        flags.hidden && flags.depth && flags.heads && flags.patch,
        "give --size (e.g. DiT-S/4), or --hidden, --depth, --heads and --patch, or --model to start from");
    DYDIT_USAGE_CHECK(flags.hidden % flags.heads == 0 && flags.hidden % 4 == 0,
                      "--hidden {}: must be a multiple of 4 and of --heads {}", flags.hidden, flags.heads);
    config.hidden_size = flags.hidden;
    config.depth = flags.depth;
    config.num_heads = flags.heads;
    config.patch_size = flags.patch;
    config.mlp_hidden = 4 * flags.hidden;
    config = with_family(config, flags, options);
  }
  config.input_size = dataset.side();
  config.in_channels = dataset.channels();
  config.num_classes = flags.unconditional ? 0 : static_cast<int>(dataset.class_names().size());
  const bool uvit = flags.family == "uvit" || config.time_token;
  DYDIT_USAGE_CHECK(!flags.unconditional || uvit,
                    "--unconditional: a {} has classes; --family uvit needs none", model_name(config));
  if (uvit) config = with_uvit(config);  // whose guided channels are those of the data
  DYDIT_USAGE_CHECK(config.input_size % config.patch_size == 0, "patches of {} do not tile images of {}x{}",
                    config.patch_size, config.input_size, config.input_size);
  return config;
}

}  // namespace

int run_train(const Args& args, Isa isa) {
  Cli cli("train", "Train a static DiT from scratch or from a checkpoint.");
  TrainFlags flags;
  SizeFlags size;
  const std::string& model = flags.model;
  flags.add(cli);
  cli.add_text("--model,--ckpt", flags.model,
               "Static checkpoint to start from (fresh optimizer, warm-up again)");
  add_checkpoint_options(cli, flags.checkpoint);
  cli.add_text("--size", size.size, "Named size: DiT-S/2 ... DiT-XL/8; SiT-, Skip-DiT- and U-ViT- alike");
  cli.add_choice("--family", size.family, {"dit", "sit", "uvit", "skip-dit"},
                 "Of a model of --hidden, --depth, --heads and --patch");
  cli.add_switch("--unconditional", size.unconditional, "A U-ViT without classes");
  cli.add_number("--hidden", size.hidden, 4, 1 << 16, "Hidden size");
  cli.add_number("--depth", size.depth, 1, 1024, "Blocks");
  cli.add_number("--heads", size.heads, 1, 1024, "Attention heads");
  cli.add_number("--patch", size.patch, 1, 1024, "Patch size");
  cli.parse(args);
  flags.check_needs(cli);
  cli.one_of("--model", "--size");
  for (const char* flag : {"--num-heads", "--weights"}) cli.needs(flag, !model.empty(), "--model");
  for (const char* flag : {"--path", "--prediction"}) {
    cli.needs(flag, size.size.empty(), "no --size, whose name says it");
    cli.needs(flag, size.family != "uvit", "another --family; a U-ViT predicts noise of the path vp-999");
  }
  cli.needs("--unconditional", model.empty(), "a new model");
  cli.needs("--match-classes", !model.empty(), "--model, whose classes they are");
  for (const char* flag : {"--hidden", "--depth", "--heads", "--patch", "--family"})
    cli.needs(flag, model.empty() && size.size.empty(), "a model that neither --model nor --size describes");
  return run_from(cli, flags, "; train makes static models, use finetune",
                  [&](const Checkpoint& given, const Dataset& dataset) {
                    Checkpoint start =
                        model.empty() ? init_checkpoint(config_from_flags(size, flags.checkpoint, dataset),
                                                        flags.options.seed)
                                      : given;
                    const auto& names = dataset.class_names();  // the model's own where it has some
                    if (static_cast<int>(names.size()) == start.config.num_classes) start.class_names = names;
                    cli.within("--sample-cache", [&] { flags.sample_request(start.config); });
                    return flags.with_adapters(start, given, "none");
                  });
}

int run_finetune(const Args& args, Isa isa) {
  Cli cli("finetune",
          "Fine-tune a static DiT into a dynamic one (or, with --static, into a static control).");
  TrainFlags flags;
  flags.options.skip_norm = 200;
  DynamicOptions& router = flags.options.router;
  router.complete_steps = 0;
  std::string gates = "hard", tdw = "on", sdt = "on", importance = "magnitude", rule = "threshold",
              share_gradient = "boundary", scope = "mlp", trained = "all";
  std::vector<double> biases = {kWidthRouterBias, kTokenRouterBias};
  bool control = false;
  flags.add(cli);
  add_model_path(cli, flags.model, flags.checkpoint);
  constexpr int kMost = 1 << 30;
  cli.add_number("--lambda,--token_ratio,--token-ratio", router.lambda, 0, 1,
                 "Work ratio to reach, above 0 and below 1");
  cli.add_numbers("--router-bias", biases, -1e6, 1e6, "Biases at the start: width routers, token routers");
  cli.add_number("--router-lr-scale", flags.options.router_lr_scale, 0, 1e6,
                 "Learning rate of the routers, as a factor");
  cli.add_choice("--importance", importance, {"magnitude", "none"},
                 "Order heads and channels before fine-tuning");
  cli.add_number("--anneal-start", router.anneal_start, 0, kMost, "Steps before the target leaves 1");
  cli.add_number("--anneal-steps", router.anneal_steps, 1, kMost,
                 "W: at step W the target has reached lambda");
  cli.add_number("--complete-steps", router.complete_steps, 0, kMost, "Steps with the complete-model term");
  cli.add_choice("--gates", gates, kGateNames.names(),
                 "Gates in training; soft is a control, nothing can be skipped");
  cli.add_choice("--tdw", tdw, {"on", "off"}, "Timestep-wise dynamic width");
  cli.add_choice("--sdt", sdt, {"on", "off"}, "Spatial-wise dynamic tokens");
  cli.add_choice("--gate-rule", rule, kGateRuleNames.names(), "How a gate decides at inference");
  cli.add_choice(
      "--share-gradient", share_gradient, kShareGradientNames.names(),
      "What tells the capacity rule's shares to grow: the first part that is closed, or those of an "
      "interval around the count");
  cli.add_number(
      "--regions", router.regions, 1, kMostRegions,
      "Equal regions of t with shares of their own, of the capacity rule; t is drawn in turn from each");
  cli.add_choice("--token-scope", scope, kTokenScopeNames.names(),
                 "What a token that is off skips: the MLP, or the whole block");
  cli.add_choice("--train", trained, kTrainedPartNames.names(),
                 "What is trained: all, or the routers alone while the model rests");
  cli.add_switch("--static", control, "Same data and steps, no routers: the control");
  cli.parse(args);
  flags.check_needs(cli);
  for (const char* flag : {"--lambda", "--router-bias", "--router-lr-scale", "--anneal-start",
                           "--anneal-steps", "--complete-steps", "--gates", "--tdw", "--sdt", "--gate-rule",
                           "--share-gradient", "--regions", "--token-scope", "--train"})
    cli.needs(flag, !control, "routers, which --static leaves out");
  cli.needs("--train", trained == "all" || flags.adapter == "none",
            "no --adapter, which is trained beside the routers");
  cli.needs("--complete-steps", trained == "all", "--train all: the complete model has no routers");
  flags.options.trained = kTrainedPartNames.at(trained);
  for (const char* flag : {"--levels", "--level-from", "--long-skips"})
    cli.needs(flag, trained == "all", "--train all: the new parts would rest");
  DYDIT_USAGE_CHECK(router.lambda > 0 && router.lambda < 1,
                    "--lambda {}: expected a work ratio above 0 and below 1", router.lambda);
  DYDIT_USAGE_CHECK(control || tdw == "on" || sdt == "on",
                    "--tdw off --sdt off: nothing is left to route; use --static");
  for (const char* flag : {"--share-gradient", "--regions"})
    cli.needs(flag, rule == "capacity", "--gate-rule capacity");
  cli.needs("--token-scope", sdt == "on", "--sdt on");
  DYDIT_USAGE_CHECK(is_regions(router.regions), "{} {}: a number that divides {} is wanted",
                    cli.named("--regions"), router.regions, kNumTrainTimesteps);
  DYDIT_USAGE_CHECK(rule == "threshold" || gates == "hard",
                    "--gates soft: the capacity rule has hard gates only");
  return run_from(cli, flags, " already; finetune starts from a static DiT",
                  [&](const Checkpoint& given, const Dataset&) {
                    cli.within("--sample-cache", [&] { flags.sample_request(given.config); });
                    Checkpoint start = importance == "magnitude" ? reorder_by_importance(given) : given;
                    flags.options.preparation["importance"] = importance;
                    flags.options.dynamic = !control;
                    // After the new order, which adapters would not fit.
                    start = flags.with_adapters(start, given, importance);
                    if (control) return start;
                    start = add_routers(
                        start, {tdw == "on", sdt == "on", biases[0], biases[1], kTokenScopeNames.at(scope)},
                        flags.options.seed);
                    start.lambda = router.lambda;
                    flags.options.preparation["router-bias"] = biases;
                    router.gate_rule = kGateRuleNames.at(rule);
                    router.gates = kGateNames.at(gates);
                    router.share_gradient = kShareGradientNames.at(share_gradient);
                    if (router.regions != kQuarters) flags.options.timesteps.strata = router.regions;
                    return start;
                  });
}

}  // namespace dydit
