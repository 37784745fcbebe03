// dydit verify --reference R [--model F]: replays what R holds and compares; exit 0 if all of it agrees.
#include "verify.h"

#include <algorithm>
#include <array>
#include <cmath>

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include "cli.h"
#include "dydit/base/error.h"
#include "dydit/base/nearest.h"
#include "dydit/diffusion/schedule.h"
#include "dydit/io/json.h"
#include "dydit/io/safetensors.h"
#include "dydit/pipeline/record.h"
#include "model_flags.h"
#include "vae_flags.h"
#include "verbs.h"

namespace dydit {

void VerifyReport::add(const std::string& name, bool ok, nlohmann::json check, const std::string& text) {
  check["name"] = name;
  check["ok"] = ok;
  checks_.push_back(std::move(check));
  lines_.push_back(fmt::format("{:<5} {:<28} {}", ok ? "ok" : "FAIL", name, text));
  passed_ = passed_ && ok;
}

void VerifyReport::compare(const std::string& name, const at::Tensor& got, const at::Tensor& want,
                           double limit, const at::Tensor& weight, const Margin* margin) {
  DYDIT_CHECK(got.sizes() == want.sizes(), "reference tensor {} has shape {}, this model makes {}", name,
              fmt::format("({})", fmt::join(want.sizes(), ", ")),
              fmt::format("({})", fmt::join(got.sizes(), ", ")));
  at::Tensor difference = (got.to(at::kDouble) - want.to(at::kDouble)).abs();
  std::string scope;
  if (weight.defined()) {
    difference = at::where(weight.expand_as(difference) > 0, difference, 0.0);
    scope = fmt::format(", over {:.1f} % of the patches", 100 * weight.mean().item<double>());
  }
  const double largest = want.abs().max().item<double>();
  error(name, difference.max().item<double>() / std::max(largest, 1e-300), limit, scope, margin);
}

void VerifyReport::error(const std::string& name, double error, double limit, const std::string& scope,
                         const Margin* margin) {
  nlohmann::json check = {{"error", error}, {"limit", limit}};
  const bool ok = error <= limit;  // NaN compares false: a failure
  std::string text = fmt::format("error {:.2e}, limit {:.0e}{}", error, limit, scope);
  const bool decides = margin && std::isfinite(margin->smallest());
  if (decides) {
    check["margin"] = margin->smallest();
    check["within_rounding"] = margin->within_rounding();
    text += fmt::format(", closest decision {:.1e} from another", margin->smallest());
  }
  add(name, ok, std::move(check), text);
  if (!decides || !margin->within_rounding()) return;
  note(ok ? "rounding can move such a decision: this may fail on another processor; record it again"
          : "rounding can move such a decision: no proof that the computation differs. Record it again, with "
            "another start or noise");
}

void Margin::add(const RunPlan& plan, const TokenTrace& trace) {
  const auto add = [this](float margin, float largest) {
    smallest_ = std::min(smallest_, margin);
    smallest_share_ = std::min(smallest_share_, margin / largest);
  };
  for (const StepPlan& step : plan.steps) add(step.margin, 1);  // their logits are of that order
  if (!trace.logits.defined()) return;
  const at::Tensor logits = trace.logits.contiguous();  // (B, L, N)
  const int64_t B = logits.size(0), L = logits.size(1), N = logits.size(2);
  for (int64_t row = 0; row < B * L; ++row) {
    const std::span values(logits.data_ptr<float>() + row * N, static_cast<size_t>(N));
    const auto largest = std::max_element(values.begin(), values.end(),
                                          [](float a, float b) { return std::abs(a) < std::abs(b); });
    add(decision_margin(values, plan.steps[row / L].blocks[row % L].keep_tokens),
        std::max(1.0f, std::abs(*largest)));
  }
}

void VerifyReport::count(const std::string& name, int64_t disagreements, int64_t total, double allowed) {
  const bool ok = static_cast<double>(disagreements) <= allowed * static_cast<double>(total);
  add(name, ok, {{"disagreements", disagreements}, {"total", total}, {"allowed_share", allowed}},
      fmt::format("{} of {} differ, allowed {}", disagreements, total,
                  allowed > 0 ? fmt::format("{:.1f} %", 100 * allowed) : "none"));
}

void VerifyReport::skip(const std::string& name, const std::string& why) {
  skipped_.push_back({{"name", name}, {"why", why}});
  lines_.push_back(fmt::format("{:<5} {:<28} {}", "SKIP", name, why));
}

void VerifyReport::note(const std::string& text) { lines_.push_back("        " + text); }

void VerifyReport::print() const {
  for (const std::string& line : lines_) print_out("{}\n", line);
  print_out("{}: {} checks{}\n", passed_ ? "passed" : "FAILED", checks_.size(),
            skipped_.empty() ? "" : fmt::format(", {} SKIPPED", skipped_.size()));
}

Reference::Reference(const std::string& path) : path_(path) {
  const SafetensorsFile file = read_safetensors(path);
  for (const auto& [name, view] : file.tensors) tensors_[name] = to_tensor(view, file.file);
  metadata_ = file.metadata;
}

std::string Reference::metadata(const std::string& key) const {
  const auto found = metadata_.find(key);
  return found == metadata_.end() ? "" : found->second;
}

const at::Tensor& Reference::at(const std::string& name) const {
  const auto found = tensors_.find(name);
  DYDIT_CHECK(found != tensors_.end(), "{}: tensor {} is missing (nearest present: {})", path_, name,
              nearest_name(name, names()));
  return found->second;
}

std::vector<std::string> Reference::names() const {
  std::vector<std::string> names;
  for (const auto& [name, tensor] : tensors_) names.push_back(name);
  return names;
}

Replay::Replay(const VerifyContext& context, EngineKind kind, at::ScalarType dtype)
    : checkpoint_(context.checkpoint),
      engine_(make_engine(kind, checkpoint_, context.options(kind, dtype))),
      workspace_(engine_->make_workspace({.threads = context.threads})) {}

at::Tensor Replay::forward(const at::Tensor& x, std::span<const double> t, std::span<const int64_t> y,
                           Mode mode, TokenTrace& trace) {
  plan_ = make_width_plan(checkpoint_, t, mode);
  std::vector<Row> rows;
  for (size_t row = 0; row < t.size(); ++row) rows.push_back({&plan_.steps[row], y[row]});
  std::vector<Work> work(rows.size());
  ForwardOutputs outputs{{}, work, &trace};
  engine_->forward(x, rows, *workspace_, outputs);
  margin_.add(plan_, trace);
  return outputs.out;
}

std::vector<int64_t> checked_labels(const VerifyContext& context, const std::string& name, int64_t rows) {
  const at::Tensor labels = context.reference.at(name).to(at::kLong).contiguous();
  const int last = context.checkpoint.config.last_label();
  DYDIT_CHECK(labels.numel() == rows, "{}: {} holds {} labels, expected {}", context.reference.path(), name,
              labels.numel(), rows);
  std::vector<int64_t> result(labels.data_ptr<int64_t>(), labels.data_ptr<int64_t>() + labels.numel());
  for (const int64_t label : result) {
    DYDIT_CHECK(label >= 0 && label <= last, "{}: {} holds label {}, the model has 0 to {}{}",
                context.reference.path(), name, label, last,
                context.checkpoint.config.can_guide() ? " (the null class)" : "");
  }
  return result;
}

std::vector<int> checked_timesteps(const Reference& reference, const std::string& name) {
  const at::Tensor timesteps = reference.at(name).to(at::kLong).contiguous();
  std::vector<int> result;
  for (int64_t i = 0; i < timesteps.numel(); ++i) {
    const int64_t t = timesteps.data_ptr<int64_t>()[i];
    DYDIT_CHECK(t >= 0 && t < kNumTrainTimesteps, "{}: {} holds timestep {}, expected 0 to {}",
                reference.path(), name, t, kNumTrainTimesteps - 1);
    result.push_back(static_cast<int>(t));
  }
  DYDIT_CHECK(!result.empty(), "{}: {} is empty", reference.path(), name);
  return result;
}

std::vector<double> checked_timesteps(const VerifyContext& context, const std::string& name) {
  const Objective& objective = context.checkpoint.config.objective;
  const at::Tensor times = context.reference.at(name).to(at::kDouble).contiguous();
  std::vector<double> result(times.data_ptr<double>(), times.data_ptr<double>() + times.numel());
  for (double& t : result) {
    if (objective.clock == ModelClock::Scaled) t *= last_time(objective);
    DYDIT_CHECK(is_time(objective, t), "{}: {} holds timestep {}, expected 0 to {}", context.reference.path(),
                name, t, last_time(objective));
  }
  DYDIT_CHECK(!result.empty(), "{}: {} is empty", context.reference.path(), name);
  return result;
}

at::Tensor checked_input(const VerifyContext& context, const std::string& name) {
  const DiTConfig& config = context.checkpoint.config;
  const at::Tensor x = context.reference.at(name).to(at::kFloat).contiguous();
  DYDIT_CHECK(x.dim() == 4 && x.size(0) > 0 && x.size(1) == config.in_channels &&
                  x.size(2) == config.input_size && x.size(3) == config.input_size,
              "{}: {} has shape ({}), {} takes (rows, {}, {}, {}). Do model and reference belong together?",
              context.reference.path(), name, fmt::join(x.sizes(), ", "), context.checkpoint.path.string(),
              config.in_channels, config.input_size, config.input_size);
  return x;
}

namespace {

void verify_model(Cli& cli, const ModelFlags& flags, const Reference& reference, Isa isa,
                  VerifyReport& report) {
  const Checkpoint checkpoint = flags.load(cli);
  flags.where.check(cli);
  const VerifyContext context{
      checkpoint,           reference, dtype_of(flags.dtype), flags.resolve_engine(), flags.threads,
      flags.where.resolve()};
  cli.console.info(fmt::format("model {} ({}), reference {}, engine {}, {}, {} ({}), {} threads", flags.path,
                               model_name(checkpoint.config), reference.path(), kEngineNames[context.engine],
                               arithmetic_text(context.engine, context.dtype), context.where.device.str(),
                               isa_name(isa), context.threads));
  if (reference.has("x") && reference.has("out")) verify_forward(context, report);
  verify_diffusion(context, report);
  verify_plans(context, report);
  verify_family_runs(context, report);
  if (reference.has("out_level1")) verify_levels(context, report);
  if (reference.has("data") && reference.has("t")) {
    verify_family_training(context, report);
  } else if (reference.has("gumbel.0.attn") || reference.has("complete_mse")) {
    verify_training(context, report);
  }
  checkpoint.check_unchanged();
  DYDIT_CHECK(
      report.size() > 0,
      "{}: holds nothing that verify can replay; expected forwards (x, t, y, out), tables (betas), single "
      "steps (step_0_x), levels (out_level1), runs (sample_p_z) or runs of plans (MODE.SPACING.PLAN.out)",
      reference.path());
}

// config.json of the autoencoder whose vectors these are, as they state it; empty without.
std::string stated_config(const Reference& reference) {
  std::optional<nlohmann::json> config = parse_json(reference.metadata("config"), /*max_depth=*/2);
  if (!config || !config->is_object()) return "";
  if (!config->contains("_class_name")) (*config)["_class_name"] = kAutoencoderNames[AutoencoderKind::Kl];
  return config->dump();
}

void verify_vae(Cli& cli, const ModelFlags& flags, const std::string& path, const std::string& config,
                const Reference& reference, Isa isa, VerifyReport& report) {
  // A bare file does not say how many groups its norms have; the vectors do.
  const AutoencoderFile file =
      load_vae(cli, path, {.config = config, .stated = {reference.path(), stated_config(reference)}});
  const at::ScalarType dtype = dtype_of(flags.dtype);
  cli.console.info(fmt::format("autoencoder {} ({}), reference {}, {}, cpu ({}), {} threads", path,
                               kAutoencoderNames[file.config.kind], reference.path(), kDtypeNames[dtype],
                               isa_name(isa), flags.threads));
  verify_autoencoder(file, reference, dtype, flags.threads, report);
  file.check_unchanged();
}

// Vectors that need neither a model nor an autoencoder, and the tensor that tells them.
struct FreeVectors {
  const char* tensor;
  void (*verify)(const Reference& reference, int threads, VerifyReport& report);
};
constexpr std::array kFreeVectors = {FreeVectors{"radii_ref", verify_metrics},
                                     FreeVectors{"lite0_features", verify_extractors},
                                     FreeVectors{"a.f2048", verify_inception},
                                     FreeVectors{"mirror_at", verify_timesteps},
                                     FreeVectors{"A_mixed", verify_adapters},
                                     FreeVectors{"sra_student", verify_alignment},
                                     FreeVectors{"ddim_alphas_cumprod_prev", verify_few_step}};

// Recorded methods that are told apart but not offered, and the tensor that tells them.
constexpr std::array<std::pair<const char*, const char*>, 2> kOtherMethods = {
    {{"swd_sigmas", "scale-wise distillation (SwD)"},
     {"gan_per_image", "score identity distillation (SiD)"}}};

void verify_free(Cli& cli, const Reference& reference, int threads, Isa isa, VerifyReport& report) {
  for (const auto& [tensor, method] : kOtherMethods)
    DYDIT_USAGE_CHECK(!reference.has(tensor),
                      "{}: records {}, which is not offered; of few steps there is lcm", reference.path(),
                      method);
  const auto* vectors = std::find_if(kFreeVectors.begin(), kFreeVectors.end(),
                                     [&](const FreeVectors& kind) { return reference.has(kind.tensor); });
  DYDIT_USAGE_CHECK(
      vectors != kFreeVectors.end(),
      "nothing to verify: give --model FILE, or --vae FILE, an autoencoder; only vectors of "
      "evaluation, of timesteps, of adapters, of losses on features and of few steps go without, "
      "and {} holds none",
      reference.path());
  cli.console.info(
      fmt::format("reference {}, cpu ({}), {} threads", reference.path(), isa_name(isa), threads));
  vectors->verify(reference, threads, report);
}

}  // namespace

int run_verify(const Args& args, Isa isa) {
  Cli cli(
      "verify",
      "Replay recorded vectors of the original code (forwards, schedule, sampling runs; an autoencoder's; "
      "metrics of images; draws of timesteps; adapters; losses on features; consistency distillation) and "
      "compare.");
  ModelFlags flags;
  flags.add(cli, "f32", "reference");
  cli.app.get_option("--model")->required(false);
  std::string reference_path, vae, vae_config;
  cli.add_text("--reference", reference_path, "Recorded vectors, safetensors")->required();
  cli.add_text(
      "--vae", vae,
      "Instead of a model: an autoencoder, a folder of diffusers, an ldm checkpoint, TAESD's files as "
      "ENCODER,DECODER or their folder; recipe:sd has random weights");
  add_vae_config(cli, vae_config);
  cli.parse(args);
  cli.one_of("--model", "--vae");
  for (const char* flag : {"--num-heads", "--weights", "--path", "--prediction", "--engine"})
    cli.needs(flag, !flags.path.empty(), "--model; nothing else has such a choice");
  cli.needs("--dtype", !flags.path.empty() || !vae.empty(), "--model or --vae");
  DYDIT_USAGE_CHECK(flags.dtype != "int8",
                    "--dtype int8: recordings are compared in f32 and bf16; quantising has no "
                    "original to be equal to");
  cli.needs("--vae-config", !vae.empty(), "--vae");
  const Reference reference(reference_path);
  VerifyReport report;
  if (!flags.path.empty()) {
    verify_model(cli, flags, reference, isa, report);
  } else if (!vae.empty()) {
    verify_vae(cli, flags, vae, vae_config, reference, isa, report);
  } else {
    verify_free(cli, reference, flags.threads, isa, report);
  }
  cli.print({{"passed", report.passed()}, {"checks", report.to_json()}, {"skipped", report.skipped()}},
            [&] { report.print(); });
  return report.passed() ? 0 : 1;
}

}  // namespace dydit
