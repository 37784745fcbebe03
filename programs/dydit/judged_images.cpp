#include "judged_images.h"

#include <algorithm>
#include <memory>
#include <optional>

#include "dydit/base/error.h"
#include "dydit/base/noise.h"
#include "dydit/eval/frechet.h"
#include "dydit/eval/image_set.h"
#include "dydit/pipeline/decoder.h"
#include "dydit/pipeline/pixels.h"
#include "dydit/pipeline/record.h"
#include "dydit/pipeline/sink.h"
#include "targets.h"

namespace dydit {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

// Label of image i. random: a function of seed and image; balanced: as many of each class, in a fixed order
// that mixes them.
std::vector<int> labels_of(const std::string& policy, int64_t count, int classes, uint64_t seed) {
  constexpr uint64_t kLabels = ~uint64_t{0};  // a draw that no sampling step has
  std::vector<int> labels(static_cast<size_t>(count));
  const std::vector<int64_t> order = policy == "balanced" ? fixed_permutation(count) : std::vector<int64_t>();
  for (int64_t i = 0; i < count; ++i) {
    int& label = labels[static_cast<size_t>(i)];
    if (!order.empty()) {
      label = static_cast<int>(order[static_cast<size_t>(i)] % classes);
      continue;
    }
    float u[4];
    fill_uniform(u, seed, static_cast<uint64_t>(i), kLabels);
    label = std::min(classes - 1, static_cast<int>(u[0] * static_cast<float>(classes)));
  }
  return labels;
}

// What a model makes. Holds everything that making takes.
struct Sampled {
  Checkpoint checkpoint;
  GenerateOptions options;
  std::optional<LatentDecoder> decoder;
  std::unique_ptr<Pipeline> pipeline;
  StitchFlags stitch;
  std::unique_ptr<Pipeline> small;  // of the stitch; null: none
};

void sample(const Sampled& sampled, int64_t first, int64_t count,
            const std::function<void(JudgedImage&&)>& take, const ProgressFn& told,
            const CancelFlag& cancel) {
  GenerateOptions options = sampled.options;
  options.num_images = static_cast<int>(first + count);
  options.first = static_cast<int>(first);
  const GenerateCallbacks callbacks = {
      .on_sample =
          [&](GeneratedSample&& made) {
            made.pixels = made.sample;
            if (sampled.decoder) sampled.decoder->decode(made);
            take({to_image(made.pixels),
                  made.label,
                  {made.seconds + made.decode_seconds, static_cast<double>(made.work.required) / 1e9,
                   static_cast<double>(made.work.executed) / 1e9}});
          },
      .on_progress = told,
      .cancel = &cancel};
  if (!options.stitch) return sampled.pipeline->generate(options, options, callbacks);
  sampled.pipeline->generate(options, options, callbacks, *options.stitch, *sampled.small);
}

}  // namespace

JudgedImages images_of_model(Cli& cli, const ModelFlags& model, EvaluateImagesFlags& flags,
                             const CancelFlag& cancel) {
  auto sampled =
      std::make_shared<Sampled>(Sampled{model.load(cli), flags.options, {}, nullptr, flags.stitch, nullptr});
  const Checkpoint& checkpoint = sampled->checkpoint;
  const DiTConfig& config = checkpoint.config;
  GenerateOptions& options = sampled->options;
  flags.sampling.resolve(cli, checkpoint, model, options);
  flags.vae.where = options.where;
  options.classes =
      labels_of(flags.labels, options.num_images, std::max(config.num_classes, 1), options.seed);
  flags.plan.resolve(cli, checkpoint, cli.given("--steps") || cli.given("--timesteps"), options);
  sampled->stitch.resolve(cli, checkpoint, options);
  if (const auto file = flags.vae.load(cli, makes_pixels(config) && flags.vae.path.empty()
                                                ? fs::path()
                                                : own_autoencoder(checkpoint.path))) {
    sampled->decoder.emplace(flags.vae.decoder(
        cli, *file, latent_origin(checkpoint.notes, config.in_channels, checkpoint.path.string()),
        config.in_channels, config.input_size, config.input_size, model.threads));
  }
  DYDIT_USAGE_CHECK(sampled->decoder || makes_pixels(config),
                    "{} makes latents, which no network of features takes; name its autoencoder with --vae",
                    checkpoint.path.string());
  sampled->pipeline = std::make_unique<Pipeline>(checkpoint, options.engine, options.engine_options());

  if (options.stitch)
    sampled->small =
        std::make_unique<Pipeline>(*sampled->stitch.small, options.engine, options.engine_options());

  JudgedImages images;
  images.count = options.num_images;
  images.class_names = checkpoint.class_names;
  images.inputs = inputs_of(
      checkpoint, {flags.plan.input(checkpoint), flags.vae.path, flags.vae.config, sampled->stitch.input()});
  json run = run_record(checkpoint, options);
  images.about = {
      {"model", checkpoint.path.string()}, {"model_sha256", checkpoint.sha256}, {"labels", flags.labels}};
  for (const char* key :
       {"sampler", "eta", "steps", "cfg_scale", "cfg_channels", "mode", "seed", "dtype", "engine", "device"})
    images.about[key] = run[key];
  if (options.plan) {
    const json plan = plan_record(checkpoint, options, flags.plan.said(options));
    images.about["plan"] = plan["name"];
    run["plan"] = plan["sha256"];
  }
  images.about["static_gmacs_per_image"] = run["static_gmacs"];
  if (options.stitch) {
    images.about["stitch"] = run["stitch"];
    for (const std::string& line : stitch_lines(run)) cli.console.info(line);
  }
  if (sampled->decoder) {
    images.about["vae"] = sampled->decoder->record(config.input_size, config.input_size);
    run["vae"] = images.about["vae"];
  }
  run["labels"] = flags.labels;
  for (const char* key : {"classes", "batch", "threads", "version", "loading"}) run.erase(key);
  if (flags.labels == "random") run.erase("num_images");  // more images may come later
  images.key = run;
  images.make = [sampled, &cancel](int64_t first, int64_t count, const auto& take, const ProgressFn& told) {
    sample(*sampled, first, count, take, told, cancel);
  };
  return images;
}

JudgedImages images_that_lie(const std::string& path, const std::string& split, int64_t most) {
  DYDIT_USAGE_CHECK(fs::exists(path), "{}: no such file or folder", path);
  const auto set = std::make_shared<const ImageSet>(open_images(path, split));
  DYDIT_USAGE_CHECK(most <= set->size, "{}: holds {} images, {} are asked for", path, set->size, most);
  JudgedImages images;
  images.count = most > 0 ? most : set->size;
  images.class_names = set->class_names;
  images.inputs = {path};
  images.key = {{"images_sha256", set->sha256}, {"split", split}};
  images.about = {{"images", path}, {"images_sha256", set->sha256}};
  images.read = [set](int64_t index) {
    return JudgedImage{set->image(index), set->labels[static_cast<size_t>(index)], {}};
  };
  return images;
}

}  // namespace dydit
