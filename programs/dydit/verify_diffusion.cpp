// Recorded schedule tables, single reverse steps and whole sampling runs with their noise.
#include <algorithm>
#include <array>
#include <numeric>

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <fmt/format.h>

#include "dydit/base/error.h"
#include "dydit/base/numbers.h"
#include "dydit/diffusion/guidance.h"
#include "dydit/diffusion/schedule.h"
#include "dydit/diffusion/solver.h"
#include "verify.h"

namespace dydit {
namespace {

at::Tensor to_double_tensor(const std::vector<double>& values) { return at::tensor(values, at::kDouble); }

// "250" or "ddim50" -> timesteps; empty when the text is neither or no stride gives that many.
std::vector<int> named_timesteps(std::string_view text) {
  const bool strided = text.starts_with("ddim");
  if (strided) text.remove_prefix(4);
  const auto steps = parse_number<int>(text);
  if (!steps || *steps < 1 || *steps > kNumTrainTimesteps) return {};
  return strided ? strided_timesteps(*steps) : even_timesteps(*steps);
}

void verify_tables(const VerifyContext& context, VerifyReport& report) {
  std::vector<int> all(kNumTrainTimesteps);
  std::iota(all.begin(), all.end(), 0);
  const DiffusionTables tables = make_diffusion_tables(all);
  const std::array named = {
      std::pair{"betas", &tables.betas},
      std::pair{"alphas_cumprod", &tables.alphas_cumprod},
      std::pair{"sqrt_recip_alphas_cumprod", &tables.sqrt_recip_alphas_cumprod},
      std::pair{"sqrt_recipm1_alphas_cumprod", &tables.sqrt_recipm1_alphas_cumprod},
      std::pair{"posterior_variance", &tables.posterior_variance},
      std::pair{"posterior_log_variance_clipped", &tables.posterior_log_variance_clipped},
      std::pair{"posterior_mean_coef1", &tables.posterior_mean_coef1},
      std::pair{"posterior_mean_coef2", &tables.posterior_mean_coef2}};
  for (const auto& [name, values] : named) {
    if (!context.reference.has(name)) continue;
    report.compare(name, to_double_tensor(*values), context.reference.at(name), kTableTolerance);
  }
  for (const std::string& name : context.reference.names()) {
    const bool betas = name.starts_with("betas_");
    if (!betas && !name.starts_with("timesteps_")) continue;
    if (name.starts_with("timesteps_s")) continue;  // of runs of plans
    const std::vector<int> timesteps = named_timesteps(name.substr(name.find('_') + 1));
    DYDIT_CHECK(!timesteps.empty(), "{}: {} names no spacing; expected N or ddimN", context.reference.path(),
                name);
    const at::Tensor& want = context.reference.at(name);
    if (betas) {
      report.compare(name, to_double_tensor(make_diffusion_tables(timesteps).betas), want, kTableTolerance);
    } else {
      const at::Tensor got = at::tensor(std::vector<int64_t>(timesteps.begin(), timesteps.end()));
      const bool sized = got.sizes() == want.sizes();
      report.count(name, sized ? (got != want).sum().item<int64_t>() : want.numel(), want.numel());
    }
  }
}

// A run's or step's fixed parts: engine, tables, labels, guidance.
class RecordedRun {
 public:
  RecordedRun(const VerifyContext& context, const std::string& prefix)
      : context_(context),
        tables_(make_diffusion_tables(checked_timesteps(context.reference, prefix + "_timesteps"))),
        replay_(context, context.engine, at::kFloat),
        scale_(context.reference.at(prefix + "_cfg_scale").item<float>()),
        labels_(checked_labels(context, prefix + "_y", context.reference.at(prefix + "_y").numel())) {}

  const DiffusionTables& tables() const { return tables_; }
  // Of all decisions since the start.
  const Margin& margin() const { return replay_.margin(); }

  // As the original: the guided input is the first half twice, and both halves come back.
  at::Tensor denoise(const at::Tensor& x, int step) {
    DYDIT_CHECK(x.size(0) == static_cast<int64_t>(labels_.size()), "{}: {} rows, {} labels",
                context_.reference.path(), x.size(0), labels_.size());
    const bool guided = scale_ > 1.0f;
    const at::Tensor half = x.slice(0, 0, x.size(0) / 2);
    const std::vector<double> t(labels_.size(), tables_.timesteps[step]);
    TokenTrace trace;
    at::Tensor out = replay_.forward(guided ? at::cat({half, half}) : x, t, labels_, Mode::Dynamic, trace);
    if (!guided) return out;
    const DiTConfig& config = context_.checkpoint.config;
    apply_guidance(out, scale_, std::min(config.guided_channels, config.in_channels));
    return out;
  }

 private:
  const VerifyContext& context_;
  DiffusionTables tables_;
  Replay replay_;
  float scale_;
  std::vector<int64_t> labels_;
};

SamplerOptions named_sampler(const std::string& name) {
  if (name.find("ddim") == std::string::npos) return {SamplerKind::Ddpm, 0};
  return {SamplerKind::Ddim, name.find("eta1") == std::string::npos ? 0.0f : 1.0f};
}

// x (rows, channels, side, side) one step closer to the image, by what the model says of it and `noise`.
void take_step(const SolverStep& step, at::Tensor& x, const at::Tensor& output, const at::Tensor& noise) {
  const auto size = static_cast<size_t>(x[0].numel()), output_size = static_cast<size_t>(output[0].numel());
  for (int64_t row = 0; row < x.size(0); ++row) {
    const float* eps = output[row].data_ptr<float>();
    apply_step(step, {.x = {x[row].data_ptr<float>(), size},
                      .eps = {eps, size},
                      .variance = {eps + size, output_size - size},
                      .noise = {noise[row].data_ptr<float>(), size}});
  }
}

void verify_step(const VerifyContext& context, RecordedRun& run, int step, VerifyReport& report) {
  const Reference& reference = context.reference;
  const std::string prefix = fmt::format("step_{}_", step);
  DYDIT_CHECK(step < run.tables().num_steps(), "{}: {}x is beyond the {} recorded timesteps",
              reference.path(), prefix, run.tables().num_steps());
  const at::Tensor x = checked_input(context, prefix + "x"), noise = checked_input(context, prefix + "noise");
  const at::Tensor output = run.denoise(x, step);
  for (const char* kind : {"p_out", "ddim_eta0_out", "ddim_eta1_out"}) {
    if (!reference.has(prefix + kind)) continue;
    at::Tensor next = x.clone();
    take_step(make_solver_step(run.tables(), named_sampler(kind), step), next, output, noise);
    report.compare(prefix + kind, next, reference.at(prefix + kind), kForwardTolerance);
  }
}

void verify_run(const VerifyContext& context, const std::string& name, VerifyReport& report) {
  RecordedRun run(context, name);
  at::Tensor x = checked_input(context, name + "_z").clone();
  const at::Tensor noises = context.reference.at(name + "_noise").to(at::kFloat).contiguous();
  DYDIT_CHECK(
      noises.dim() == 5 && noises[0].sizes() == x.sizes() && noises.size(0) == run.tables().num_steps(),
      "{}: {}_noise does not hold one noise of {}_z's shape a step", context.reference.path(), name, name);
  const int last = run.tables().num_steps() - 1;
  for (int step = last; step >= 0; --step) {
    const SolverStep solver = make_solver_step(run.tables(), named_sampler(name), step);
    take_step(solver, x, run.denoise(x, step), noises[last - step]);
  }
  report.compare(name + "_out", x, context.reference.at(name + "_out"), kRunTolerance, {}, &run.margin());
}

}  // namespace

void verify_diffusion(const VerifyContext& context, VerifyReport& report) {
  c10::InferenceMode guard;
  const Reference& reference = context.reference;
  verify_tables(context, report);
  std::vector<std::string> runs;
  std::vector<int> steps;
  for (const std::string& name : reference.names()) {
    if (name.ends_with("_z")) runs.push_back(name.substr(0, name.size() - 2));
    if (!name.starts_with("step_") || !name.ends_with("_x")) continue;
    if (const auto step = parse_number<int>(name.substr(5, name.size() - 7))) steps.push_back(*step);
  }
  DYDIT_USAGE_CHECK(
      (runs.empty() && steps.empty()) || context.dtype == at::kFloat,
      "--dtype bf16: single steps and sampling runs are compared in float32 only; use --dtype f32");
  std::sort(steps.begin(), steps.end());
  if (!steps.empty()) {
    RecordedRun run(context, "sample_p");
    for (const int step : steps) verify_step(context, run, step, report);
  }
  for (const std::string& name : runs) verify_run(context, name, report);
}

}  // namespace dydit
