// Read evaluate_images() first: features of the images, of the reference, and what the two say.
#include "evaluate_images.h"

#include <algorithm>
#include <filesystem>
#include <optional>
#include <set>

#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "dydit/base/error.h"
#include "dydit/base/timer.h"
#include "dydit/base/version.h"
#include "dydit/eval/feature_store.h"
#include "dydit/eval/metrics.h"
#include "dydit/io/bytes.h"
#include "dydit/io/file.h"
#include "dydit/io/npz.h"
#include "dydit/io/npz_reader.h"
#include "dydit/io/zip.h"
#include "dydit/train/communicator.h"
#include "evaluate_result.h"
#include "judged_images.h"
#include "signals.h"
#include "targets.h"

namespace dydit {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using nlohmann::ordered_json;

constexpr int kCifarClasses = 10;
constexpr const char* kCifarNames[kCifarClasses] = {"airplane", "automobile", "bird",  "cat",  "deer",
                                                    "dog",      "frog",       "horse", "ship", "truck"};

// Runs of consecutive indices, none longer than `most`.
std::vector<std::pair<int64_t, int64_t>> chunks_of(const std::vector<int64_t>& indices, int64_t most) {
  std::vector<std::pair<int64_t, int64_t>> chunks;
  for (const int64_t index : indices) {
    if (chunks.empty() || chunks.back().first + chunks.back().second != index ||
        chunks.back().second == most) {
      chunks.emplace_back(index, 0);
    }
    ++chunks.back().second;
  }
  return chunks;
}

struct Judges {
  Extractor& extractor;
  Communicator& processes;
  Console& console;
  const CancelFlag& cancel;
  int batch;
};

json key_of(const json& images, const Extractor& extractor, const std::string& dtype) {
  return {{"images", images},
          {"extractor", kExtractorNames[extractor.kind()]},
          {"weights_sha256", extractor.weights_sha256()},
          {"resize", kResizeNames[extractor.rule()]},
          {"extractor_dtype", dtype}};
}

// Features of all images that no process has yet; processes take chunks in turn.
void fill(FeatureStore& store, const JudgedImages& images, const Judges& judges, const char* what) {
  Communicator& processes = judges.processes;
  const std::vector<int64_t> missing = store.missing(images.count);
  processes.barrier();  // all have looked before anyone writes
  if (missing.empty()) return;
  if (static_cast<int64_t>(missing.size()) < images.count)
    judges.console.info(
        fmt::format("resumed  {} of {} {} are there", images.count - missing.size(), images.count, what));
  std::vector<std::pair<int64_t, int64_t>> mine;
  const auto chunks = chunks_of(missing, judges.batch);
  for (size_t c = static_cast<size_t>(processes.rank()); c < chunks.size(); c += processes.size())
    mine.push_back(chunks[c]);
  int64_t all = 0, done = 0;
  for (const auto& [first, count] : mine) all += count;
  Console console;
  console.quiet = judges.console.quiet;
  for (const auto& [first, count] : mine) {
    std::vector<JudgedImage> made(static_cast<size_t>(count));
    // Gives the pixels and keeps the rest.
    const auto pixels_of = [&](JudgedImage&& image, int i) {
      Image pixels = std::move(image.image);
      image.image = {pixels.height, pixels.width, pixels.channels, {}};
      made[static_cast<size_t>(i)] = std::move(image);
      return pixels;
    };
    ImageFeatures features;
    if (images.read) {
      features = judges.extractor.extract(static_cast<int>(count),
                                          [&](int i) { return pixels_of(images.read(first + i), i); });
    } else {
      std::vector<Image> batch;
      images.make(
          first, count,
          [&](JudgedImage&& image) {
            batch.push_back(pixels_of(std::move(image), static_cast<int>(batch.size())));
          },
          [&](const Progress& steps) {  // of this chunk: as a share of its images
            const int64_t part = count * steps.done / std::max<int64_t>(1, steps.total);
            console.progress({what, static_cast<long>(done + part), static_cast<long>(all)});
          });
      features = judges.extractor.extract(batch);
    }
    for (int64_t i = 0; i < count; ++i) {
      const JudgedImage& image = made[static_cast<size_t>(i)];
      store.add({first + i, image.label, image.image.height, image.image.width, image.cost}, features, i);
    }
    done += count;
    console.progress({what, static_cast<long>(done), static_cast<long>(all)});
    if (judges.cancel) throw Cancelled();
  }
}

// The folder's first process says whose features it keeps, before the others look.
std::unique_ptr<FeatureStore> open_store(const fs::path& folder, const json& key, const Judges& judges) {
  const bool first = judges.processes.rank() == 0;
  if (!first) judges.processes.barrier();
  auto store = std::make_unique<FeatureStore>(judges.extractor.sizes(), folder, key, judges.processes.rank());
  if (first) judges.processes.barrier();
  return store;
}

struct ReferenceSet {
  FeatureStatistics statistics;
  std::string sha256;
  std::set<std::pair<int, int>> sizes;  // of its images; empty: unknown
};

bool is_statistics(const fs::path& path, bool& has_images) {
  has_images = false;
  std::error_code unreadable;
  if (fs::is_directory(path, unreadable)) return false;
  const auto file = MappedFile::open(path);
  const FileKind kind = sniff_file_kind(file->bytes());
  if (kind == FileKind::Safetensors) return true;
  if (kind != FileKind::Npz) return false;
  bool statistics = false;
  for (const NpzEntry& entry : list_npz(ZipArchive(file->bytes(), path.string()), path.string())) {
    statistics |= entry.name == "mu";
    has_images |= entry.name == "arr_0";
  }
  return statistics;
}

FeatureStatistics statistics_of(const StoredFeatures& features, const StatisticsOrigin& origin, int threads) {
  FeatureStatistics statistics;
  const auto gaussian = [&](const at::Tensor& rows) {
    return gaussian_of(moments_of(rows, {.threads = threads}).front());
  };
  statistics.features = gaussian(features.values.features);
  if (features.values.spatial.defined()) statistics.spatial = gaussian(features.values.spatial);
  statistics.rows = features.values.features;
  statistics.images = features.values.features.size(0);
  statistics.origin = origin;
  return statistics;
}

ReferenceSet read_reference(const EvaluateImagesFlags& flags, const Judges& judges,
                            const StatisticsOrigin& origin, int threads) {
  const fs::path path = flags.reference;
  DYDIT_USAGE_CHECK(fs::exists(path), "--reference {}: no such file or folder", path.string());
  bool has_images = false;
  const bool ready = is_statistics(path, has_images);
  ReferenceSet reference;
  if (ready) {
    reference.statistics = read_statistics(path);
    reference.sha256 = sha256_hex(MappedFile::open(path)->bytes());
    check_comparable(reference.statistics, origin, judges.extractor.sizes().features, path.string());
    if (!has_images || flags.no_pairs) return reference;  // its rows, where it has some
  }
  const JudgedImages images = images_that_lie(path.string(), flags.reference_split, 0);
  const fs::path folder = flags.folder.empty() ? fs::path() : fs::path(flags.folder) / "reference";
  const auto store = open_store(folder, key_of(images.key, judges.extractor, flags.extractor.dtype), judges);
  fill(*store, images, judges, "reference images");
  judges.processes.barrier();
  if (judges.processes.rank() != 0) return reference;
  const StoredFeatures features = store->collect(images.count);
  reference.sizes = features.sizes;
  if (ready) {
    reference.statistics.rows = features.values.features;  // its own statistics are of more images
    return reference;
  }
  StatisticsOrigin of_images = origin;
  of_images.source_sha256 = images.key["images_sha256"];
  reference.statistics = statistics_of(features, of_images, threads);
  reference.sha256 = images.key["images_sha256"];
  return reference;
}

std::string sizes_text(const std::set<std::pair<int, int>>& sizes) {
  if (sizes.size() > 1) return fmt::format("{} sizes", sizes.size());
  return fmt::format("{} x {} pixels", sizes.begin()->second, sizes.begin()->first);
}

// Whether the extractor's classes are those that images were asked for.
bool classes_agree(const Extractor& extractor, const JudgedImages& images) {
  if (extractor.kind() != ExtractorKind::Resnet56 && extractor.kind() != ExtractorKind::Resnet20)
    return false;
  return images.class_names.size() == kCifarClasses &&
         std::equal(images.class_names.begin(), images.class_names.end(), kCifarNames);
}

std::string_view protocol_of(const Extractor& extractor) {
  if (extractor.kind() != ExtractorKind::Inception) return "ours";
  return extractor.rule() == ResizeRule::Adm ? "adm" : kResizeNames[extractor.rule()];
}

// What the flags need of each other; the rest of the verb takes them as they are.
void check_flags(Cli& cli, const EvaluateImagesFlags& flags, bool lie, const Communicator& processes) {
  DYDIT_USAGE_CHECK(
      !flags.reference.empty() || !flags.write_stats.empty(),
      "nothing to compare with: give --reference, statistics or images; or --write-stats to make some");
  for (const char* flag : {"--steps", "--timesteps", "--sampler", "--cfg-scale", "--mode", "--labels",
                           "--seed", "--vae", "--stitch"})
    cli.needs(flag, !lie, "--model; images that lie somewhere are taken as they are");
  cli.needs("--images-split", lie, "--images");
  for (const char* flag : {"--reference-split", "--fid-infinity", "--torch-fidelity"})
    cli.needs(flag, !flags.reference.empty(), "--reference");
  cli.needs("--resize", flags.extractor.kind() == ExtractorKind::Inception,
            "--extractor inception; the others have one of their own");
  flags.sampling.check(cli, flags.options);
  DYDIT_USAGE_CHECK(processes.size() == 1 || !flags.folder.empty(),
                    "several processes share a folder: give --features");
  DYDIT_USAGE_CHECK(processes.size() == 1 || flags.save.empty(),
                    "--save: needs one process; several make images in no order");
}

// The same images, each of which goes to `file` on its way, in their order. `file` is made for the first of
// them, which has their size.
JudgedImages saved_on_the_way(const JudgedImages& images, const std::string& path,
                              std::optional<NpzImageWriter>& file) {
  JudgedImages saved = images;
  saved.read = nullptr;
  saved.make = [&images, path, &file](int64_t first, int64_t count, const auto& take,
                                      const ProgressFn& told) {
    const auto save_and_take = [&](JudgedImage&& made) {
      if (!file) file.emplace(path, made.image.height, made.image.width, made.image.channels);
      file->append(made.image);
      take(std::move(made));
    };
    if (images.make) return images.make(first, count, save_and_take, told);
    for (int64_t i = first; i < first + count; ++i) save_and_take(images.read(i));
  };
  return saved;
}

// The metrics of the images against the reference, and what is known of it.
ordered_json compared(const StoredFeatures& features, const ReferenceSet& reference,
                      const EvaluateImagesFlags& flags, const MetricOptions& options,
                      std::vector<std::string>& warnings) {
  GeneratedFeatures generated = {
      features.values.features, features.values.spatial, features.values.logits, {}};
  if (std::find(features.labels.begin(), features.labels.end(), kNoLabel) == features.labels.end())
    generated.labels = features.labels;
  if (!reference.statistics.spatial && generated.spatial.defined()) {
    generated.spatial = at::Tensor();
    warnings.push_back("the reference has no statistics of spatial features (mu_s, sigma_s): no sFID");
  }
  const Metrics metrics = measure(generated, reference.statistics, options);
  warnings.insert(warnings.end(), metrics.warnings.begin(), metrics.warnings.end());
  if (!reference.sizes.empty() && reference.sizes != features.sizes)
    warnings.push_back(
        fmt::format("images are of {}, the reference of {}: the resize treats them differently",
                    sizes_text(features.sizes), sizes_text(reference.sizes)));
  ordered_json result = metrics_json(metrics);
  result["reference"] = flags.reference;
  if (!flags.reference_split.empty()) result["reference_split"] = flags.reference_split;
  if (metrics.reference_n > 0) result["reference_n"] = metrics.reference_n;
  result["reference_sha256"] = reference.sha256;
  return result;
}

}  // namespace

void EvaluateImagesFlags::add(Cli& cli) {
  options.num_images = 0;
  options.batch = 64;
  options.cfg_scale = 1.5f;  // of the tables
  cli.add_text(
      "--images", images,
      "Images to measure instead of a model's: a folder, an archive or an npz; with --loss how many of "
      "the held-out images count, spread evenly (default: 1000)");
  cli.add_text("--images-split", images_split, "Folder in --images above the class folders, e.g. test");
  cli.add_text(
      "--reference", reference,
      "What they are compared with: statistics (.npz with mu and sigma, .stats.safetensors), an npz of "
      "images, a folder or an archive");
  cli.add_text("--reference-split", reference_split,
               "Folder in --reference above the class folders, e.g. train");
  cli.add_number("-n,--num-images", options.num_images, 1, 100'000'000,
                 "Images to make or to take (default: 50000 of a model, all that lie somewhere)");
  extractor.add(cli);
  sampling.add(cli, options);
  sampling.add_timesteps(cli);
  cli.add_choice(
      "--labels", labels, {"random", "balanced"},
      "Classes of a model's images: drawn for each image, as DiT's and ADM's scripts do, or as many of "
      "each");
  plan.add(cli);
  plan.add_budget(cli);
  stitch.add(cli);
  vae.add(cli, "Autoencoder of a latent model (default: the one in a pipeline's folder)");
  cli.add_text("--features", folder,
               "Folder that keeps the features of every image: a run that was stopped at any moment goes on "
               "there, and the processes of mpirun share it");
  cli.add_switch("--fid-infinity", fid_infinity, "Also extrapolate FID to an endless number of images");
  cli.add_switch("--torch-fidelity", torch_fidelity,
                 "Also Inception Score and KID as torch-fidelity reports them, of the rows that it draws");
  cli.add_switch("--no-pairs", no_pairs, "Leave out what compares all pairs: KID, precision, recall");
  cli.add_text(
      "--write-stats", write_stats,
      "Write the statistics of the measured images: NAME.stats.safetensors, a --reference of later runs "
      "with their features, or NAME.npz as other tools read it");
  cli.add_text("--save", save, "Also write the images as the ADM evaluator reads them (npz, arr_0)");
  cli.add_text("--name", name, "How a report calls the result (default: the model's file)");
}

int evaluate_images(Cli& cli, const ModelFlags& model, EvaluateImagesFlags& flags, Isa isa) {
  const std::shared_ptr<Communicator> processes = make_communicator();
  const bool chief = processes->rank() == 0;
  Console& console = cli.console;
  if (!chief) console.quiet = true;
  const CancelFlag& cancel = install_cancel_handler();
  cli.one_of("--model", "--images");
  const bool lie = model.path.empty();
  check_flags(cli, flags, lie, *processes);
  if (!lie && flags.options.num_images == 0) flags.options.num_images = 50'000;

  const Timer timer;
  const std::unique_ptr<Extractor> extractor = flags.extractor.load(cli, model.threads);
  JudgedImages images = lie ? images_that_lie(flags.images, flags.images_split, flags.options.num_images)
                            : images_of_model(cli, model, flags, cancel);
  images.inputs.push_back(flags.reference);
  images.inputs.push_back(flags.extractor.weights);
  check_targets(cli, {{"--write-stats", flags.write_stats}, {"--save", flags.save}}, images.inputs);
  console.info(fmt::format("images   {} of {}", images.count, lie ? flags.images : model.path));
  console.info(fmt::format("engine   cpu ({}), {} threads, {} processes", isa_name(isa), model.threads,
                           processes->size()));

  const Judges judges = {*extractor, *processes, console, cancel, flags.options.batch};
  StatisticsOrigin origin = {flags.extractor.extractor,
                             extractor->weights_sha256(),
                             std::string(kResizeNames[extractor->rule()]),
                             "",
                             lie ? "" : flags.labels,
                             fmt::format("dydit {}", kVersion)};
  const auto store = open_store(flags.folder, key_of(images.key, *extractor, flags.extractor.dtype), judges);
  std::optional<NpzImageWriter> file;
  if (flags.save.empty()) {
    fill(*store, images, judges, "images");
  } else {
    DYDIT_USAGE_CHECK(
        static_cast<int64_t>(store->missing(images.count).size()) == images.count,
        "--save: {} keeps features of images that were made before, not the images; name a new folder",
        flags.folder);
    fill(*store, saved_on_the_way(images, flags.save, file), judges, "images");
  }
  processes->barrier();
  std::optional<ReferenceSet> reference;
  if (!flags.reference.empty()) reference = read_reference(flags, judges, origin, model.threads);
  if (!chief) return 0;

  const StoredFeatures features = store->collect(images.count);
  ordered_json result = {{"n", images.count}};
  std::vector<std::string> warnings;
  if (reference) {
    MetricOptions options;
    options.fid_infinity = flags.fid_infinity;
    options.torch_fidelity = flags.torch_fidelity;
    options.pairs = !flags.no_pairs;
    options.labels_are_logits = classes_agree(*extractor, images);
    options.threads = model.threads;
    options.cancel = &cancel;
    result = compared(features, *reference, flags, options, warnings);
  }
  if (features.sizes.size() > 1)
    warnings.push_back(
        fmt::format("images are of {}: each is resized by itself", sizes_text(features.sizes)));
  if (flags.extractor.dtype == "bf16")
    warnings.push_back("features in bfloat16: for a curve on the way, not for a table");
  result["protocol"] = protocol_of(*extractor);
  result["extractor"] = flags.extractor.extractor;
  result["weights_sha256"] = extractor->weights_sha256();
  result["resize"] = kResizeNames[extractor->rule()];
  result["extractor_dtype"] = flags.extractor.dtype;
  result.update(images.about);
  if (lie && !flags.images_split.empty()) result["images_split"] = flags.images_split;
  if (!lie) {
    result["gmacs_per_image"] = features.mean_cost.required_gmacs;
    result["executed_gmacs_per_image"] = features.mean_cost.executed_gmacs;
    result["seconds_per_image"] = features.mean_cost.seconds;
  }
  result["name"] =
      flags.name.empty() ? fs::path(lie ? flags.images : model.path).filename().string() : flags.name;
  result["version"] = kVersion;
  result["processes"] = processes->size();
  result["warnings"] = warnings;
  result["seconds"] = timer.seconds();
  cli.print(result, [&] { print_evaluation(result); });
  if (file) file->commit();
  if (!flags.write_stats.empty()) {
    origin.source_sha256 = sha256_hex(bytes_of(images.key.dump()));
    write_statistics(flags.write_stats, statistics_of(features, origin, model.threads));
    console.info(fmt::format("wrote {}", flags.write_stats));
  }
  return 0;
}

}  // namespace dydit
