#include <algorithm>
#include <fstream>
#include <functional>
#include <vector>

#include <ATen/ops/randn.h>
#include <nlohmann/json.hpp>
#include <sys/resource.h>

#include "bench_parts.h"
#include "dydit/base/dtype.h"
#include "dydit/base/error.h"
#include "dydit/base/machine.h"
#include "dydit/base/timer.h"
#include "dydit/base/version.h"
#include "dydit/vae/autoencoder.h"

namespace dydit {
namespace {

using nlohmann::json;

// Kilobytes of a line of /proc/self/status, in bytes.
double status_bytes(const std::string& key) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with(key)) return std::stod(line.substr(key.size())) * 1024;
  }
  return 0;
}

double cpu_seconds() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
         static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

struct Half {
  const char* name;
  int64_t macs;
  double bytes;  // that one call needs
  std::function<void()> call;
  std::vector<double> seconds = {}, cpu = {};  // of an image
  double memory = 0;                           // bytes that the first call added to the process

  void lap(int batch) {
    const Timer timer;
    const double before = cpu_seconds();
    call();
    seconds.push_back(timer.seconds() / batch);
    cpu.push_back((cpu_seconds() - before) / batch);
  }
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Before a process has freed anything, what its memory grows by at most is what a call needs.
void warm_up(Half& half) {
  std::ofstream("/proc/self/clear_refs") << 5;  // the peak begins anew
  const double before = status_bytes("VmRSS:");
  half.call();
  half.memory = status_bytes("VmHWM:") - before;
}

json half_json(const Half& half) {
  const double seconds = median(half.seconds), gmacs = static_cast<double>(half.macs) / 1e9;
  return {{"seconds", seconds},
          {"seconds_low", *std::min_element(half.seconds.begin(), half.seconds.end())},
          {"cpu_seconds", median(half.cpu)},
          {"gmacs", gmacs},
          {"gmacs_per_second", gmacs / seconds},
          {"bytes", half.bytes},
          {"peak_bytes", half.memory}};
}

void print_result(const json& result) {
  print_out("{}, {}, {}, {} threads, {} x {} pixels, batch {}\n", result["vae"].get<std::string>(),
            result["processor"].get<std::string>(), result["dtype"].get<std::string>(),
            result["threads"].get<int>(), result["side"].get<int>(), result["side"].get<int>(),
            result["batch"].get<int>());
  for (const char* name : {"encode", "decode"}) {
    if (!result.contains(name)) continue;
    const json& half = result[name];
    print_out(
        "{}  {:.3f} s an image (best {:.3f}, {:.3f} s of processors), {:.1f} GMACs, {:.1f} GMAC/s, {} peak\n",
        name, half["seconds"].get<double>(), half["seconds_low"].get<double>(),
        half["cpu_seconds"].get<double>(), half["gmacs"].get<double>(),
        half["gmacs_per_second"].get<double>(), memory_text(half["peak_bytes"].get<double>()));
  }
}

}  // namespace

void BenchVaeFlags::add(Cli& cli) {
  cli.add_text("--vae", path, "Instead of a model: time the encoder and the decoder of this autoencoder");
  cli.add_number("--side", side, 8, 65536, "Pixels of the images of --vae or --extractor to each side");
}

int bench_vae(Cli& cli, const BenchVaeFlags& flags, const BenchRun& run, Isa isa) {
  const at::ScalarType dtype = run.dtype == "auto" ? at::kFloat : dtype_of(run.dtype);
  const AutoencoderFile file = load_autoencoder(flags.path);
  const auto autoencoder = make_autoencoder(
      file,
      {.dtype = dtype, .threads = run.threads, .encoder = file.has_encoder, .decoder = file.has_decoder});
  file.check_unchanged();
  const int factor = file.config.factor(), latent = flags.side / factor;
  DYDIT_USAGE_CHECK(flags.side % factor == 0, "--side {}: not a multiple of the autoencoder's factor {}",
                    flags.side, factor);
  const at::Tensor images = at::randn({run.batch, 3, flags.side, flags.side}, at::kFloat),
                   z = at::randn({run.batch, file.config.latent_channels, latent, latent}, at::kFloat);
  std::vector<Half> halves;
  if (file.has_encoder) {
    halves.push_back({"encode", autoencoder->encode_macs(flags.side, flags.side),
                      autoencoder->encode_bytes(flags.side, flags.side),
                      [&] { autoencoder->moments(images); }});
  }
  if (file.has_decoder) {
    halves.push_back({"decode", autoencoder->decode_macs(latent, latent),
                      autoencoder->decode_bytes(latent, latent), [&] { autoencoder->decode(z); }});
  }
  for (Half& half : halves) warm_up(half);
  for (int i = 0; i < run.repeats; ++i) {
    for (Half& half : halves) half.lap(run.batch);
    cli.console.progress({"laps", i + 1, run.repeats});
  }
  json result = {{"vae", file.path.filename().string()},
                 {"version", kVersion},
                 {"processor", fmt::format("{} ({})", cpu_model_name(), isa_name(isa))},
                 {"dtype", kDtypeNames[dtype]},
                 {"threads", run.threads},
                 {"batch", run.batch},
                 {"side", flags.side},
                 {"repeats", run.repeats}};
  for (const Half& half : halves) result[half.name] = half_json(half);
  cli.print(result, [&] { print_result(result); });
  return 0;
}

}  // namespace dydit
