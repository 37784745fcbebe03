// dydit evaluate: images against a reference (evaluate_images.cpp), or with --loss the training loss of a
// model on held-out images, by decile of t.
#include <algorithm>
#include <cmath>
#include <numeric>

#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "cli.h"
#include "data_flags.h"
#include "dydit/base/error.h"
#include "dydit/base/numbers.h"
#include "dydit/eval/loss.h"
#include "dydit/io/csv.h"
#include "dydit/io/file.h"
#include "evaluate_images.h"
#include "model_flags.h"
#include "signals.h"
#include "targets.h"
#include "verbs.h"

namespace dydit {
namespace {

using nlohmann::json;

struct EvaluateFlags {
  ModelFlags model;
  DataFlags data;
  EvaluateImagesFlags images;
  std::string csv;
  bool loss = false;
  int num_seeds = 3, level = 0;
};

// Flags that have an effect with --loss alone, and without it alone.
constexpr const char* kOfLoss[] = {"--data-path", "--split", "--match-classes",
                                   "--seeds",     "--csv",   "--level"};
constexpr const char* kOfImages[] = {"--images-split",
                                     "--reference",
                                     "--reference-split",
                                     "--num-images",
                                     "--extractor",
                                     "--resize",
                                     "--extractor-dtype",
                                     "--steps",
                                     "--timesteps",
                                     "--stitch",
                                     "--sampler",
                                     "--eta",
                                     "--cfg-scale",
                                     "--cfg-channels",
                                     "--labels",
                                     "--plan",
                                     "--cache",
                                     "--guide-from",
                                     "--guide-to",
                                     "--guide-every",
                                     "--guide-weak",
                                     "--weak-steps",
                                     "--level-from",
                                     "--cache-memory",
                                     "--budget",
                                     "--plans",
                                     "--force",
                                     "--vae",
                                     "--vae-config",
                                     "--vae-dtype",
                                     "--vae-tiling",
                                     "--features",
                                     "--fid-infinity",
                                     "--torch-fidelity",
                                     "--no-pairs",
                                     "--write-stats",
                                     "--save",
                                     "--name"};

double mean(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

// Half of the range between the seeds: how far another seed may be off.
double spread(const std::vector<double>& values) {
  const auto [low, high] = std::minmax_element(values.begin(), values.end());
  return (*high - *low) / 2;
}

// A row of the table; JSON and CSV have these columns.
nlohmann::ordered_json decile_row(const DecileLoss& decile) {
  return {{"mse", mean(decile.mse)},
          {"mse_spread", spread(decile.mse)},
          {"vb", mean(decile.vb)},
          {"vb_spread", spread(decile.vb)},
          {"heads", decile.heads},
          {"groups", decile.groups},
          {"tokens", decile.tokens},
          {"required_share", decile.required_share},
          {"executed_share", decile.executed_share}};
}

std::string decile_name(int d) {
  return d == kDeciles ? "all" : fmt::format("{}-{}", d * 1000 / kDeciles, (d + 1) * 1000 / kDeciles - 1);
}

void print_report(const LossReport& report) {
  print_out("{:<8} {:>9} {:>10} {:>10} {:>10} {:>7} {:>7} {:>7} {:>9}\n", "t", "mse", "+- seeds", "vb (bits)",
            "+- seeds", "heads", "groups", "tokens", "work");
  for (int d = 0; d <= kDeciles; ++d) {
    const DecileLoss& row = report[d];
    print_out("{:<8} {:>9.5f} {:>10.5f} {:>10.6f} {:>10.6f} {:>7.3f} {:>7.3f} {:>7.3f} {:>9.4f}\n",
              decile_name(d), mean(row.mse), spread(row.mse), mean(row.vb), spread(row.vb), row.heads,
              row.groups, row.tokens, row.required_share);
  }
}

void write_csv(const std::string& path, const LossReport& report) {
  CsvCells header = {"t"};
  const auto first = decile_row(report[0]);
  for (const auto& column : first.items()) header.push_back(column.key());
  std::string csv = csv_line(header);
  for (int d = 0; d <= kDeciles; ++d) {
    CsvCells row = {decile_name(d)};
    for (const auto& value : decile_row(report[d])) row.push_back(fmt::format("{:.6g}", value.get<double>()));
    csv += csv_line(row);
  }
  write_output_file(path, csv);
}

void add_flags(Cli& cli, EvaluateFlags& flags) {
  flags.model.add(cli, "auto", "auto", "--model-weights");
  cli.app.get_option("--model")->required(false);
  cli.add_text("--weights", flags.images.extractor.weights,
               "The extractor's file, or the folder that holds it under its published name (default: "
               "build/weights); with --loss the same as --model-weights");
  flags.images.add(cli);
  cli.add_seed("--seed", flags.images.options.seed, "Seed of the noise; with --loss the first");
  cli.add_switch(
      "--loss", flags.loss,
      "Instead: mse and vb (in bits) on held-out images by decile of t, with the gates of inference");
  flags.data.add(cli, "With --loss the held-out images: ", "test");
  cli.app.get_option("--data-path")->required(false);
  cli.add_number("--seeds", flags.num_seeds, 1, 1000, "Seeds: the table shows the mean and half the range");
  cli.add_number("--level", flags.level, 0, kMostLevels - 1,
                 "The level of patch sizes, of a model that has several");
  cli.add_text("--csv", flags.csv, "Also write the table here");
}

int evaluate_loss(Cli& cli, EvaluateFlags& flags) {
  for (const char* flag : kOfImages) cli.needs(flag, false, "a run without --loss");
  DYDIT_USAGE_CHECK(!flags.model.path.empty(), "--loss: needs --model");
  DYDIT_USAGE_CHECK(!flags.data.path.empty(), "--loss: needs --data-path");
  LossOptions options;
  if (!flags.images.images.empty()) {
    const auto images = parse_number<int>(flags.images.images);
    DYDIT_USAGE_CHECK(images && *images >= 1, "{} {}: with --loss a whole number from 1 on is wanted",
                      cli.named("--images"), flags.images.images);
    options.num_images = *images;
  }
  if (flags.model.checkpoint.weights.empty()) flags.model.checkpoint.weights = flags.images.extractor.weights;
  const CancelFlag& cancel = install_cancel_handler();

  const Checkpoint checkpoint = flags.model.load(cli);
  DYDIT_USAGE_CHECK(!checkpoint.few_step,
                    "--loss: {} is distilled to few steps, of which this loss says nothing; compare images",
                    flags.model.path);
  const bool dynamic = checkpoint.config.is_dynamic();
  std::string& mode = flags.images.sampling.mode;
  cli.needs("--mode", mode != "dynamic" || dynamic,
            fmt::format("routers; {} is a static DiT", flags.model.path));
  if (mode.empty()) mode = dynamic ? "dynamic" : "static";
  check_targets(cli, {{"--csv", flags.csv}}, inputs_of(checkpoint, {flags.data.path}));
  flags.data.fit_to(checkpoint);
  const auto dataset = flags.data.load(flags.model.threads);
  options.batch = flags.images.options.batch;
  options.threads = flags.model.threads;
  flags.model.where.check(cli);
  options.dtype = flags.model.resolve_dtype(checkpoint);
  options.engine = flags.model.resolve_engine();
  options.where = flags.model.where.resolve();
  options.mode = kModeNames.at(mode);
  options.level = flags.level;
  DYDIT_USAGE_CHECK(flags.level < checkpoint.config.levels(), "{} {}: {} has levels 0 to {}",
                    cli.named("--level"), flags.level, flags.model.path, checkpoint.config.levels() - 1);
  options.seeds.clear();
  for (int s = 0; s < flags.num_seeds; ++s) options.seeds.push_back(flags.images.options.seed + s);
  const int64_t images = std::min(options.num_images, dataset->size());
  Console& console = cli.console;
  console.info(fmt::format("model    {} ({}), {}", model_name(checkpoint.config), flags.model.path, mode));
  console.info(fmt::format("data     {} of {} images of {}{}", images, dataset->size(), flags.data.path,
                           left_out_text(*dataset, cli.verbose)));
  tell_notes(*dataset, console);
  console.info(fmt::format("engine   {}, {}, {} threads, batches of {}, noise seeds {} to {}",
                           kEngineNames[options.engine], arithmetic_text(options.engine, options.dtype),
                           options.threads, options.batch, options.seeds.front(), options.seeds.back()));

  const LossReport report = evaluate_loss(
      checkpoint, *dataset, options, [&](const Progress& progress) { console.progress(progress); }, &cancel);
  json deciles = json::array();
  for (int d = 0; d < kDeciles; ++d) {
    json& row = deciles.emplace_back(decile_row(report[d]));
    row["t"] = decile_name(d);
  }
  // Printed first: the file may fail.
  cli.print({{"model", flags.model.path},
             {"sha256", checkpoint.sha256},
             {"data", flags.data.path},
             {"images", images},
             {"left_out", dataset->left_out().kinds},
             {"seeds", options.seeds},
             {"mode", mode},
             {"level", options.level},
             {"dtype", kModelDtypeNames[options.dtype]},
             {"arithmetic", arithmetic_text(options.engine, options.dtype)},
             {"engine", kEngineNames[options.engine]},
             {"device", options.where.device.str()},
             {"deciles", deciles},
             {"all", decile_row(report[kDeciles])}},
            [&] { print_report(report); });
  if (!flags.csv.empty()) write_csv(flags.csv, report);
  return 0;
}

}  // namespace

int run_evaluate(const Args& args, Isa isa) {
  Cli cli("evaluate", "Judge a model's images, or any images, against a reference; or a model's loss.");
  EvaluateFlags flags;
  add_flags(cli, flags);
  cli.parse(args);
  if (flags.loss) return evaluate_loss(cli, flags);
  for (const char* flag : kOfLoss) cli.needs(flag, false, "--loss");
  DYDIT_USAGE_CHECK(
      !flags.model.path.empty() || !flags.images.images.empty(),
      "nothing to measure: give --model, or --images, a folder or npz; or --loss with --data-path");
  return evaluate_images(cli, flags.model, flags.images, isa);
}

}  // namespace dydit
