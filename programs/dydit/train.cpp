// dydit train and dydit finetune: flags -> a starting checkpoint and options -> the one trainer.
#include <optional>

#include <ATen/Parallel.h>
#include <nlohmann/json.hpp>
#include <torch/headeronly/version.h>

#include "data_flags.h"
#include "dydit/base/dtype.h"
#include "dydit/base/error.h"
#include "dydit/base/isa.h"
#include "dydit/base/version.h"
#include "dydit/io/file.h"
#include "dydit/io/json.h"
#include "dydit/io/png.h"
#include "dydit/model/edit.h"
#include "dydit/model/macs.h"
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
      flags.sample_request(ema.config), {.threads = flags.threads}, flags.options.dtype};
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
  if (name.find(' ') != std::string::npos) {
    name = fmt::format("{}-{}x{}/{}", config.is_dynamic() ? "DyDiT" : "DiT", config.depth, config.hidden_size,
                       config.patch_size);
  }
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

// The last row of the log and where the run lies; one JSON object with --json. A resumed run that had done
// what was asked, or more, trained nothing and wrote nothing.
void print_result(const TrainFlags& flags, const Dataset& dataset, int64_t done,
                  const std::optional<LogRow>& row, bool as_json) {
  const std::string model = model_path(flags.run.run, done).string();
  if (!as_json) {
    if (row) {
      print_out("wrote {}\n", model);
    } else {
      print_out("already at step {}, {} asked; nothing to train: {}\n", done, flags.options.total_steps,
                model);
    }
    return;
  }
  nlohmann::json result = {{"run", flags.run.run.string()},
                           {"checkpoint", model},
                           {"steps", done},
                           {"trained", row.has_value()},
                           {"images", dataset.size()},
                           {"left_out", dataset.left_out().kinds},
                           {"options", options_to_json(flags.options)}};
  const auto add = [&](const char* name, const auto& value_of) {
    result[name] = row ? nlohmann::json(value_of(*row)) : nlohmann::json();
  };
  add("loss", [](const LogRow& r) { return r.terms.loss(); });
  add("mse", [](const LogRow& r) { return r.terms.mse; });
  add("vb", [](const LogRow& r) { return r.terms.vb; });
  add("ratio_training", [](const LogRow& r) { return r.terms.ratio; });
  add("ratio_inference", [](const LogRow& r) { return r.terms.inference_ratio; });
  add("grad_norm", [](const LogRow& r) { return r.grad_norm; });
  add("skipped", [](const LogRow& r) { return r.skipped; });
  add("images_per_second", [](const LogRow& r) { return r.images_per_second; });
  print_out("{}\n", json_text(result));
}

void run_training(const Checkpoint& start, const Dataset& dataset, TrainFlags& flags, Communicator& processes,
                  Console& console, bool as_json, bool verbose) {
  check_training(dataset, start.config, flags.options, processes.size());  // before there is a folder
  const bool root = processes.rank() == 0;
  if (flags.run.resume) {
    flags.run.run =
        find_run_folder(flags.results_dir, flags.resume, run_identity(start, dataset, flags.options),
                        [&](const std::string& line) {
                          if (root) console.warning(line);
                        });
    processes.barrier();  // nobody changes the folder before all have looked
  } else {
    flags.run.run = make_run_folder(flags.results_dir, folder_name(start.config), processes);
  }
  flags.run.surroundings = surroundings_of(flags, processes.size());
  const CancelFlag& cancel = install_cancel_handler(SecondSignal::Waits);
  if (root) {
    console.info(fmt::format("run      {}", flags.run.run.string()));
    console.info(fmt::format("model    {}, {:.2f} M parameters, {:.4g} GMACs a forward",
                             model_name(start.config), static_cast<double>(start.num_parameters()) / 1e6,
                             static_cast<double>(static_macs(start.config)) / 1e9));
    console.info(fmt::format("data     {}: {} images {}x{}x{}, {} classes{}", flags.data_path, dataset.size(),
                             dataset.channels(), dataset.side(), dataset.side(), start.config.num_classes,
                             left_out_text(dataset, verbose)));
    tell_notes(dataset, console);
    console.info(fmt::format("training {} steps of {} images, {} process(es) x {} threads, {}, {}, seed {}",
                             flags.options.total_steps, flags.options.global_batch, processes.size(),
                             flags.threads, flags.device, kDtypeNames[flags.options.dtype],
                             flags.options.seed));
  }
  TrainCallbacks callbacks;
  callbacks.cancel = &cancel;
  callbacks.on_text = [&](const std::string& line) {
    if (root) console.info(line);
  };
  callbacks.on_warning = [&](const std::string& line) {
    if (root) console.warning(line);
  };
  std::optional<LogRow> last;
  callbacks.on_row = [&](const LogRow& row) {
    console.info(log_line(row));
    last = row;
  };
  callbacks.on_sample = [&](const Checkpoint& ema, int64_t step, Watch& watch) {
    write_sample_grid(ema, step, flags, watch);
  };
  if (root) callbacks.on_progress = [&](const Progress& progress) { console.progress(progress); };
  const int64_t done = train(start, dataset, flags.options, flags.run, processes, callbacks);
  if (root) print_result(flags, dataset, done, last, as_json);
}

struct SizeFlags {
  std::string size;
  int hidden = 0, depth = 0, heads = 0, patch = 0;
};

DiTConfig config_from_flags(const SizeFlags& flags, const Dataset& dataset) {
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
  }
  config.input_size = dataset.side();
  config.in_channels = dataset.channels();
  config.num_classes = static_cast<int>(dataset.class_names().size());
  DYDIT_USAGE_CHECK(config.input_size % config.patch_size == 0, "patches of {} do not tile images of {}x{}",
                    config.patch_size, config.input_size, config.input_size);
  return config;
}

}  // namespace

int run_train(const Args& args, Isa isa) {
  Cli cli("train", "Train a static DiT from scratch or from a checkpoint.");
  TrainFlags flags;
  SizeFlags size;
  std::string model;
  CheckpointOptions checkpoint;
  flags.add(cli);
  cli.add_text("--model,--ckpt", model, "Static checkpoint to start from (fresh optimizer, warm-up again)");
  add_checkpoint_options(cli, checkpoint);
  cli.add_text("--size", size.size, "Named size: DiT-S/2 ... DiT-XL/8");
  cli.add_number("--hidden", size.hidden, 4, 1 << 16, "Hidden size");
  cli.add_number("--depth", size.depth, 1, 1024, "Blocks");
  cli.add_number("--heads", size.heads, 1, 1024, "Attention heads");
  cli.add_number("--patch", size.patch, 1, 1024, "Patch size");
  cli.parse(args);
  flags.check_needs(cli);
  cli.one_of("--model", "--size");
  for (const char* flag : {"--num-heads", "--weights"}) cli.needs(flag, !model.empty(), "--model");
  cli.needs("--match-classes", !model.empty(), "--model, whose classes they are");
  for (const char* flag : {"--hidden", "--depth", "--heads", "--patch"})
    cli.needs(flag, model.empty() && size.size.empty(), "a model that neither --model nor --size describes");
  Console console(cli.verbosity);
  const auto processes = make_communicator();
  flags.choose_device(processes->size());
  at::set_num_threads(flags.threads);
  Checkpoint start;
  if (!model.empty()) {
    start = load_model(cli, model, checkpoint);
    DYDIT_USAGE_CHECK(!start.config.is_dynamic(), "{}: has routers; train makes static models, use finetune",
                      model);
    flags.fit_data_to(start);
  }
  flags.data.threads = flags.threads;
  const auto dataset = Dataset::load(flags.data_path, flags.data);
  if (model.empty()) start = init_checkpoint(config_from_flags(size, *dataset), flags.options.seed);
  const auto& names = dataset->class_names();  // the model's own where it has some
  if (static_cast<int>(names.size()) == start.config.num_classes) start.class_names = names;
  cli.within("--sample-cache", [&] { flags.sample_request(start.config); });
  flags.resolve(*dataset);
  run_training(start, *dataset, flags, *processes, console, cli.json, cli.verbosity == Verbosity::Verbose);
  return 0;
}

int run_finetune(const Args& args, Isa isa) {
  Cli cli("finetune",
          "Fine-tune a static DiT into a dynamic one (or, with --static, into a static control).");
  TrainFlags flags;
  flags.options.skip_norm = 200;
  DynamicOptions& router = flags.options.router;
  router.complete_steps = 0;
  RouterInit init;
  std::string model, gates = "hard", tdw = "on", sdt = "on", importance = "magnitude", rule = "threshold";
  std::vector<double> biases = {kWidthRouterBias, kTokenRouterBias};
  bool control = false;
  CheckpointOptions checkpoint;
  flags.add(cli);
  add_model_path(cli, model, checkpoint);
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
  cli.add_switch("--static", control, "Same data and steps, no routers: the control");
  cli.parse(args);
  flags.check_needs(cli);
  for (const char* flag : {"--lambda", "--router-bias", "--router-lr-scale", "--anneal-start",
                           "--anneal-steps", "--complete-steps", "--gates", "--tdw", "--sdt", "--gate-rule"})
    cli.needs(flag, !control, "routers, which --static leaves out");
  Console console(cli.verbosity);
  DYDIT_USAGE_CHECK(router.lambda > 0 && router.lambda < 1,
                    "--lambda {}: expected a work ratio above 0 and below 1", router.lambda);
  DYDIT_USAGE_CHECK(control || tdw == "on" || sdt == "on",
                    "--tdw off --sdt off: nothing is left to route; use --static");
  DYDIT_USAGE_CHECK(rule == "threshold" || gates == "hard",
                    "--gates soft: the capacity rule has hard gates only");
  const auto processes = make_communicator();
  flags.choose_device(processes->size());
  at::set_num_threads(flags.threads);

  Checkpoint start = load_model(cli, model, checkpoint);
  DYDIT_USAGE_CHECK(!start.config.is_dynamic(), "{}: has routers already; finetune starts from a static DiT",
                    model);
  flags.fit_data_to(start);
  cli.within("--sample-cache", [&] { flags.sample_request(start.config); });
  flags.data.threads = flags.threads;
  const auto dataset = Dataset::load(flags.data_path, flags.data);
  if (importance == "magnitude") start = reorder_by_importance(start);
  flags.options.preparation["importance"] = importance;
  flags.options.dynamic = !control;
  if (!control) {
    init = {tdw == "on", sdt == "on", biases[0], biases[1]};
    start = add_routers(start, init, flags.options.seed);
    start.lambda = router.lambda;
    flags.options.preparation["router-bias"] = biases;
    router.gate_rule = kGateRuleNames.at(rule);
    router.gates = kGateNames.at(gates);
  }
  flags.resolve(*dataset);
  run_training(start, *dataset, flags, *processes, console, cli.json, cli.verbosity == Verbosity::Verbose);
  return 0;
}

}  // namespace dydit
