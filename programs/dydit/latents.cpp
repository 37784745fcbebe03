// dydit latents: flags -> images and an autoencoder -> packed latents, to train on.
#include "dydit/data/latents.h"

#include <algorithm>
#include <numeric>

#include <ATen/Parallel.h>
#include <nlohmann/json.hpp>

#include "cli.h"
#include "data_flags.h"
#include "dydit/base/dtype.h"
#include "dydit/base/error.h"
#include "dydit/base/machine.h"
#include "dydit/base/timer.h"
#include "dydit/train/communicator.h"
#include "dydit/vae/latent_writer.h"
#include "signals.h"
#include "vae_flags.h"
#include "verbs.h"

namespace dydit {
namespace {

using nlohmann::json;

constexpr EnumNames<Dtype, 3> kStoredNames = {
    "dtype", {{"f16", Dtype::F16}, {"bf16", Dtype::BF16}, {"f32", Dtype::F32}}};
constexpr int64_t kCheckedImages = 16, kMostShard = int64_t{1} << 30;

struct LatentFlags {
  VaeFlags vae;
  std::string out, dtype = "f16", data_path;
  DatasetOptions data = {.channels = 3, .cache_bytes = 0};  // each image is read once
  LatentWriteOptions write;
  bool no_flip = false, check = false;
  int threads = 1;
};

void add_flags(Cli& cli, LatentFlags& flags) {
  flags.vae.add(cli, "Autoencoder: a folder of diffusers, a file, or TAESD's")->required();
  cli.add_text("--data-path,--data_path", flags.data_path, kImagesHelp)->required();
  cli.add_text("-o,--out", flags.out, "Folder for the latents; shards that lie there already are kept")
      ->required();
  cli.add_text("--split", flags.data.split, "Folder of the data above the class folders, e.g. train");
  cli.add_number("--image-size,--image_size", flags.data.side, 1, 4096,
                 "Side of the square images that are encoded; default: that of most images");
  cli.add_switch("--skip-broken", flags.data.skip_broken,
                 "Leave broken images out and count them instead of stopping");
  cli.add_number("--shard-size", flags.write.shard_size, 1, kMostShard, "Images a file");
  cli.add_choice("--dtype", flags.dtype, kStoredNames.names(), "Type of the numbers that are written");
  cli.add_switch("--no-flip", flags.no_flip,
                 "Leave out the latents of mirrored images, which training flips to");
  cli.add_switch("--normalize", flags.write.normalize,
                 "Scale each channel by its mean and deviation in this set, not by the autoencoder's factor");
  cli.add_number("--batch", flags.write.batch, 1, 65536,
                 "Images encoded together; changes speed, not results");
  cli.add_threads(flags.threads);
  cli.add_switch("--check", flags.check,
                 "First encode and decode some images, and print how well they survive");
}

json check_json(const std::vector<double>& psnr) {
  const auto [low, high] = std::minmax_element(psnr.begin(), psnr.end());
  return {{"images", psnr.size()},
          {"psnr", std::accumulate(psnr.begin(), psnr.end(), 0.0) / static_cast<double>(psnr.size())},
          {"psnr_min", *low},
          {"psnr_max", *high}};
}

}  // namespace

int run_latents(const Args& args, Isa isa) {
  Cli cli("latents", "Encode images with an autoencoder into packed latents, to train on.");
  LatentFlags flags;
  add_flags(cli, flags);
  cli.parse(args);
  const CancelFlag& cancel = install_cancel_handler();
  const auto processes = make_communicator();
  const bool root = processes->rank() == 0;
  Console& console = cli.console;
  console.quiet = console.quiet || !root;
  at::set_num_threads(flags.threads);

  DYDIT_USAGE_CHECK(!latent_layout(flags.data_path), "{}: holds latents already; name the images",
                    flags.data_path);
  const AutoencoderFile file = *flags.vae.load(cli);
  flags.data.threads = flags.threads;
  const auto dataset = Dataset::load(flags.data_path, flags.data);
  LatentWriteOptions& write = flags.write;
  write.folder = flags.out;
  write.dtype = kStoredNames.at(flags.dtype);
  write.flips = !flags.no_flip;
  write.threads = flags.threads;
  write.source = std::filesystem::path(flags.data_path).lexically_normal().filename().string();
  write.vae_sha256 = file.sha256;
  write.tiling = flags.vae.resolve_tiling();
  write.encode_dtype = flags.vae.resolve_dtype() == at::kBFloat16 ? "bfloat16" : "float32";
  const auto autoencoder = make_autoencoder(file, {.dtype = flags.vae.resolve_dtype(),
                                                   .threads = flags.threads,
                                                   .encoder = true,
                                                   .decoder = flags.check});
  file.check_unchanged();
  const int side = dataset->side(), factor = file.config.factor();
  console.info(fmt::format("data     {}: {} images {}x{}, {} classes{}", flags.data_path, dataset->size(),
                           side, side, dataset->class_names().size(), left_out_text(*dataset, cli.verbose)));
  tell_notes(*dataset, console);
  console.info(fmt::format(
      "encoder  {}, {}: latents {}x{}x{}, {:.4g} GMACs an image, batches of {}, {} process(es) x {} "
      "threads",
      file.format, flags.vae.dtype, file.config.latent_channels, side / factor, side / factor,
      static_cast<double>(autoencoder->encode_macs(side, side)) / 1e9 * (write.flips ? 2 : 1), write.batch,
      processes->size(), flags.threads));
  json check;
  if (flags.check && root)
    check = check_json(reconstruction_psnr(*dataset, *autoencoder, kCheckedImages, write.tiling));
  const Timer timer;
  const LatentWriteReport report = write_latents(
      *dataset, *autoencoder, write, {processes->rank(), processes->size(), [&] { processes->barrier(); }},
      [&](const Progress& progress) { console.progress(progress); }, &cancel);
  if (!root) return 0;
  json result = {{"folder", flags.out},
                 {"images", report.images},
                 {"left_out", dataset->left_out().kinds},
                 {"shards", report.shards},
                 {"written", report.written},
                 {"kept", report.kept},
                 {"bytes", report.bytes},
                 {"channel_mean", report.channel_mean},
                 {"channel_std", report.channel_std},
                 {"seconds", timer.seconds()}};
  if (!check.is_null()) result["check"] = check;
  cli.print(result, [&] {
    if (!check.is_null())
      print_out("reconstruction PSNR {:.2f} dB ({:.2f} to {:.2f}) of {} images\n",
                check["psnr"].get<double>(), check["psnr_min"].get<double>(), check["psnr_max"].get<double>(),
                check["images"].get<int>());
    print_out("wrote {}: {} images in {} shards ({} kept), {}\n", flags.out, report.images, report.shards,
              report.kept, memory_text(static_cast<double>(report.bytes)));
  });
  return 0;
}

}  // namespace dydit
