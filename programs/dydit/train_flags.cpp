// Names and defaults are those of DiT's and DyDiT's training scripts where they have them.
#include "train_flags.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include <ATen/Context.h>

#include "dydit/base/error.h"

namespace dydit {
namespace {

namespace fs = std::filesystem;

#ifdef DYDIT_CUDA
constexpr bool kBuiltWithCuda = true;
#else
constexpr bool kBuiltWithCuda = false;
#endif

// Numbers of the runs in `results`, with their folders, ascending.
std::vector<std::pair<int, fs::path>> existing_runs(const fs::path& results) {
  std::vector<std::pair<int, fs::path>> runs;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(results, error)) {
    const std::string name = entry.path().filename().string();
    int number = 0;
    const auto [end, parse_error] = std::from_chars(name.data(), name.data() + name.size(), number);
    if (parse_error == std::errc() && *end == '-' && entry.is_directory())
      runs.emplace_back(number, entry.path());
  }
  std::sort(runs.begin(), runs.end());
  return runs;
}

}  // namespace

void TrainFlags::add(Cli& cli) {
  CLI::App& app = cli.app;
  const auto positive = CLI::Range(1, 1'000'000'000);
  const auto not_negative = CLI::Range(0.0, 1e12);
  app.add_option("--data-path,--data_path", data_path,
                 "ROOT/CLASS/*.png|jpg, a .tar or .tar.gz of it, CIFAR-10 binary files, or npz")
      ->required();
  app.add_option("--split", data.split, "Folder of the data above the class folders, e.g. train");
  app.add_option("--image-size,--image_size", data.side,
                 "Side of the square images to train on; default: the model's, or the first image's")
      ->check(CLI::Range(1, 4096));
  app.add_flag("--skip-broken", data.skip_broken,
               "Leave broken images out and count them instead of stopping");
  app.add_option("--results-dir,--results_dir", results_dir, "Runs go to DIR/000-NAME, 001-NAME, ...")
      ->capture_default_str();
  app.add_flag("--resume", run.resume,
               "Continue the newest run of --results-dir from its newest whole checkpoint");
  app.add_option("--total-train-steps,--total_train_steps", options.total_steps, "Steps in all")
      ->check(positive);
  app.add_option("--epochs", epochs, "Passes over the data, instead of steps")->check(CLI::Range(1e-6, 1e9));
  app.add_option("--global-batch-size,--global_batch_size", options.global_batch,
                 "Images a step, over all processes")
      ->capture_default_str()
      ->check(CLI::Range(1, 1 << 24));
  app.add_option("--accumulate", options.accumulate, "Micro-batches a process cuts its share into")
      ->capture_default_str()
      ->check(CLI::Range(1, 1 << 16));
  app.add_option("--lr", options.lr, "Learning rate of AdamW")->capture_default_str()->check(not_negative);
  app.add_option("--warmup-step,--warmup_step", options.warmup_steps, "Steps of linear warm-up")
      ->capture_default_str()
      ->check(CLI::Range(0, 1'000'000'000));
  app.add_option("--weight-decay,--weight_decay", options.weight_decay, "Decoupled weight decay")
      ->capture_default_str()
      ->check(not_negative);
  app.add_option("--clip-grad,--clip_grad", options.clip_grad,
                 "Clip the gradient's L2 norm to this; 0: do not")
      ->capture_default_str()
      ->check(not_negative);
  app.add_option("--skip-norm,--clip-max-norm,--clip_max_norm", options.skip_norm,
                 "Skip updates whose gradient norm is this or more; 0: none but NaN")
      ->capture_default_str()
      ->check(not_negative);
  app.add_option("--ema-decay,--ema_decay", options.ema_decay, "Decay of the weights' moving average")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 1.0));
  app.add_option("--label-dropout", options.label_dropout, "Share of labels replaced by the null class")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 1.0));
  cli.add_choice("--flip", flip, {"on", "off"}, "Random horizontal flip");
  cli.add_choice("--dtype", dtype, {"auto", "bf16", "f32"},
                 "Arithmetic of the blocks; master weights are float32");
  if (kBuiltWithCuda) {
    cli.add_choice("--device", device, {"cpu", "cuda"}, "Device");
  } else {
    cli.add_choice("--device", device, {"cpu"}, "Device", {"cuda"},
                   "built without CUDA; scripts/build cuda builds it with CUDA");
  }
  app.add_option("--global-seed,--global_seed,--seed", options.seed, "Seed of everything that is drawn")
      ->capture_default_str();
  cli.add_threads(threads);
  app.add_option("--log-every,--log_every", run.log_every, "Steps a row of the log")
      ->capture_default_str()
      ->check(positive);
  app.add_option("--ckpt-every,--ckpt_every", run.checkpoint_every, "Steps between checkpoints")
      ->capture_default_str()
      ->check(positive);
  app.add_option("--keep-last", run.keep_last, "Checkpoints kept")->capture_default_str()->check(positive);
  app.add_option("--keep-every", run.keep_every, "Checkpoints at multiples of this stay for good; 0: none")
      ->capture_default_str()
      ->check(CLI::Range(0, 1'000'000'000));
  app.add_option("--sample-every", run.sample_every, "Steps between sample grids of the EMA; 0: never")
      ->capture_default_str()
      ->check(CLI::Range(0, 1'000'000'000));
  app.add_option("--sample-steps", sample_steps, "DDIM steps of a sample grid")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000));
  app.add_option("--sample-cfg-scale", sample_cfg_scale, "Guidance of a sample grid")
      ->capture_default_str()
      ->check(CLI::Range(0.0f, 1000.0f));
}

void TrainFlags::take_size_of(const DiTConfig& config) {
  DYDIT_USAGE_CHECK(data.side == 0 || data.side == config.input_size,
                    "--image-size {}: the model takes {}x{}", data.side, config.input_size,
                    config.input_size);
  data.side = config.input_size;
  data.channels = config.in_channels;
}

void TrainFlags::choose_device(Isa isa, int processes) {
  const bool cuda = device == "cuda";
  DYDIT_USAGE_CHECK(!cuda || processes == 1,
                    "--device cuda: {} processes; one process on one GPU is what there is", processes);
  DYDIT_CHECK(!cuda || at::hasCUDA(),
              "--device cuda: there is no GPU that CUDA can use (see nvidia-smi); train with --device cpu");
  options.device = at::Device(cuda ? at::kCUDA : at::kCPU, cuda ? 0 : -1);
  const bool bf16 = dtype == "auto" ? cuda || has_native_bf16(isa) : dtype == "bf16";
  options.dtype = bf16 ? at::kBFloat16 : at::kFloat;
}

void TrainFlags::resolve(const Dataset& dataset) {
  DYDIT_USAGE_CHECK((options.total_steps > 0) != (epochs > 0), "give either --total-train-steps or --epochs");
  if (epochs > 0) {
    options.total_steps =
        static_cast<int64_t>(std::ceil(epochs * static_cast<double>(dataset.size()) / options.global_batch));
  }
  options.flip = flip == "on";
}

fs::path choose_run_folder(const std::string& results_dir, const std::string& name, bool resume,
                           Communicator& processes) {
  const auto runs = existing_runs(results_dir);
  if (resume) {
    DYDIT_USAGE_CHECK(!runs.empty(), "--resume: {} holds no run", results_dir);
    return runs.back().second;
  }
  const fs::path run =
      fs::path(results_dir) / fmt::format("{:03}-{}", runs.empty() ? 0 : runs.back().first + 1, name);
  processes.barrier();  // nobody makes the folder before all have looked
  if (processes.rank() == 0) {
    std::error_code error;
    fs::create_directories(run / "checkpoints", error);
    DYDIT_CHECK(!error, "{}: cannot make this folder: {}", run.string(), error.message());
  }
  processes.barrier();
  return run;
}

}  // namespace dydit
