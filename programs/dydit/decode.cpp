// dydit decode: latents that were saved become pixels.
#include <algorithm>

#include <ATen/ATen.h>
#include <nlohmann/json.hpp>

#include "cli.h"
#include "dydit/base/error.h"
#include "dydit/io/json.h"
#include "dydit/io/safetensors.h"
#include "dydit/io/text.h"
#include "dydit/pipeline/decoder.h"
#include "dydit/pipeline/record.h"
#include "outputs.h"
#include "signals.h"
#include "targets.h"
#include "vae_flags.h"
#include "verbs.h"

namespace dydit {
namespace {

using nlohmann::json;

constexpr int kRecordDepth = 6;  // ours nests four deep

// Latents as `generate --latents` writes them, or anybody: a tensor "latents", perhaps "labels" and a record.
struct SavedLatents {
  at::Tensor latents;           // (n, C, h, w) as stored
  std::vector<int64_t> labels;  // -1: unknown
  json run = json::object();    // of the run that made them; empty: nobody said
  json images = json::array();  // of each of them; empty likewise
  std::string sha256;
  std::shared_ptr<const MappedFile> file;
};

SavedLatents read_latents(const std::string& path) {
  SafetensorsFile read = read_safetensors(path);
  SavedLatents saved;
  const auto found = read.tensors.find("latents");
  DYDIT_CHECK(found != read.tensors.end(),
              "{}: holds no tensor \"latents\"; decode takes what generate --latents writes", path);
  const at::Tensor latents = to_tensor(found->second, read.file);
  DYDIT_CHECK(latents.dim() == 4 && latents.numel() > 0 && latents.is_floating_point(),
              "{}: latents are {} {}; wanted floating point of shape (images, channels, height, width)", path,
              dtype_name(found->second.dtype), shape_text(found->second.shape));
  const int64_t count = latents.size(0);
  saved.latents = latents;
  saved.labels.assign(count, -1);
  if (const auto labels = read.tensors.find("labels"); labels != read.tensors.end()) {
    const at::Tensor values = to_tensor(labels->second, read.file);
    DYDIT_CHECK(
        values.dim() == 1 && values.size(0) == count && at::isIntegralType(values.scalar_type(), false),
        "{}: labels are {} {}; wanted whole numbers, one for each of {} latents", path,
        dtype_name(labels->second.dtype), shape_text(labels->second.shape), count);
    const at::Tensor whole = values.to(at::kLong).contiguous();
    saved.labels.assign(whole.data_ptr<int64_t>(), whole.data_ptr<int64_t>() + count);
  }
  if (const auto record = read.metadata.find(kRecordKey); record != read.metadata.end()) {
    const std::optional<json> value = parse_json(record->second, kRecordDepth);
    DYDIT_CHECK(value && value->is_object(), "{}: metadata '{}' is no record of a run", path, kRecordKey);
    saved.run = *value;
    reproducing_command(saved.run);  // looks at all that a record of ours has
    const json images = saved.run.contains("images") ? saved.run["images"] : json();
    saved.run.erase("images");
    if (images.is_array() && images.size() == static_cast<size_t>(count)) saved.images = images;
  }
  saved.sha256 = sha256_hex(read.file->bytes());
  saved.file = read.file;
  return saved;
}

// The notes of the model's training on latents, as the record repeats them.
LatentOrigin origin_of(const SavedLatents& saved, const std::string& path) {
  std::map<std::string, std::string> notes;
  const auto trained_on = saved.run.find("trained_on");
  if (trained_on != saved.run.end() && trained_on->is_object()) {
    for (const auto& [key, value] : trained_on->items())
      if (value.is_string()) notes[key] = value.get<std::string>();
  }
  return latent_origin(notes, static_cast<int>(saved.latents.size(1)), path);
}

// What the file says of image i, or its number and class.
json record_of(const SavedLatents& saved, size_t i) {
  json record = saved.images.empty() ? json::object() : saved.images[i];
  if (!record.is_object()) record = json::object();
  record.erase("file");
  record["index"] = i;
  record["class"] = saved.labels[i];
  if (!record.contains("class_name") || !record["class_name"].is_string()) record["class_name"] = "";
  return record;
}

}  // namespace

int run_decode(const Args& args, Isa isa) {
  Cli cli("decode", "Make images from latents that generate --latents wrote.");
  std::string latents_file;
  VaeFlags vae;
  OutputOptions outputs;
  int threads = 1;
  cli.add_text("--latents", latents_file,
               "Safetensors with a tensor \"latents\" (images, channels, height, width)")
      ->required();
  vae.add(cli, "Autoencoder: a folder of diffusers, a file, or TAESD's")->required();
  cli.add_text(
      "-o,--out", outputs.out,
      "FILE.png (a grid when several), a pattern like img_%03d.png, or a folder/ (default: samples.png)");
  cli.add_text("--npz", outputs.npz, "Also write the images as the ADM evaluator reads them (arr_0)");
  cli.add_threads(threads);
  cli.parse(args);
  const CancelFlag& cancel = install_cancel_handler();

  const SavedLatents saved = read_latents(latents_file);
  const int64_t count = saved.latents.size(0);
  const int channels = static_cast<int>(saved.latents.size(1)),
            height = static_cast<int>(saved.latents.size(2)), width = static_cast<int>(saved.latents.size(3));
  const LatentDecoder decoder(*vae.load(cli), origin_of(saved, latents_file), channels,
                              {.dtype = vae.resolve_dtype(), .threads = threads}, vae.resolve_tiling());
  for (const std::string& note : decoder.notes()) cli.console.info(note);
  decoder.check_memory(height, width);

  OutputRun run;
  run.record = saved.run;
  run.record["vae"] = decoder.record(height, width);
  vae.say(run.record["vae"]);
  run.record["latents"] = {
      {"file", printable(std::filesystem::path(latents_file).filename().string(), std::string::npos)},
      {"sha256", saved.sha256}};
  run.record["size"] = height * decoder.factor();
  run.num_images = static_cast<int>(count);
  run.pixels = {3, height * decoder.factor(), width * decoder.factor()};
  run.source = latents_file;
  run.channels = channels;
  for (size_t i = 0; i < static_cast<size_t>(count); ++i)
    run.longest_name =
        std::max(run.longest_name, record_of(saved, i)["class_name"].get<std::string>().size());
  Outputs sinks(cli, outputs, run, {latents_file, vae.path, vae.config});
  cli.console.info(fmt::format("latents  {}: {} of {}x{}x{}, sha256 {:.10}", latents_file, count, channels,
                               height, width, saved.sha256));
  cli.console.info(fmt::format("decoding {}: {}, {}, {:.1f} GMACs an image of {}x{}, cpu ({}), {} threads",
                               vae.path, run.record["vae"]["kind"].get<std::string>(), vae.dtype,
                               run.record["vae"]["gmacs"].get<double>(), run.pixels.width, run.pixels.height,
                               isa_name(isa), threads));

  json result = {{"latents", latents_file}, {"vae", run.record["vae"]}, {"images", json::array()}};
  double seconds = 0;
  const auto finish = [&] {
    sinks.finish();
    result["files"] = sinks.files();
    result["decode_seconds"] = seconds;
    cli.print(result, [&] {
      const double images = std::max<double>(1, static_cast<double>(result["images"].size()));
      print_out("decoding an image: {:.3f} s, {:.2f} GMACs\n", seconds / images,
                result["vae"]["gmacs"].get<double>());
      for (const json& file : result["files"]) print_out("wrote {}\n", file.get<std::string>());
    });
  };
  for (int64_t i = 0; i < count; ++i) {
    if (cancel) {
      finish();
      throw Cancelled();
    }
    GeneratedSample sample;
    sample.index = static_cast<int>(i);
    sample.label = static_cast<int>(saved.labels[i]);
    sample.sample = saved.latents[i].to(at::kFloat).contiguous();
    decoder.decode(sample);
    seconds += sample.decode_seconds;
    json record = record_of(saved, static_cast<size_t>(i));
    record["decode_seconds"] = sample.decode_seconds;
    result["images"].push_back(sinks.add(sample, record));
    cli.console.progress({"images", static_cast<long>(i + 1), static_cast<long>(count)});
  }
  saved.file->check_unchanged();
  finish();
  return 0;
}

}  // namespace dydit
