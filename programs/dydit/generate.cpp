// dydit generate: flags -> options, decisions printed, samples written, cost reported.
#include "dydit/pipeline/generate.h"

#include <algorithm>
#include <exception>
#include <map>
#include <set>

#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "cli.h"
#include "device_shards.h"
#include "dydit/base/error.h"
#include "dydit/base/machine.h"
#include "dydit/base/numbers.h"
#include "dydit/data/classes.h"
#include "dydit/io/text.h"
#include "dydit/pipeline/decoder.h"
#include "dydit/pipeline/record.h"
#include "model_flags.h"
#include "outputs.h"
#include "plan_flags.h"
#include "sampling_flags.h"
#include "signals.h"
#include "stitch_flags.h"
#include "targets.h"
#include "vae_flags.h"
#include "verbs.h"

namespace dydit {
namespace {

using nlohmann::json;

struct GenerateFlags {
  ModelFlags model;
  std::vector<std::string> classes;
  std::string class_names_file;
  std::string noise = "philox", shard, devices;
  SamplingFlags sampling;
  GenerateOptions options;
  OutputOptions outputs;
  PlanFlags plan;
  StitchFlags stitch;
  VaeFlags vae;
  std::string preview_vae;
};

void add_flags(Cli& cli, GenerateFlags& flags) {
  flags.options.num_images = 0;  // one an image class unless -n says otherwise
  flags.model.add(cli);
  CLI::Option* classes = cli.app.add_option(
      "-c,--classes,--class-labels", flags.classes,
      "Classes, comma-separated, taken round-robin (default: all, in order): a number is a label, anything "
      "else a "
      "name; name:10 is the class that is called 10, \"a, b\" one whose name holds commas");
  cli.keep_default(classes->type_name("LIST"), flags.classes);
  cli.add_text("--class-names", flags.class_names_file,
               "File with one class name a line, overriding the model's");
  cli.add_number("-n,--num-images", flags.options.num_images, 1, 100'000'000,
                 "Images in all (default: one a class given, or 1)");
  flags.sampling.add(cli, flags.options);
  flags.sampling.add_timesteps(cli);
  cli.add_seed("--seed", flags.options.seed, "Seed of the noise");
  cli.add_choice("--noise", flags.noise, kNoiseNames.names(),
                 "Noise: a function of seed, image and step; or torch.randn's stream over one batch");
  cli.add_text("--shard", flags.shard,
               "K/N: of all images those with index K, K + N, ..., under their own names; N such runs, on "
               "any machines, make what one makes");
  cli.add_text("--devices", flags.devices,
               "Devices that share out the images, a process each: 0,1 are GPUs; decoded on --device");
  flags.plan.add(cli);
  flags.plan.add_budget(cli);
  flags.stitch.add(cli);
  flags.vae.add(
      cli,
      "Autoencoder that decodes a latent model's samples: a folder of diffusers, a file, or TAESD's "
      "(default: the one in a pipeline's folder)");
  cli.add_text("--preview-vae", flags.preview_vae, "Autoencoder for previews alone: a tiny one is cheap");
  cli.add_text(
      "-o,--out", flags.outputs.out,
      "FILE.png (a grid when several), a pattern like img_%03d.png, or a folder/ (default: samples.png)");
  cli.add_text("--npz", flags.outputs.npz, "Also write the images as the ADM evaluator reads them (arr_0)");
  cli.add_text("--latents", flags.outputs.latents, "Write the samples as they are, float32 safetensors");
  cli.add_number("--preview-every", flags.options.preview_every, 1, 999,
                 "Also write the images predicted every so many steps: FILE_step0010.png beside --out");
  cli.add_text("--cost-map", flags.outputs.cost_map,
               "FILE.png: each image beside the share of MLPs that its tokens entered");
}

// --shard K/N.
void read_shard(Cli& cli, const std::string& text, SamplingOptions& options) {
  if (text.empty()) return;
  const size_t slash = text.find('/');
  const auto number = [&](std::string_view part) { return parse_number<int>(part).value_or(-1); };
  const std::string_view all = text;
  const int K = number(all.substr(0, slash)), N = slash == text.npos ? -1 : number(all.substr(slash + 1));
  DYDIT_USAGE_CHECK(K >= 0 && N > K, "{} {}: expected K/N with K from 0 to N - 1, e.g. 0/4",
                    cli.named("--shard"), quote(text));
  options.first = K;
  options.stride = N;
}

// Turns what was typed into options, with the checkpoint at hand.
void resolve(Cli& cli, GenerateFlags& flags, const Checkpoint& checkpoint) {
  GenerateOptions& options = flags.options;
  const DiTConfig& config = checkpoint.config;
  flags.sampling.resolve(cli, checkpoint, flags.model, options);
  const std::string model = checkpoint.path.string();
  options.noise = kNoiseNames.at(flags.noise);
  cli.needs("--cost-map", config.token_routers,
            fmt::format("token routers; {} has no token routers, all its tokens enter all MLPs", model));
  cli.needs("--cost-map", options.mode == Mode::Dynamic,
            "--mode dynamic; with --mode static all tokens enter all MLPs");
  options.token_map = !flags.outputs.cost_map.empty();
  options.classes.clear();
  const bool only_class = flags.classes == std::vector<std::string>{"0"};  // as records have it
  cli.needs("--classes", config.num_classes > 0 || only_class, fmt::format("classes; {} has none", model));
  for (const std::string& list : flags.classes) {
    cli.within("--classes", [&] {
      for (const int label : resolve_classes(list, checkpoint.class_names, std::max(config.num_classes, 1)))
        options.classes.push_back(label);
    });
  }
  if (options.num_images == 0)
    options.num_images = std::max<int>(1, static_cast<int>(options.classes.size()));
  read_shard(cli, flags.shard, options);
  DYDIT_USAGE_CHECK(options.first < options.num_images, "{} {}: of {} images that shard has none",
                    cli.named("--shard"), flags.shard, options.num_images);
  if (options.classes.size() > static_cast<size_t>(options.num_images))
    cli.console.info(fmt::format("passed over: the last {} of {} classes, for there are {} images",
                                 options.classes.size() - static_cast<size_t>(options.num_images),
                                 options.classes.size(), options.num_images));
  flags.plan.resolve(cli, checkpoint, cli.given("--steps") || cli.given("--timesteps"), options);
  if (options.classes.empty()) {
    for (int label = 0; label < std::max(config.num_classes, 1); ++label) options.classes.push_back(label);
  }
  cli.needs("--cost-map", flags.stitch.text.empty(), "no --stitch: two models have no tokens in common");
  flags.stitch.resolve(cli, checkpoint, options);
}

// The autoencoders of a run; none where the model makes pixels, or nobody asks for pixels.
struct Decoders {
  std::optional<LatentDecoder> images, previews;

  const LatentDecoder& of_previews() const { return previews ? *previews : *images; }
};

Decoders make_decoders(Cli& cli, const GenerateFlags& flags, const Checkpoint& checkpoint) {
  const DiTConfig& config = checkpoint.config;
  const OutputOptions& outputs = flags.outputs;
  const bool asked = !outputs.out.empty() || !outputs.npz.empty(),
             nothing = !asked && outputs.latents.empty() && outputs.cost_map.empty(),
             latent = !makes_pixels(config) || !flags.vae.path.empty();
  cli.needs("--vae", asked || nothing || !outputs.cost_map.empty(), "an output of pixels: --out or --npz");
  const std::optional<AutoencoderFile> file = flags.vae.load(
      cli, latent && (asked || nothing || !outputs.cost_map.empty()) ? own_autoencoder(checkpoint.path)
                                                                     : std::filesystem::path());
  cli.needs("--preview-vae", flags.options.preview_every > 0, "--preview-every");
  cli.needs("--preview-vae", file.has_value(), "a model of latents and its autoencoder: --vae");
  Decoders decoders;
  if (!file) return decoders;
  const LatentOrigin origin = latent_origin(checkpoint.notes, config.in_channels, checkpoint.path.string());
  const auto make = [&](const AutoencoderFile& from) {
    return flags.vae.decoder(cli, from, origin, config.in_channels, config.input_size, config.input_size,
                             flags.options.threads);
  };
  decoders.images.emplace(make(*file));
  if (!flags.preview_vae.empty()) decoders.previews.emplace(make(load_vae(cli, flags.preview_vae, {})));
  return decoders;
}

// What the outputs must know of a run.
OutputRun output_run(const Checkpoint& checkpoint, const GenerateOptions& options, const Decoders& decoders,
                     const json& record) {
  const DiTConfig& config = checkpoint.config;
  OutputRun run;
  run.record = record;
  run.num_images = options.num_images;
  run.sample_side = config.input_size;
  if (decoders.images) {
    const int side = config.input_size * decoders.images->factor();
    run.pixels = {3, side, side};
  } else if (makes_pixels(config)) {
    run.pixels = {config.in_channels, config.input_size, config.input_size};
  }
  run.source = checkpoint.path.string();
  run.channels = config.in_channels;
  run.num_tokens = config.num_tokens();
  for (const std::string& name : checkpoint.class_names)
    run.longest_name = std::max(run.longest_name, name.size());
  run.preview_every = options.preview_every;
  run.total_steps = options.total_steps();
  return run;
}

// Index and class of a preview's images.
json preview_records(const Checkpoint& checkpoint, const GenerateOptions& options, const Preview& preview) {
  json records = json::array();
  for (int i = 0; i < preview.x0.size(0); ++i) {
    const int index = preview.index(i), label = options.label(index);
    records.push_back({{"index", index}, {"class", label}, {"class_name", class_name_of(checkpoint, label)}});
  }
  return records;
}

constexpr size_t kClassesShown = 8;

// `by_hand`: the classes were given, so what was made of them is told.
void print_decisions(Console& console, const json& run, const Checkpoint& checkpoint, Isa isa, bool by_hand) {
  console.info(fmt::format("model    {}: {}, {}, sha256 {:.10}", checkpoint.path.string(),
                           model_name(checkpoint.config), run["mode"].get<std::string>(), checkpoint.sha256));
  console.info(fmt::format(
      "sampling {} {} steps ({}), guidance {}, seed {}, {} images in batches of {}",
      run["sampler"].get<std::string>(), run["steps"].get<int>(), run["spacing"].get<std::string>(),
      run["cfg_scale"].get<float>() > 1
          ? fmt::format("{} on {} channels", run["cfg_scale"].get<float>(), run["cfg_channels"].get<int>())
          : "off",
      run["seed"].get<uint64_t>(), run["num_images"].get<int>(), run["batch"].get<int>()));
  if (by_hand) {
    std::vector<std::string> shown;
    for (const int label : run["classes"].get<std::vector<int>>()) {
      const std::string name = class_name_of(checkpoint, label);
      shown.push_back(name.empty() ? fmt::format("{}", label) : fmt::format("{} ({})", label, name));
      if (shown.size() == kClassesShown) break;
    }
    console.info(fmt::format("classes  {}{}", fmt::join(shown, ", "),
                             run["classes"].size() > kClassesShown ? ", ..." : ""));
  }
  if (run.contains("plan")) {
    console.info(fmt::format("plan     {}: {:.1f} % of static's work required{}, keeps {} an image",
                             run["plan"]["name"].get<std::string>(),
                             100 * run["plan"]["required_share"].get<double>(),
                             checkpoint.keep_counts || run["mode"] == "static" ? "" : " at most",
                             memory_text(run["plan"]["bytes_per_image"].get<double>())));
    if (run["plan"].contains("budget")) {
      console.info(fmt::format("budget   {}: measured at cost {:.4f}, error {:.4f} +- {:.4f} to the full run",
                               run["plan"]["budget"].get<double>(), run["plan"]["cost"].get<double>(),
                               run["plan"]["error"].get<double>(), run["plan"]["error_se"].get<double>()));
    }
  }
  for (const std::string& line : stitch_lines(run)) console.info(line);
  for (const auto& [key, what] : {std::pair{"vae", "decoding"}, {"preview_vae", "previews"}}) {
    if (!run.contains(key)) continue;
    const json& vae = run[key];
    console.info(fmt::format(
        "{} {}: {}, {}, {:.1f} GMACs an image of {}x{}, sha256 {:.10}", what, vae["file"].get<std::string>(),
        vae["kind"].get<std::string>(), vae["dtype"].get<std::string>(), vae["gmacs"].get<double>(),
        run["size"].get<int>(), run["size"].get<int>(), vae["sha256"].get<std::string>()));
  }
  if (run["noise"] == "torch") {
    console.info("noise    torch.randn's stream over the batch: an image depends on how many are made");
  }
  console.info(fmt::format("engine   {}, {}, {} ({}), {} threads", run["engine"].get<std::string>(),
                           run["arithmetic"].get<std::string>(), run["device"].get<std::string>(),
                           isa_name(isa), run["threads"].get<int>()));
}

void print_summary(const json& result, bool verbose) {
  const json& images = result["images"];
  std::map<std::string_view, double> sum;
  for (const json& image : images) {
    for (const char* key :
         {"seconds", "required_gmacs", "executed_gmacs", "required_share", "executed_share"})
      sum[key] += image[key].get<double>();
    if (image.contains("decode_seconds")) sum["decode_seconds"] += image["decode_seconds"].get<double>();
    if (verbose) {
      print_out(
          "image {:>4}  class {:>4}  {:.3f} s  required {:.2f} GMACs ({:.3f})  executed {:.2f} GMACs "
          "({:.3f})\n",
          image["index"].get<int>(), image["class"].get<int>(), image["seconds"].get<double>(),
          image["required_gmacs"].get<double>(), image["required_share"].get<double>(),
          image["executed_gmacs"].get<double>(), image["executed_share"].get<double>());
    }
  }
  const double n = static_cast<double>(images.size());
  if (n > 0) {
    print_out(
        "cost per image: {:.3f} s, required {:.2f} GMACs ({:.1f} % of static), executed {:.2f} GMACs ({:.1f} "
        "%)\n",
        sum["seconds"] / n, sum["required_gmacs"] / n, 100 * sum["required_share"] / n,
        sum["executed_gmacs"] / n, 100 * sum["executed_share"] / n);
    if (result.contains("vae"))
      print_out("decoding an image: {:.3f} s, {:.2f} GMACs, beside that\n", sum["decode_seconds"] / n,
                result["vae"]["gmacs"].get<double>());
  }
  const auto files = result["files"].get<std::vector<std::string>>();
  if (files.size() > 4 && !verbose) {
    print_out("wrote {} files: {} ... {}\n", files.size(), files.front(), files.back());
  } else {
    for (const std::string& file : files) print_out("wrote {}\n", file);
  }
}

}  // namespace

int run_generate(const Args& args, Isa isa) {
  Cli cli("generate", "Make images (or latents) from a DiT or DyDiT checkpoint.");
  GenerateFlags flags;
  add_flags(cli, flags);
  cli.parse(args);
  flags.sampling.check(cli, flags.options);
  flags.vae.where = flags.model.where.resolve();
  std::vector<std::string> devices;
  if (!flags.devices.empty()) cli.within("--devices", [&] { devices = parse_devices(flags.devices); });
  for (const char* flag : {"--shard", "--preview-every", "--cost-map"})
    cli.needs(flag, devices.empty(), "one process: leave out --devices");
  DYDIT_USAGE_CHECK(devices.empty() || !cli.given("--config"),
                    "--devices: its processes would write where --config says; give the flags instead");
  Console& console = cli.console;
  const CancelFlag& cancel = install_cancel_handler();

  const Timer load_timer;
  Checkpoint checkpoint = flags.model.load(cli);
  if (!flags.class_names_file.empty()) {
    checkpoint.class_names = read_class_names(cli, flags.class_names_file, checkpoint.config.num_classes);
  }
  if (!devices.empty()) flags.model.where.device = devices[0];  // as its process will have it
  resolve(cli, flags, checkpoint);
  json result =
      run_record(checkpoint, flags.options, loading_of(flags.model.checkpoint, flags.class_names_file));
  if (!devices.empty()) result["devices"] = devices;
  if (flags.options.plan)
    result["plan"] = plan_record(checkpoint, flags.options, flags.plan.said(flags.options));
  const Decoders decoders = make_decoders(cli, flags, checkpoint);
  if (decoders.images) {
    const int side = checkpoint.config.input_size;
    result["vae"] = decoders.images->record(side, side);
    flags.vae.say(result["vae"]);
    if (decoders.previews) result["preview_vae"] = decoders.previews->record(side, side);
    result["size"] = side * decoders.images->factor();
  }
  const OutputRun run = output_run(checkpoint, flags.options, decoders, result);
  Outputs outputs(cli, flags.outputs, run,
                  inputs_of(checkpoint, {flags.class_names_file, flags.plan.input(checkpoint), flags.vae.path,
                                         flags.vae.config, flags.preview_vae, flags.stitch.input()}));
  result["load_seconds"] = load_timer.seconds();
  print_decisions(console, result, checkpoint, isa, /*by_hand=*/!flags.classes.empty());

  result["images"] = json::array();
  // Whatever ended the run, what is made is written as far as that goes, and told.
  const auto finish = [&] {
    std::exception_ptr failure;
    try {
      outputs.finish();
    } catch (const Error&) {
      failure = std::current_exception();
    }
    const std::vector<std::string> files = outputs.files();
    const std::set<std::string> written(files.begin(), files.end());
    for (json& image : result["images"]) {
      if (image.contains("file") && !written.contains(image["file"].get<std::string>())) image.erase("file");
    }
    result["files"] = files;
    if ((failure && written.empty()) || (result["images"].empty() && !result.contains("cancelled")))
      return failure;
    cli.print(result, [&] { print_summary(result, cli.verbose); });
    return failure;
  };
  const Timer timer;
  try {
    const GenerateCallbacks callbacks = {
        .on_sample =
            [&](GeneratedSample&& sample) {
              if (decoders.images) {
                decoders.images->decode(sample);
              } else if (makes_pixels(checkpoint.config)) {
                sample.pixels = sample.sample;
              }
              const json record = image_record(checkpoint, flags.options, sample);
              result["images"].push_back(outputs.add(sample, record));
            },
        .on_progress = [&](const Progress& progress) { console.progress(progress); },
        .on_preview =
            [&](const Preview& preview) {
              const json records = preview_records(checkpoint, flags.options, preview);
              outputs.add_preview(decoders.images ? decoders.of_previews().decode(preview) : preview,
                                  records);
            },
        .cancel = &cancel};
    if (devices.empty()) {
      generate(checkpoint, flags.options, callbacks);
    } else {
      Args shared =
          cli.without(args, {"--devices", "--device", "--out", "--npz", "--latents", "--vae", "--vae-config",
                             "--vae-dtype", "--vae-tiling", "--quiet", "--verbose", "--json"});
      if (!cli.given("--threads")) {
        const int threads = std::max(1, flags.options.threads / static_cast<int>(devices.size()));
        shared.insert(shared.end(), {"--threads", fmt::format("{}", threads)});
      }
      generate_on_devices(shared, devices, flags.options.num_images, callbacks);
    }
  } catch (const Error& error) {
    const bool cancelled = dynamic_cast<const Cancelled*>(&error) != nullptr;
    if (!cancelled && result["images"].empty()) throw;
    console.info(fmt::format("stopped; {} of {} images are finished", result["images"].size(),
                             flags.options.images_made(flags.options.num_images)));
    result[cancelled ? "cancelled" : "failed"] = true;
    const auto failure = finish();
    if (cancelled && failure) std::rethrow_exception(failure);  // else it tells less than the first
    throw;
  }
  result["seconds"] = timer.seconds();
  if (const auto failure = finish()) std::rethrow_exception(failure);
  return 0;
}

}  // namespace dydit
