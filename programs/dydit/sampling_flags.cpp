#include "sampling_flags.h"

#include <fmt/format.h>

#include "dydit/base/error.h"
#include "dydit/base/numbers.h"
#include "dydit/io/text.h"

namespace dydit {
namespace {

// "999,500,0"; CLI11's own lists pass over empty items.
std::vector<int> parse_timesteps(const std::string& list) {
  std::vector<int> timesteps;
  for (const std::string_view item : comma_parts(list)) {
    const auto t = parse_number<int>(item);
    DYDIT_USAGE_CHECK(t, "'{}' is not a whole number from 0 to 999", item);
    timesteps.push_back(*t);
  }
  return timesteps;
}

}  // namespace

void SamplingFlags::add(Cli& cli, GenerateOptions& options, int least_steps) {
  cli.add_number("--steps,--num-sampling-steps", options.num_steps, least_steps, 1000,
                 fmt::format("Sampling steps, {} to 1000", least_steps));
  cli.add_choice("--sampler", sampler, kSamplerNames.names(), "Sampler; dpm++: DPM-Solver++(2M)");
  cli.add_number("--eta", options.sampler.eta, 0, 1, "DDIM's share of DDPM's noise");
  cli.add_number("--cfg-scale", options.cfg_scale, 0, 1000,
                 "Classifier-free guidance; 4.0 for looks, 1.5 for FID, <= 1 for none");
  add_guided_channels(cli, cfg_channels);
  cli.add_choice("--mode", mode, kModeNames.names(), "Obey the routers or run the complete model");
  cli.add_number("--batch", options.batch, 1, 65536, "Images computed together; changes speed, not results");
}

void SamplingFlags::add_timesteps(Cli& cli) {
  has_timesteps_ = true;
  cli.add_text("--timesteps", timesteps,
               "The timesteps by hand, instead of --steps: 0 to 999, comma-separated, each once, any order")
      ->type_name("LIST");
}

void SamplingFlags::check(Cli& cli, const GenerateOptions& options) const {
  if (has_timesteps_) cli.one_of("--steps", "--timesteps");
  cli.needs("--eta", sampler == "ddim", "--sampler ddim; the others have no eta");
  cli.needs("--cfg-channels", options.guided(), "guidance: a --cfg-scale above 1");
}

void SamplingFlags::resolve(Cli& cli, const Checkpoint& checkpoint, const ModelFlags& model,
                            GenerateOptions& options) const {
  const DiTConfig& config = checkpoint.config;
  options.sampler.kind = kSamplerNames.at(sampler);
  if (!timesteps.empty()) cli.within("--timesteps", [&] { options.timesteps = parse_timesteps(timesteps); });
  cli.needs("--mode", mode != "dynamic" || config.is_dynamic(),
            fmt::format("routers; {} is a static DiT, it has none", checkpoint.path.string()));
  options.mode = !config.is_dynamic() ? Mode::Static : mode.empty() ? Mode::Dynamic : kModeNames.at(mode);
  options.guided_channels = guided_channels_of(cli, cfg_channels, config);
  options.dtype = model.resolve_dtype(checkpoint);
  options.threads = model.threads;
  options.engine = model.resolve_engine();
}

}  // namespace dydit
