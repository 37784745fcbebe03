#include <algorithm>
#include <vector>

#include <nlohmann/json.hpp>

#include "bench_parts.h"
#include "dydit/base/machine.h"
#include "dydit/base/timer.h"
#include "dydit/base/version.h"

namespace dydit {
namespace {

Image noise_image(int side, uint32_t seed) {
  Image image{side, side, 3, std::vector<uint8_t>(static_cast<size_t>(side) * side * 3)};
  for (uint8_t& value : image.pixels)
    value = static_cast<uint8_t>((seed = seed * 1664525 + 1013904223) >> 24);
  return image;
}

}  // namespace

int bench_extractor(Cli& cli, const ExtractorFlags& flags, int side, const BenchRun& run, Isa isa) {
  const std::unique_ptr<Extractor> extractor = flags.load(cli, run.threads);
  std::vector<Image> images;
  for (int i = 0; i < run.batch; ++i) images.push_back(noise_image(side, static_cast<uint32_t>(i)));
  extractor->extract(images);  // buffers grow
  std::vector<double> rates;
  for (int i = 0; i < run.repeats; ++i) {
    const Timer timer;
    extractor->extract(images);
    rates.push_back(run.batch / timer.seconds());
    cli.console.progress({"laps", i + 1, run.repeats});
  }
  std::sort(rates.begin(), rates.end());
  const nlohmann::json result = {{"extractor", flags.extractor},
                                 {"version", kVersion},
                                 {"processor", fmt::format("{} ({})", cpu_model_name(), isa_name(isa))},
                                 {"extractor_dtype", flags.dtype},
                                 {"resize", kResizeNames[extractor->rule()]},
                                 {"threads", run.threads},
                                 {"batch", run.batch},
                                 {"side", side},
                                 {"repeats", run.repeats},
                                 {"images_per_second", rates[rates.size() / 2]}};
  cli.print(result, [&] {
    print_out(
        "{}, {}, {}, {} threads, {} images of {} x {}: {:.1f} images/s (lowest {:.1f}, highest {:.1f})\n",
        flags.extractor, result["processor"].get<std::string>(), flags.dtype, run.threads, run.batch, side,
        side, result["images_per_second"].get<double>(), rates.front(), rates.back());
  });
  return 0;
}

}  // namespace dydit
