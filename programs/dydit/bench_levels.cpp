#include "bench_contestant.h"
#include "bench_parts.h"
#include "dydit/base/isa.h"
#include "dydit/base/machine.h"
#include "dydit/base/version.h"

namespace dydit {
namespace {

using nlohmann::json;

constexpr double kLevelsTie = 1.05;  // times that differ by less are the machine's moods

}  // namespace

int bench_levels(Cli& cli, const LapFlags& flags, const BenchSteps& steps, const Checkpoint& checkpoint,
                 Isa isa) {
  const std::vector<Level> levels = levels_at(isa, has_vnni(isa));
  const auto options_of = [&](const Level& level) {
    return EngineOptions{.dtype = level.weights, .threads = flags.threads, .level = level};
  };
  double bytes = 0;
  for (const Level& level : levels)
    bytes += least_engine_bytes(EngineKind::Cpu, checkpoint, options_of(level), flags.batch);
  check_memory(bytes, fmt::format("the model at {} levels", levels.size()),
               "take a smaller model or --batch");
  std::vector<std::unique_ptr<Pipeline>> pipelines;
  std::vector<std::unique_ptr<Contestant>> contestants;
  for (const Level& level : levels) {
    pipelines.push_back(std::make_unique<Pipeline>(checkpoint, EngineKind::Cpu, options_of(level)));
    const GenerateOptions forwards{{.num_images = flags.batch,
                                    .num_steps = steps.count,
                                    .sampler = {steps.sampler},
                                    .cfg_scale = 1.0f,
                                    .mode = checkpoint.config.is_dynamic() ? Mode::Dynamic : Mode::Static},
                                   {.batch = flags.batch, .threads = flags.threads},
                                   level.weights,
                                   EngineKind::Cpu};
    contestants.push_back(std::make_unique<Contestant>(*pipelines.back(), flags, forwards));
  }
  run_laps(cli, flags, contestants, steps.count);
  json result = {
      {"model", fmt::format("{} ({})", model_name(checkpoint.config), checkpoint.path.filename().string())},
      {"version", kVersion},
      {"processor", fmt::format("{} ({})", cpu_model_name(), isa_name(isa))},
      {"batch", flags.batch},
      {"threads", flags.threads},
      {"steps", steps.count},
      {"repeats", flags.repeats},
      {"auto", level_of(auto_dtype()).name},
      {"bf16", level_of(at::kBFloat16).name}};
  std::string fastest;
  for (size_t i = 0; i < levels.size(); ++i) {
    const double peak = measure_peak_macs(levels[i], flags.threads, kPeakSeconds);
    json& entry = result["levels"][std::string(levels[i].name)];
    entry = contestant_json(*contestants[i], contestants[i]->macs(&Work::required), peak);
    entry["peak_gflops"] = 2 * peak / 1e9;
    if (levels[i].weights == at::kChar) continue;  // never auto's: it costs quality
    if (fastest.empty() || entry["ms_per_sample"] < result["levels"][fastest]["ms_per_sample"])
      fastest = levels[i].name;
  }
  const double lost = result["levels"][result["auto"].get<std::string>()]["ms_per_sample"].get<double>() /
                      result["levels"][fastest]["ms_per_sample"].get<double>();
  result["fastest"] = fastest;
  result["auto_over_fastest"] = lost;
  cli.print(result, [&] {
    print_out("{}, {}, batch {}, {} threads, forwards\n", result["model"].get<std::string>(),
              result["processor"].get<std::string>(), flags.batch, flags.threads);
    for (const Level& level : levels) {
      const json& entry = result["levels"][std::string(level.name)];
      print_out("{:<9} {:>9.2f} ms/sample ({:.2f} to {:.2f})  {:>5.1f} % of {:.1f} GFLOP/s\n", level.name,
                entry["ms_per_sample"].get<double>(), entry["ms_low"].get<double>(),
                entry["ms_high"].get<double>(), 100 * entry["peak_share"].get<double>(),
                entry["peak_gflops"].get<double>());
    }
    print_out(
        "--dtype auto takes {}, --dtype bf16 {}; {}\n", result["auto"].get<std::string>(),
        result["bf16"].get<std::string>(),
        lost <= kLevelsTie
            ? std::string("the table of levels is right here")
            : fmt::format("{} is {:.2f} times as fast: the table of levels (dydit/base/level.h) is wrong for "
                          "this processor",
                          fastest, lost));
  });
  return 0;
}

}  // namespace dydit
