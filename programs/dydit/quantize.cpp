// dydit quantize: a checkpoint whose blocks' layers are stored, and multiplied, in 8 bits.
#include <filesystem>
#include <numeric>

#include <nlohmann/json.hpp>

#include "cli.h"
#include "dydit/calibrate/smoothing.h"
#include "dydit/model/quantization.h"
#include "model_flags.h"
#include "signals.h"
#include "targets.h"
#include "verbs.h"

namespace dydit {
namespace {

constexpr int kCalibrationSteps = 10;  // timesteps of the images that the model makes
constexpr float kCalibrationScale = 1.5f;

}  // namespace

int run_quantize(const Args& args, Isa isa) {
  Cli cli("quantize", "Write a checkpoint whose blocks' layers are rounded to 8 bits, for --dtype int8.");
  std::string in, out, dtype = "bf16";
  CheckpointOptions options;
  int images = 64, batch = 16, threads = 1;
  double smoothing = 0.5;
  uint64_t seed = 0;
  add_model_path(cli, in, options);
  cli.add_text("--out", out, "Target: a name that ends in .safetensors")->required();
  cli.add_number(
      "--calibrate", images, 0, 65536,
      "Images that the model makes itself, of 10 steps, to find its largest activations; 0: none, and "
      "nothing is smoothed");
  cli.add_number("--smoothing", smoothing, 0, 1,
                 "Exponent of the activations' largest values in the smoothing factors");
  cli.add_number("--batch", batch, 1, 65536, "Images made together");
  cli.add_seed("--seed", seed, "Of these images");
  cli.add_choice("--dtype", dtype, kDtypeNames.names(),
                 "Type of what is not rounded to 8 bits (pos_embed stays float32)");
  cli.add_threads(threads);
  cli.parse(args);
  for (const char* flag : {"--smoothing", "--seed", "--batch"})
    cli.needs(flag, images > 0, "--calibrate above 0");
  DYDIT_USAGE_CHECK(out.ends_with(".safetensors"), "--out {}: expected a name that ends in .safetensors",
                    out);

  const CancelFlag& cancel = install_cancel_handler();
  const Checkpoint checkpoint = load_model(cli, in, options);
  refuse_quantized(checkpoint, "quantize");
  check_targets(cli, {{"--out", out}}, inputs_of(checkpoint));
  cli.console.info(
      fmt::format("model    {}: {}, sha256 {:.10}", in, model_name(checkpoint.config), checkpoint.sha256));
  at::Tensor factors;
  if (images > 0) {
    cli.console.info(
        fmt::format("smoothed by {} of its images, {} steps, guidance {}, batches of {}, {} threads", images,
                    kCalibrationSteps, checkpoint.few_step ? 1 : kCalibrationScale, batch, threads));
    std::vector<int> classes(std::max(checkpoint.config.num_classes, 1));
    std::iota(classes.begin(), classes.end(), 0);
    GenerateOptions request{{.classes = classes,
                             .num_images = images,
                             .num_steps = kCalibrationSteps,
                             .sampler = {SamplerKind::Ddim},
                             .cfg_scale = checkpoint.config.can_guide() ? kCalibrationScale : 1.0f,
                             .seed = seed,
                             .mode = checkpoint.config.is_dynamic() ? Mode::Dynamic : Mode::Static},
                            {.batch = batch, .threads = threads},
                            at::kFloat,
                            EngineKind::Cpu};
    take_few_step(checkpoint.few_step, {.steps = false}, request);
    factors = smoothing_factors(
        checkpoint, request, smoothing, [&](const Progress& progress) { cli.console.progress(progress); },
        &cancel);
  }
  const Quantization how{images > 0 ? smoothing : 0, images, seed, checkpoint.sha256};
  save_checkpoint(out, quantize_checkpoint(checkpoint, factors, how), kDtypeNames.at(dtype));
  const auto bytes = std::filesystem::file_size(out);
  cli.print({{"in", in},
             {"out", out},
             {"model", model_name(checkpoint.config)},
             {"parameters", checkpoint.num_parameters()},
             {"bytes", bytes},
             {"dtype", dtype},
             {"scheme", kQuantizationScheme},
             {"images", how.images},
             {"smoothing", how.smoothing},
             {"seed", how.seed},
             {"parent_sha256", how.parent_sha256}},
            [&] {
              print_out("{}: {}, {:.2f} M parameters -> {} (int8 and {}, {:.1f} MB, {})\n", in,
                        model_name(checkpoint.config), static_cast<double>(checkpoint.num_parameters()) / 1e6,
                        out, dtype, static_cast<double>(bytes) / 1e6,
                        images > 0 ? fmt::format("smoothed by {} images", images) : "not smoothed");
            });
  return 0;
}

}  // namespace dydit
