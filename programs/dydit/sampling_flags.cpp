#include "sampling_flags.h"

#include <optional>

#include <fmt/format.h>

#include "dydit/base/error.h"
#include "dydit/base/numbers.h"
#include "dydit/io/text.h"

namespace dydit {
namespace {

// "999,500,0"; CLI11's own lists pass over empty items.
std::vector<double> parse_timesteps(const std::string& list, const Objective& objective) {
  std::vector<double> timesteps;
  for (const std::string_view item : comma_parts(list)) {
    const auto whole = parse_number<int>(item);
    DYDIT_USAGE_CHECK(whole || objective.continuous(), "'{}' is not a whole number from 0 to 999", item);
    const auto t = whole ? std::optional<double>(*whole) : parse_number<double>(item);
    DYDIT_USAGE_CHECK(t, "'{}' is not a number from 0 to {}", item, last_time(objective));
    timesteps.push_back(*t);
  }
  return timesteps;
}

}  // namespace

void SamplingFlags::add(Cli& cli, GenerateOptions& options, int least_steps) {
  cli.add_number("--steps,--num-sampling-steps", options.num_steps, least_steps, 1000,
                 fmt::format("Sampling steps, {} to 1000", least_steps));
  cli.add_choice(
      "--sampler", sampler, kSamplerNames.names({"auto"}),
      "Sampler; auto: ddpm of a DiT, euler in continuous time (SiT, U-ViT); dpm++: DPM-Solver++(2M); "
      "em-sde, heun-sde: of the SDE; lcm: of models distilled to few steps, whose auto it is",
      {"dopri5"},
      "an adaptive solver: its times are not known before sampling, and so no plan is; "
      "take heun");
  cli.add_choice("--diffusion-form", form, kDiffusionFormNames.names({"auto"}),
                 "Of em-sde and heun-sde: the noise they put in; auto: sigma, of a U-ViT sbdm");
  cli.add_number("--diffusion-norm", options.sampler.diffusion_norm, 0, 1000, "A factor of that noise");
  cli.add_choice(
      "--last-step", last_step, kLastStepNames.names(),
      "Their step to the image: mean, without noise; euler, the ODE's; tweedie, the image predicted; none");
  cli.add_number("--last-step-size", last_size, 1e-6, 0.999,
                 "Its size, a share of the noise (default: .04, of a U-ViT .001)");
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
               "The timesteps by hand, instead of --steps: 0 to 999, of a SiT 0 (noise) to 1, "
               "comma-separated, each once, any "
               "order")
      ->type_name("LIST");
}

void SamplingFlags::check(Cli& cli, const GenerateOptions& options) const {
  if (has_timesteps_) cli.one_of("--steps", "--timesteps");
  cli.needs("--eta", sampler == "ddim", "--sampler ddim; the others have no eta");
  const bool sde = sampler == "em-sde" || sampler == "heun-sde";
  for (const char* flag : {"--diffusion-form", "--diffusion-norm", "--last-step", "--last-step-size"})
    cli.needs(flag, sde, "--sampler em-sde or heun-sde");
  cli.needs("--last-step-size", last_step != "none", "a --last-step that there is");
  cli.needs("--cfg-channels", options.guided(), "guidance: a --cfg-scale above 1");
}

void SamplingFlags::resolve(Cli& cli, const Checkpoint& checkpoint, const ModelFlags& model,
                            GenerateOptions& options) const {
  const DiTConfig& config = checkpoint.config;
  options.sampler.kind = sampler == "auto" ? default_sampler(config.objective) : kSamplerNames.at(sampler);
  take_few_step(checkpoint.few_step,
                {.sampler = sampler == "auto" || !cli.given("--sampler"),
                 .cfg_scale = !cli.given("--cfg-scale"),
                 .steps = !cli.given("--steps")},
                options);
  if (form != "auto") options.sampler.form = kDiffusionFormNames.at(form);
  options.sampler.last = kLastStepNames.at(last_step);
  if (last_size > 0) options.sampler.last_size = static_cast<float>(last_size);
  if (!timesteps.empty())
    cli.within("--timesteps", [&] { options.timesteps = parse_timesteps(timesteps, config.objective); });
  cli.needs("--cfg-scale", config.can_guide() || !options.guided(),
            fmt::format("a null class to be guided away from; {} has none", checkpoint.path.string()));
  if (!config.can_guide()) options.cfg_scale = 1;
  cli.needs("--mode", mode != "dynamic" || config.is_dynamic(),
            fmt::format("routers; {} is a static DiT, it has none", checkpoint.path.string()));
  options.mode = !config.is_dynamic() ? Mode::Static : mode.empty() ? Mode::Dynamic : kModeNames.at(mode);
  check_few_step(checkpoint.few_step, config.objective, options);
  options.guided_channels = guided_channels_of(cli, cfg_channels, config);
  model.where.check(cli);
  options.dtype = model.resolve_dtype(checkpoint);
  options.threads = model.threads;
  options.engine = model.resolve_engine();
  options.where = model.where.resolve();
}

}  // namespace dydit
