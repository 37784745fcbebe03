// dydit decode: latents that were saved become pixels.
#include <algorithm>

#include <nlohmann/json.hpp>

#include "cli.h"
#include "dydit/io/text.h"
#include "dydit/pipeline/decoder.h"
#include "dydit/pipeline/record.h"
#include "model_flags.h"
#include "outputs.h"
#include "saved_latents.h"
#include "signals.h"
#include "targets.h"
#include "vae_flags.h"
#include "verbs.h"

namespace dydit {

using nlohmann::json;

int run_decode(const Args& args, Isa isa) {
  Cli cli("decode", "Make images from latents that generate --latents wrote.");
  std::string latents_file;
  VaeFlags vae;
  OutputOptions outputs;
  std::string device = "cpu";
  int threads = 1;
  cli.add_text("--latents", latents_file,
               "Safetensors with a tensor \"latents\" (images, channels, height, width)")
      ->required();
  vae.add(cli, "Autoencoder: a folder of diffusers, a file, or TAESD's")->required();
  cli.add_text(
      "-o,--out", outputs.out,
      "FILE.png (a grid when several), a pattern like img_%03d.png, or a folder/ (default: samples.png)");
  cli.add_text("--npz", outputs.npz, "Also write the images as the ADM evaluator reads them (arr_0)");
  add_device(cli, device, /*several=*/true);
  cli.add_threads(threads);
  cli.parse(args);
  vae.where.device = gpu_or_cpu(device);
  const CancelFlag& cancel = install_cancel_handler();

  const SavedLatents saved = read_latents(latents_file);
  const int64_t count = saved.latents.size(0);
  const int channels = static_cast<int>(saved.latents.size(1)),
            height = static_cast<int>(saved.latents.size(2)), width = static_cast<int>(saved.latents.size(3));
  const LatentDecoder decoder =
      vae.decoder(cli, *vae.load(cli), saved.origin(latents_file), channels, height, width, threads);

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
    run.longest_name = std::max(run.longest_name, saved.record(i)["class_name"].get<std::string>().size());
  Outputs sinks(cli, outputs, run, {latents_file, vae.path, vae.config});
  cli.console.info(fmt::format("latents  {}: {} of {}x{}x{}, sha256 {:.10}", latents_file, count, channels,
                               height, width, saved.sha256));
  cli.console.info(fmt::format("decoding {}: {}, {}, {:.1f} GMACs an image of {}x{}, {} ({}), {} threads",
                               vae.path, run.record["vae"]["kind"].get<std::string>(), vae.dtype,
                               run.record["vae"]["gmacs"].get<double>(), run.pixels.width, run.pixels.height,
                               vae.where.device.str(), isa_name(isa), threads));

  json result = {{"latents", latents_file},
                 {"vae", run.record["vae"]},
                 {"device", vae.where.device.str()},
                 {"images", json::array()}};
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
    json record = saved.record(static_cast<size_t>(i));
    record["decode_seconds"] = sample.decode_seconds;
    result["images"].push_back(sinks.add(sample, record));
    cli.console.progress({"images", static_cast<long>(i + 1), static_cast<long>(count)});
  }
  saved.file->check_unchanged();
  finish();
  return 0;
}

}  // namespace dydit
