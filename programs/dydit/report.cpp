// dydit report: a model as one page, from its file, a few images of it, and what was measured of it
// elsewhere.
#include <algorithm>

#include <ATen/ATen.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "cli.h"
#include "dydit/base/error.h"
#include "dydit/calibrate/plan_set.h"
#include "dydit/diffusion/schedule.h"
#include "dydit/io/bytes.h"
#include "dydit/io/file.h"
#include "dydit/io/json.h"
#include "dydit/io/png.h"
#include "dydit/io/text.h"
#include "dydit/pipeline/pixels.h"
#include "dydit/pipeline/record.h"
#include "dydit/pipeline/sink.h"
#include "dydit/report/model_report.h"
#include "inspect_plans.h"
#include "model_flags.h"
#include "plan_flags.h"
#include "report_run.h"
#include "sampling_flags.h"
#include "saved_latents.h"
#include "signals.h"
#include "targets.h"
#include "vae_flags.h"
#include "verbs.h"

namespace dydit {
namespace {

using nlohmann::json;

constexpr int kWidthTimesteps = 50;
constexpr int kMostLatents = 64;  // of a file of them
constexpr int kRecordDepth = 8;

struct ReportFlags {
  ModelFlags model;
  SamplingFlags sampling;
  std::string out = "report.html";
  std::vector<std::string> results, samples;
  GenerateOptions options;
  PlanFlags plan;
  VaeFlags vae;
};

void add_flags(Cli& cli, ReportFlags& flags) {
  flags.options.num_images = 8;
  flags.options.num_steps = 50;
  flags.sampling.sampler = "ddim";
  flags.model.add_positional(cli);
  const auto add_files = [&](const char* name, std::vector<std::string>& files, const char* help) {
    cli.keep_default(cli.app.add_option(name, files, help)->type_name("FILE"), files);
  };
  add_files("--results", flags.results,
            "What dydit evaluate --json printed, and *.plans.json of dydit calibrate: quality against cost");
  add_files("--samples", flags.samples,
            "More pictures: PNG or JPEG, or latents that generate --latents wrote");
  cli.add_number("--images", flags.options.num_images, 0, 256,
                 "Images to make for the page, of all classes in turn; 0: none");
  flags.sampling.add(cli, flags.options);
  cli.add_seed("--seed", flags.options.seed, "Seed of the noise");
  flags.plan.add(cli);
  flags.vae.add(cli, "Autoencoder that decodes latents (default: the one in a pipeline's folder)");
  cli.add_text("-o,--out", flags.out, "The page");
}

// Turns what was typed into options, with the checkpoint at hand.
void resolve(Cli& cli, ReportFlags& flags, const Checkpoint& checkpoint) {
  GenerateOptions& options = flags.options;
  flags.sampling.check(cli, options);
  flags.sampling.resolve(cli, checkpoint, flags.model, options);
  options.token_map = checkpoint.config.token_routers && options.mode == Mode::Dynamic;
  options.classes.clear();
  for (int label = 0; label < std::max(checkpoint.config.num_classes, 1); ++label)
    options.classes.push_back(label);
  const bool makes = options.num_images > 0,
             planned = !flags.plan.file.empty() || !flags.plan.policy.is_default();
  for (const char* flag :
       {"--seed", "--dtype", "--engine", "--batch", "--eta", "--cfg-channels", "--cache-memory"})
    cli.needs(flag, makes, "images: --images above 0");
  for (const char* flag : {"--steps", "--sampler", "--cfg-scale", "--mode"})
    cli.needs(flag, makes || planned, "images or a plan: --images above 0, --plan or --cache");
  flags.plan.resolve(cli, checkpoint, cli.given("--steps"), options);
}

// "ddim, 50 steps, guidance 2 on 3 channels, ...; 16 images, seed 1000; for this model"
std::string run_text(const PlanSet& set, const Checkpoint& checkpoint) {
  const CalibratedRun& run = set.run;
  return fmt::format(
      "{}, {} steps, {}, {}, {}; measured on {} images, seed {}; for {}", kSamplerNames[run.sampler.kind],
      run.timesteps.size(),
      run.cfg_scale > 1 ? fmt::format("guidance {} on {} channels", run.cfg_scale, run.cfg_channels)
                        : "no guidance",
      kModeNames[run.mode], kModelDtypeNames[run.dtype], set.measured.images,
      fmt::join(set.measured.seeds, ", "),
      set.model_sha256 == checkpoint.sha256 ? "this model"
                                            : fmt::format("another model, sha256 {:.10}", set.model_sha256));
}

PlanCurve curve_of(const std::string& path, const PlanSet& set, const Checkpoint& checkpoint) {
  PlanCurve curve{.file = path, .run = run_text(set, checkpoint)};
  for (const MeasuredPlan& plan : set.plans)
    curve.plans.push_back({plan.cost, plan.cost_max, plan.error, plan.error_se, plan.psnr, plan.plan.name});
  return curve;
}

void read_results(Cli& cli, const std::string& path, ModelReport& report) {
  const auto file = MappedFile::open(path);
  const std::string_view text = text_of(file->bytes());
  if (is_plan_text(text)) {
    report.curves.push_back(curve_of(path, parse_plan_set(text, path), report.checkpoint));
    return;
  }
  report.results.push_back(parse_eval_result(text, path));
  if (const auto& keys = report.results.back().passed_over; !keys.empty())
    cli.console.info(
        fmt::format("{}: passed over {} unknown keys: {}", path, keys.size(), fmt::join(keys, ", ")));
}

// What a record says of its images in a line; of foreign ones as much as has the form of ours.
std::string record_text(const json& record, const Checkpoint& checkpoint) {
  std::vector<std::string> parts;
  const auto add = [&](const json& object, const char* key, const char* name) {
    if (object.is_object() && object.contains(key) && !object[key].is_structured())
      parts.push_back(name +
                      (object[key].is_string() ? object[key].get<std::string>() : json_text(object[key])));
  };
  const json model = record.value("model", json());
  add(model, "name", "");
  if (model.is_object() && model.value("sha256", json()) != checkpoint.sha256)
    parts.emplace_back("another model");
  for (const auto& [key, name] :
       {std::pair{"sampler", ""}, {"steps", "steps "}, {"cfg_scale", "guidance "}, {"seed", "seed "}})
    add(record, key, name);
  const json images = record.value("images", json::array());
  for (const auto& [key, unit] : {std::pair{"required_gmacs", "GMACs"}, {"seconds", "s"}}) {
    double sum = 0;
    int count = 0;
    for (const json& image : images) {
      if (!image.is_object() || !image.value(key, json()).is_number()) continue;
      sum += image[key].get<double>();
      ++count;
    }
    if (count > 0) parts.push_back(fmt::format("{:.4g} {} an image", sum / count, unit));
  }
  return parts.empty() ? "No record of dydit." : fmt::format("{}", fmt::join(parts, ", "));
}

bool is_latents(const std::string& path) {
  return sniff_file_kind(MappedFile::open(path)->bytes()) == FileKind::Safetensors;
}

// That of --vae, or of the model's folder; none where nothing is decoded.
std::optional<AutoencoderFile> load_autoencoder_of(Cli& cli, const ReportFlags& flags,
                                                   const Checkpoint& checkpoint) {
  const bool latents = flags.options.num_images > 0 && !makes_pixels(checkpoint.config);
  cli.needs(
      "--vae",
      flags.options.num_images > 0 || std::any_of(flags.samples.begin(), flags.samples.end(), is_latents),
      "latents: --images above 0, or a file of --samples");
  return flags.vae.load(cli, latents ? own_autoencoder(checkpoint.path) : std::filesystem::path());
}

ReportPicture picture_of(const std::string& path, const Checkpoint& checkpoint) {
  const auto file = MappedFile::open(path);
  const std::span<const std::byte> bytes = file->bytes();
  ReportPicture picture{.image = decode_image(bytes, path), .title = path};
  json record = json::object();
  if (sniff_file_kind(bytes) == FileKind::Png) {
    const PngText text = parse_png_info(bytes, path).text;
    if (const auto found = text.find(kRecordKey); found != text.end())
      record = parse_json(found->second, kRecordDepth).value_or(json());
  }
  picture.caption = record_text(record.is_object() ? record : json::object(), checkpoint);
  return picture;
}

// A grid of what the latents become.
ReportPicture decoded_latents(Cli& cli, const ReportFlags& flags, const std::string& path,
                              const std::optional<AutoencoderFile>& vae, const Checkpoint& checkpoint) {
  const SavedLatents saved = read_latents(path);
  const int channels = static_cast<int>(saved.latents.size(1)),
            count = static_cast<int>(saved.latents.size(0)), shown = std::min(count, kMostLatents);
  DYDIT_USAGE_CHECK(vae || channels == 1 || channels == 3,
                    "--samples {}: latents of {} channels are no pixels; give their autoencoder with --vae",
                    path, channels);
  if (shown < count)
    cli.console.info(fmt::format("{}: shown are the first {} of {} latents", path, shown, count));
  std::optional<LatentDecoder> decoder;
  if (vae)
    decoder.emplace(flags.vae.decoder(cli, *vae, saved.origin(path), channels,
                                      static_cast<int>(saved.latents.size(2)),
                                      static_cast<int>(saved.latents.size(3)), flags.options.threads));
  std::vector<Image> images;
  json record = saved.run;
  for (int i = 0; i < shown; ++i) {
    const at::Tensor latent = saved.latents[i].to(at::kFloat).contiguous();
    images.push_back(
        to_image(decoder ? decoder->decode(latent, fmt::format("{}: latent {}", path, i)) : latent));
    record["images"].push_back(saved.record(static_cast<size_t>(i)));
    cli.console.progress({"latents", i + 1, shown});
  }
  return {make_grid(images, kGridColumns), path, record_text(record, checkpoint)};
}

// What a page says of the run, from its record.
std::vector<Fact> run_facts(const json& run, Isa isa) {
  const double scale = run["cfg_scale"].get<double>();
  std::vector<Fact> facts = {
      {"sampler", fmt::format("{}, {} steps ({})", run["sampler"].get<std::string>(), run["steps"].get<int>(),
                              run["spacing"].get<std::string>())},
      {"guidance",
       scale > 1 ? fmt::format("{:.4g} on {} channels", scale, run["cfg_channels"].get<int>()) : "off"},
      {"seed", json_text(run["seed"])},
      {"mode", run["mode"].get<std::string>()},
      {"engine", fmt::format("{}, {}, {} ({}), {} threads", run["engine"].get<std::string>(),
                             run["arithmetic"].get<std::string>(), run["device"].get<std::string>(),
                             isa_name(isa), run["threads"].get<int>())}};
  if (run.contains("vae")) {
    const json& vae = run["vae"];
    facts.push_back(
        {"decoded by", fmt::format("{}: {}, {}, {:.4g} GMACs an image beside the network's, sha256 {:.10}",
                                   vae["file"].get<std::string>(), vae["kind"].get<std::string>(),
                                   vae["dtype"].get<std::string>(), vae["gmacs"].get<double>(),
                                   vae["sha256"].get<std::string>())});
  }
  facts.push_back({"make them again", reproducing_command(run)});
  return facts;
}

std::vector<Fact> plan_facts(const json& plan, const Checkpoint& checkpoint) {
  return {{"plan", plan["name"].get<std::string>()},
          {"work", fmt::format("{:.1f} % of the static model's{}", 100 * plan["required_share"].get<double>(),
                               checkpoint.keep_counts ? "" : ", at most")},
          {"keeps", fmt::format("{:.3g} MB an image", plan["bytes_per_image"].get<double>() / 1e6)},
          {"sha256", plan["sha256"].get<std::string>()}};
}

void add_run(Cli& cli, const ReportFlags& flags, Isa isa, const std::optional<AutoencoderFile>& vae,
             const CancelFlag& cancel, ModelReport& report, json& record) {
  const Checkpoint& checkpoint = report.checkpoint;
  const GenerateOptions& options = flags.options;
  const RunPlan plan = complete_plan(
      options,
      make_width_plan(checkpoint, run_spacing(options, checkpoint.config.objective).timesteps, options.mode));
  if (options.plan) {
    record["plan"] = plan_record(checkpoint, options, flags.plan.said(options));
    report.plan = plan;
    report.plan_facts = plan_facts(record["plan"], checkpoint);
  }
  if (options.num_images == 0) return;
  std::optional<LatentDecoder> decoder;
  const int side = checkpoint.config.input_size;
  if (vae) {
    const int channels = checkpoint.config.in_channels;
    decoder.emplace(flags.vae.decoder(cli, *vae,
                                      latent_origin(checkpoint.notes, channels, checkpoint.path.string()),
                                      channels, side, side, options.threads));
    record["vae"] = decoder->record(side, side);
    flags.vae.say(record["vae"]);
  }
  report.run = make_report_run(
      checkpoint, options, plan, decoder ? &*decoder : nullptr,
      {.on_progress = [&](const Progress& progress) { cli.console.progress(progress); }, .cancel = &cancel},
      record);
  report.run->facts = run_facts(record, isa);
}

}  // namespace

int run_report(const Args& args, Isa isa) {
  Cli cli("report", "Write one page (HTML, for any browser, offline) about a model.");
  ReportFlags flags;
  add_flags(cli, flags);
  cli.parse(args);
  const CancelFlag& cancel = install_cancel_handler();

  flags.vae.where = flags.model.where.resolve();
  const Checkpoint checkpoint = flags.model.load(cli);
  resolve(cli, flags, checkpoint);
  const GenerateOptions& options = flags.options;
  const std::string beside = plan_set_path(checkpoint.path).string();
  std::vector<std::string> results = flags.results;
  const bool has_plans = std::filesystem::exists(beside);
  if (has_plans && std::none_of(results.begin(), results.end(),
                                [&](const std::string& path) { return place_of(path) == place_of(beside); }))
    results.push_back(beside);
  std::vector<std::filesystem::path> inputs = {flags.plan.file, flags.vae.path, flags.vae.config};
  inputs.insert(inputs.end(), results.begin(), results.end());
  inputs.insert(inputs.end(), flags.samples.begin(), flags.samples.end());
  check_targets(cli, {{"--out", flags.out}}, inputs_of(checkpoint, inputs));

  ModelReport report{.checkpoint = checkpoint};
  report.facts.push_back({"plans beside it", has_plans ? beside : "none; dydit calibrate makes them"});
  for (const std::string& path : results) read_results(cli, path, report);
  const std::optional<AutoencoderFile> vae = load_autoencoder_of(cli, flags, checkpoint);
  for (const std::string& path : flags.samples)
    report.pictures.push_back(is_latents(path) ? decoded_latents(cli, flags, path, vae, checkpoint)
                                               : picture_of(path, checkpoint));
  if (checkpoint.config.is_dynamic())
    report.widths =
        make_width_plan(checkpoint, even_times(checkpoint.config.objective, kWidthTimesteps), Mode::Dynamic);
  json record = run_record(checkpoint, options, loading_of(flags.model.checkpoint, ""));
  record["images"] = json::array();
  cli.console.info(fmt::format("model    {}", model_title(checkpoint)));
  if (options.num_images > 0)
    cli.console.info(
        fmt::format("sampling {} images, {} {} steps, guidance {}, seed {}, {}, {} threads",
                    options.num_images, kSamplerNames[options.sampler.kind], options.total_steps(),
                    options.guided() ? fmt::format("{}", options.cfg_scale) : "off", options.seed,
                    arithmetic_text(options.engine, options.dtype), options.threads));
  add_run(cli, flags, isa, vae, cancel, report, record);
  const std::string page = report_html(report);
  checkpoint.check_unchanged();

  json passed_over = json::object();
  for (const EvalResult& result : report.results) {
    if (!result.passed_over.empty()) passed_over[result.file] = result.passed_over;
  }
  write_output_file(flags.out, page);
  cli.print({{"file", flags.out},
             {"run", record},
             {"results", report.results.size()},
             {"plans", report.curves.size()},
             {"pictures", report.pictures.size()},
             {"passed_over", passed_over}},
            [&] {
              print_out("wrote {}: {:.1f} MB, {} images, {} results, {} sets of plans\n", flags.out,
                        static_cast<double>(page.size()) / 1e6, options.num_images, report.results.size(),
                        report.curves.size());
            });
  return 0;
}

}  // namespace dydit
