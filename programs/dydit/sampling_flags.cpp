#include "sampling_flags.h"

#include <fmt/format.h>

namespace dydit {

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

void SamplingFlags::check(Cli& cli, const GenerateOptions& options) const {
  cli.needs("--eta", sampler == "ddim", "--sampler ddim; the others have no eta");
  cli.needs("--cfg-channels", options.guided(), "guidance: a --cfg-scale above 1");
}

void SamplingFlags::resolve(Cli& cli, const Checkpoint& checkpoint, const ModelFlags& model,
                            GenerateOptions& options) const {
  const DiTConfig& config = checkpoint.config;
  options.sampler.kind = kSamplerNames.at(sampler);
  cli.needs("--mode", mode != "dynamic" || config.is_dynamic(),
            fmt::format("routers; {} is a static DiT, it has none", checkpoint.path.string()));
  options.mode = !config.is_dynamic() ? Mode::Static : mode.empty() ? Mode::Dynamic : kModeNames.at(mode);
  options.guided_channels = guided_channels_of(cli, cfg_channels, config);
  options.dtype = dtype_of(model.dtype);
  options.threads = model.threads;
  options.engine = model.resolve_engine();
}

}  // namespace dydit
