#include "stitch_flags.h"

#include <fmt/format.h>

#include "dydit/base/error.h"
#include "dydit/base/numbers.h"
#include "model_flags.h"

namespace dydit {

void StitchFlags::add(Cli& cli) {
  cli.add_text(
      "--stitch", text,
      "FILE:RATIO, T-Stitch: the small model in FILE takes the noisy steps, those of the last RATIO of t "
      "(e.g. small.safetensors:0.4: t from 600 on)");
}

void StitchFlags::resolve(Cli& cli, const Checkpoint& large, GenerateOptions& options) {
  if (text.empty()) return;
  const size_t colon = text.rfind(':');
  const auto ratio = parse_number<double>(colon == text.npos ? "" : text.substr(colon + 1));
  DYDIT_USAGE_CHECK(ratio && colon > 0, "{} {}: expected FILE:RATIO, e.g. small.safetensors:0.4",
                    cli.named("--stitch"), text);
  small = load_model(cli, text.substr(0, colon), {});
  options.stitch = Stitch{&*small, *ratio};
  cli.within("--stitch", [&] {
    check_stitch(large, *options.stitch);
    (void)stitched_plan(large, *options.stitch, options);
  });
}

std::vector<std::string> stitch_lines(const nlohmann::json& run) {
  if (!run.contains("stitch")) return {};
  const nlohmann::json& stitch = run["stitch"];
  const auto of = [&](const char* which) {
    const nlohmann::json& part = stitch[which];
    const int steps = part["steps"].get<int>();
    return fmt::format("{} steps{}, {:.4g} GMACs an image", steps,
                       steps == 0 ? ""
                                  : fmt::format(" (t {:.4g} to {:.4g})", part["first"].get<double>(),
                                                part["last"].get<double>()),
                       part["gmacs"].get<double>());
  };
  return {fmt::format("stitch   {}: {}, sha256 {:.10}: {}", stitch["file"].get<std::string>(),
                      stitch["name"].get<std::string>(), stitch["sha256"].get<std::string>(), of("small")),
          fmt::format("         then the model: {}; together {:.1f} % of static's work required at most",
                      of("large"), 100 * stitch["required_share"].get<double>())};
}

}  // namespace dydit
