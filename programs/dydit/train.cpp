// dydit train and dydit finetune: flags -> a starting checkpoint and options -> the one trainer.
#include <fstream>

#include <ATen/Parallel.h>
#include <nlohmann/json.hpp>

#include "dydit/base/error.h"
#include "dydit/io/file.h"
#include "dydit/io/json.h"
#include "dydit/io/png.h"
#include "dydit/model/init.h"
#include "dydit/model/macs.h"
#include "dydit/pipeline/generate.h"
#include "dydit/pipeline/pixels.h"
#include "dydit/pipeline/record.h"
#include "model_flags.h"
#include "train_flags.h"
#include "verbs.h"

namespace dydit {
namespace {

constexpr int kSampleImages = 16;

// A grid of the EMA's samples, the same seeds every time, as RUN/samples/STEP.png and in the events.
void write_sample_grid(const Checkpoint& ema, int64_t step, const TrainFlags& flags, Watch& watch) {
  if (ema.config.in_channels != 3 && ema.config.in_channels != 1) return;  // latents are not images
  GenerateOptions options;
  options.classes.clear();
  for (int label = 0; label < ema.config.num_classes; ++label) options.classes.push_back(label);
  options.num_images = kSampleImages;
  options.num_steps = flags.sample_steps;
  options.sampler = {SamplerKind::Ddim, 0};
  options.cfg_scale = flags.sample_cfg_scale;
  options.threads = flags.threads;
  options.dtype = flags.options.dtype;
  std::vector<Image> images;
  GenerateCallbacks callbacks;
  callbacks.on_sample = [&](GeneratedSample&& sample) { images.push_back(to_image(sample.sample)); };
  generate(ema, options, callbacks);
  const Image grid = make_grid(images, 4);
  const auto folder = flags.run.run / "samples";
  std::filesystem::create_directories(folder);
  const std::string path = (folder / fmt::format("{:07}.png", step)).string();
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

// The last row of the log and where the run lies; one JSON object with --json.
void print_result(const TrainFlags& flags, const LogRow& row, bool as_json) {
  const std::string model =
      (flags.run.run / "checkpoints" / fmt::format("{:07}.safetensors", flags.options.total_steps)).string();
  if (!as_json) {
    print_out("wrote {}\n", model);
    return;
  }
  print_out("{}\n", json_text(nlohmann::json{{"run", flags.run.run.string()},
                                             {"checkpoint", model},
                                             {"steps", flags.options.total_steps},
                                             {"loss", row.terms.loss()},
                                             {"mse", row.terms.mse},
                                             {"vb", row.terms.vb},
                                             {"ratio_training", row.terms.ratio},
                                             {"ratio_inference", row.terms.inference_ratio},
                                             {"grad_norm", row.grad_norm},
                                             {"skipped", row.skipped},
                                             {"images_per_second", row.images_per_second},
                                             {"options", options_to_json(flags.options)}}));
}

void run_training(const Checkpoint& start, const Dataset& dataset, TrainFlags& flags, Communicator& processes,
                  Console& console, bool as_json) {
  check_training(dataset, start.config, flags.options, processes.size());  // before there is a folder
  flags.run.run =
      choose_run_folder(flags.results_dir, folder_name(start.config), flags.run.resume, processes);
  const bool root = processes.rank() == 0;
  const CancelFlag& cancel = install_cancel_handler();
  if (root) {
    console.info(fmt::format("run      {}", flags.run.run.string()));
    console.info(fmt::format("model    {}, {:.2f} M parameters, {:.4g} GMACs a forward",
                             model_name(start.config), static_cast<double>(start.num_parameters()) / 1e6,
                             static_cast<double>(static_macs(start.config)) / 1e9));
    console.info(
        fmt::format("data     {}: {} images {}x{}x{}, {} classes{}", flags.data_path, dataset.size(),
                    dataset.channels(), dataset.side(), dataset.side(), dataset.class_names().size(),
                    dataset.skipped() ? fmt::format(", {} broken ones left out", dataset.skipped()) : ""));
    console.info(fmt::format("training {} steps of {} images, {} process(es) x {} threads, {}, {}, seed {}",
                             flags.options.total_steps, flags.options.global_batch, processes.size(),
                             flags.threads, flags.device, flags.options.dtype == at::kFloat ? "f32" : "bf16",
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
  LogRow last;
  callbacks.on_row = [&](const LogRow& row) {
    console.info(log_line(row));
    last = row;
  };
  callbacks.on_sample = [&](const Checkpoint& ema, int64_t step, Watch& watch) {
    write_sample_grid(ema, step, flags, watch);
  };
  if (root) callbacks.on_progress = [&](const Progress& progress) { console.progress(progress); };
  train(start, dataset, flags.options, flags.run, processes, callbacks);
  if (root) print_result(flags, last, as_json);
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
  int num_heads = 0;
  flags.add(cli);
  cli.add_text("--model,--ckpt", model, "Static checkpoint to start from (fresh optimizer, warm-up again)");
  cli.add_number("--num-heads", num_heads, 1, 4096, "Heads of --model, where the file does not say");
  cli.add_text("--size", size.size, "Named size: DiT-S/2 ... DiT-XL/8");
  cli.add_number("--hidden", size.hidden, 4, 1 << 16, "Hidden size");
  cli.add_number("--depth", size.depth, 1, 1024, "Blocks");
  cli.add_number("--heads", size.heads, 1, 1024, "Attention heads");
  cli.add_number("--patch", size.patch, 1, 1024, "Patch size");
  cli.parse(args);
  flags.check_needs(cli);
  cli.one_of("--model", "--size");
  cli.needs("--num-heads", !model.empty(), "--model");
  for (const char* flag : {"--hidden", "--depth", "--heads", "--patch"})
    cli.needs(flag, model.empty() && size.size.empty(), "a model that neither --model nor --size describes");
  Console console(cli.verbosity);
  const auto processes = make_communicator();
  flags.choose_device(isa, processes->size());
  at::set_num_threads(flags.threads);
  Checkpoint start;
  if (!model.empty()) {
    start = load_checkpoint(model, {.num_heads = num_heads});
    DYDIT_USAGE_CHECK(!start.config.is_dynamic(), "{}: has routers; train makes static models, use finetune",
                      model);
    flags.take_size_of(start.config);
  }
  flags.data.threads = flags.threads;
  const auto dataset = Dataset::load(flags.data_path, flags.data);
  if (model.empty()) start = init_checkpoint(config_from_flags(size, *dataset), flags.options.seed);
  const auto& names = dataset->class_names();
  if (static_cast<int>(names.size()) == start.config.num_classes) start.class_names = names;
  flags.resolve(*dataset);
  run_training(start, *dataset, flags, *processes, console, cli.json);
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
  int num_heads = 0;
  flags.add(cli);
  add_model_path(cli, model, num_heads);
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
  cli.add_choice("--gates", gates, {"hard", "soft"},
                 "Gates in training; soft is a control, nothing can be skipped");
  cli.add_choice("--tdw", tdw, {"on", "off"}, "Timestep-wise dynamic width");
  cli.add_choice("--sdt", sdt, {"on", "off"}, "Spatial-wise dynamic tokens");
  cli.add_choice("--gate-rule", rule, {"threshold", "capacity"}, "How a gate decides at inference");
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
  const auto processes = make_communicator();
  flags.choose_device(isa, processes->size());
  at::set_num_threads(flags.threads);

  Checkpoint start = load_checkpoint(model, {.num_heads = num_heads});
  DYDIT_USAGE_CHECK(!start.config.is_dynamic(), "{}: has routers already; finetune starts from a static DiT",
                    model);
  flags.take_size_of(start.config);
  flags.data.threads = flags.threads;
  const auto dataset = Dataset::load(flags.data_path, flags.data);
  if (importance == "magnitude") start = reorder_by_importance(start);
  flags.options.dynamic = !control;
  if (!control) {
    init = {tdw == "on", sdt == "on", biases[0], biases[1]};
    start = add_routers(start, init, flags.options.seed);
    start.lambda = router.lambda;
    router.capacity = rule == "capacity";
    DYDIT_USAGE_CHECK(!router.capacity || gates == "hard",
                      "--gates soft: the capacity rule has hard gates only");
    router.gates = gates == "soft" ? GateKind::Soft : GateKind::Hard;
  }
  flags.resolve(*dataset);
  run_training(start, *dataset, flags, *processes, console, cli.json);
  return 0;
}

}  // namespace dydit
