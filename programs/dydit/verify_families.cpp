// Recorded sampling runs of other families (metadata `runs`: SiT's transport, U-ViT's samplers, Skip-DiT's
// cache), with their noise, and recorded training steps in their layout.
#include <algorithm>
#include <optional>

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <fmt/format.h>

#include "dydit/base/error.h"
#include "dydit/diffusion/guidance.h"
#include "dydit/diffusion/losses.h"
#include "dydit/diffusion/schedule.h"
#include "dydit/diffusion/solver.h"
#include "dydit/io/json.h"
#include "dydit/io/text.h"
#include "dydit/model/dit.h"
#include "dydit/model/layouts.h"
#include "dydit/pipeline/request.h"
#include "dydit/train/gates.h"
#include "verify.h"

namespace dydit {
namespace {

using nlohmann::json;

// What a run's metadata mean in our terms.
struct FamilyRun {
  std::string name = {};
  Request request = {};
  Objective objective = {};
  std::string cache = "none";
  bool original_halves = true;    // the start has both rows of guidance, and both come back
  std::string unreplayable = {};  // why it is not offered; empty: it is
};

std::string text_of(const json& run, const char* key) {
  const auto found = run.find(key);
  return found != run.end() && found->is_string() ? found->get<std::string>() : "";
}
double number_of(const json& run, const char* key, double otherwise) {
  const auto found = run.find(key);
  return found != run.end() && found->is_number() ? found->get<double>() : otherwise;
}

// SiT: `num_steps` are points; an SDE's last step is one more than the noisy ones between them.
FamilyRun sit_run(const json& run, const Objective& trained) {
  FamilyRun read{.objective = trained};
  if (const auto path = kPathNames.find(lower_case(text_of(run, "path")))) {
    read.objective.path = path->path;
    read.objective.clock = path->clock;
  }
  const std::string method = lower_case(text_of(run, "sampling_method"));
  const int points = static_cast<int>(number_of(run, "num_steps", 2));
  Request& request = read.request;
  request.cfg_scale = static_cast<float>(number_of(run, "cfg_scale", 1));
  request.num_steps = points - 1;
  if (text_of(run, "kind") == "sde") {
    request.sampler.kind = method == "heun" ? SamplerKind::HeunSde : SamplerKind::EmSde;
    request.sampler.form = kDiffusionFormNames.at(text_of(run, "diffusion_form"));
    request.sampler.diffusion_norm = static_cast<float>(number_of(run, "diffusion_norm", 1));
    const std::string last = lower_case(text_of(run, "last_step"));
    request.sampler.last = last.empty() ? LastStep::None : kLastStepNames.at(last);
    if (!last.empty()) {
      request.num_steps = points;
      request.sampler.last_size = static_cast<float>(number_of(run, "last_step_size", 0.04));
    }
  } else if (method == "euler" || method == "midpoint" || method == "heun2") {
    request.sampler.kind = method == "euler"      ? SamplerKind::Euler
                           : method == "midpoint" ? SamplerKind::Midpoint
                                                  : SamplerKind::Heun;
  } else {
    read.unreplayable = fmt::format("{} is adaptive, and not offered", quote(method));
  }
  return read;
}

FamilyRun uvit_run(const json& run, const Objective& trained) {
  FamilyRun read{.objective = trained, .original_halves = false};
  const std::string kind = text_of(run, "kind");
  read.request.sampler.kind = kind == "sde"   ? SamplerKind::EmSde
                              : kind == "ode" ? SamplerKind::Euler
                                              : SamplerKind::DpmFast;
  read.request.num_steps = static_cast<int>(number_of(run, "steps", 1));
  read.request.cfg_scale = 1 + static_cast<float>(number_of(run, "cfg", 0));
  return read;
}

FamilyRun skip_run(const Reference& reference, const std::string& name, const json& run) {
  FamilyRun read;
  read.request.sampler.kind = kSamplerNames.at(text_of(run, "sampler"));
  const at::Tensor timesteps = reference.at(name + ".timesteps").to(at::kDouble).contiguous();
  read.request.timesteps.assign(timesteps.data_ptr<double>(),
                                timesteps.data_ptr<double>() + timesteps.numel());
  read.request.cfg_scale = reference.at("cfg_scale").item<float>();
  const int interval = static_cast<int>(number_of(run, "interval", 0));
  if (interval > 0) read.cache = fmt::format("skip:{},4", interval);
  return read;
}

// Both rows of each sample go through one engine, with histories where the plan keeps something.
class FamilyReplay {
 public:
  FamilyReplay(const VerifyContext& context, EngineKind kind, const FamilyRun& run, const std::string& labels)
      : context_(context), run_(run), checkpoint_(context.checkpoint) {
    checkpoint_.config.objective = run.objective;
    const DiTConfig& config = checkpoint_.config;
    plan_ = complete_plan(
        run.request,
        make_width_plan(checkpoint_, run_spacing(run.request, run.objective).timesteps, run.request.mode));
    std::vector<double> times;
    for (const StepPlan& step : plan_.steps) times.push_back(step.timestep);
    solver_ = make_solver(run.objective, run.request.sampler, times);
    engine_ = make_engine(kind, checkpoint_, context.options(kind, at::kFloat));
    workspace_ = engine_->make_workspace({.threads = context.threads});
    const int64_t rows = context.reference.at("start").size(0);
    labels_ = config.num_classes > 0 ? checked_labels(context, labels, rows) : std::vector<int64_t>(rows, 0);
    if (run.request.guided() && !run.original_halves) labels_.resize(2 * rows, config.null_class());
    for (size_t row = 0; plan_.slots > 0 && row < labels_.size(); ++row)
      histories_.push_back(engine_->make_history(plan_.slots));
  }

  const RunPlan& plan() const { return plan_; }
  const Margin& margin() const { return margin_; }

  // From the start through all steps; `noise` holds one for each noisy one, in order.
  at::Tensor run(const at::Tensor& start, const at::Tensor& noise, VerifyReport& report,
                 const std::string& prefix) {
    at::Tensor x = start.clone(), held_x = at::empty_like(x), held_eps = at::empty_like(x);
    int64_t drawn = 0;
    const auto draw = [&] {
      DYDIT_CHECK(noise.defined() && drawn < noise.size(0),
                  "{}: {} has noise for {} steps, and more are noisy", context_.reference.path(), run_.name,
                  noise.defined() ? noise.size(0) : 0);
      return noise[drawn++].contiguous();
    };
    if (solver_.start_sigma > 0) x += solver_.start_sigma * draw();
    const std::string states = run_.name + ".states";
    for (int step = static_cast<int>(plan_.steps.size()) - 1; step >= 0; --step) {
      const at::Tensor output = denoise(x, step);
      const SolverStep& update = solver_.steps[step];
      take(update, x, output, update.noisy ? draw() : x, held_x, held_eps);
      if (context_.reference.has(states))
        report.compare(fmt::format("{}.states {}", prefix, plan_.steps.size() - step), x,
                       context_.reference.at(states)[static_cast<int64_t>(plan_.steps.size()) - step],
                       kForwardTolerance);
    }
    return x;
  }

 private:
  // What guidance makes of both rows; of the original's halves both.
  at::Tensor denoise(const at::Tensor& x, int step) {
    const Request& request = run_.request;
    at::Tensor input = x;
    if (request.guided()) {
      const at::Tensor half = run_.original_halves ? x.slice(0, 0, x.size(0) / 2) : x;
      input = at::cat({half, half});
    }
    std::vector<Row> rows;
    for (size_t row = 0; row < labels_.size(); ++row)
      rows.push_back({&plan_.steps[step], labels_[row], histories_.empty() ? nullptr : &histories_[row]});
    std::vector<Work> work(rows.size());
    TokenTrace trace;
    ForwardOutputs outputs{{}, work, &trace};
    engine_->forward(input, rows, *workspace_, outputs);
    RunPlan decided;
    decided.config = plan_.config;
    decided.steps.assign(rows.size(), plan_.steps[step]);
    margin_.add(decided, trace);
    at::Tensor out = outputs.out;
    if (!request.guided()) return out;
    apply_guidance(out, request.cfg_scale, request.channels_guided(plan_.config));
    return run_.original_halves ? out : out.slice(0, 0, x.size(0)).contiguous();
  }

  void take(const SolverStep& update, at::Tensor& x, const at::Tensor& output, const at::Tensor& noise,
            at::Tensor& held_x, at::Tensor& held_eps) const {
    const auto size = static_cast<size_t>(x[0].numel()), output_size = static_cast<size_t>(output[0].numel());
    const bool learned = plan_.config.learn_sigma && !plan_.config.drops_variance;
    const auto row_of = [&](const at::Tensor& all, int64_t row) {
      return std::span(all[row].data_ptr<float>(), size);
    };
    for (int64_t row = 0; row < x.size(0); ++row) {
      const float* eps = output[row].data_ptr<float>();
      apply_step(update, {.x = row_of(x, row),
                          .eps = {eps, size},
                          .variance = {eps + size, learned ? output_size - size : 0},
                          .noise = row_of(noise, row),
                          .held_x = row_of(held_x, row),
                          .held_eps = row_of(held_eps, row)});
    }
  }

  const VerifyContext& context_;
  const FamilyRun& run_;
  Checkpoint checkpoint_;
  RunPlan plan_;
  Solver solver_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<Workspace> workspace_;
  std::vector<int64_t> labels_;
  std::vector<History> histories_;
  Margin margin_;
};

FamilyRun read_run(const VerifyContext& context, const std::string& name, const json& run) {
  const DiTConfig& config = context.checkpoint.config;
  FamilyRun read = run.contains("sampling_method") ? sit_run(run, config.objective)
                   : run.contains("interval")      ? skip_run(context.reference, name, run)
                                                   : uvit_run(run, config.objective);
  read.name = name;
  read.request.mode = config.is_dynamic() && !name.starts_with("static") ? Mode::Dynamic : Mode::Static;
  if (read.unreplayable.empty()) plan_by_policy({.cache = read.cache}, config, read.request);
  return read;
}

// What the network was given, and which steps were complete.
void verify_steps(const VerifyContext& context, const FamilyRun& run, const RunPlan& plan,
                  const std::string& prefix, VerifyReport& report) {
  const Reference& reference = context.reference;
  if (reference.has(run.name + ".model_times")) {
    const at::Tensor want = reference.at(run.name + ".model_times").to(at::kDouble);
    const int64_t each = want.numel() / static_cast<int64_t>(plan.steps.size());  // calls an evaluation
    std::vector<double> times;
    for (auto step = plan.steps.rbegin(); step != plan.steps.rend(); ++step) times.push_back(step->timestep);
    report.compare(prefix + ".model_times", at::tensor(times, at::kDouble).repeat_interleave(each), want,
                   kForwardTolerance);
  }
  if (reference.has(run.name + ".full")) {
    const at::Tensor want = reference.at(run.name + ".full").to(at::kLong).flatten();
    std::vector<int64_t> full;
    for (auto step = plan.steps.rbegin(); step != plan.steps.rend(); ++step) {
      const auto skipped = [](const RangePlan& range) { return range.skipped(); };
      full.push_back(std::none_of(step->ranges.begin(), step->ranges.end(), skipped));
    }
    report.count(prefix + ".full", (at::tensor(full) != want).sum().item<int64_t>(), want.numel());
  }
}

}  // namespace

void verify_family_runs(const VerifyContext& context, VerifyReport& report) {
  const Reference& reference = context.reference;
  const std::optional<json> runs = parse_json(reference.metadata("runs"), /*max_depth=*/3);
  if (!runs || !runs->is_object()) return;
  DYDIT_USAGE_CHECK(context.dtype == at::kFloat,
                    "--dtype bf16: sampling runs are compared in float32 only; use --dtype f32");
  c10::InferenceMode guard;
  const at::Tensor start = checked_input(context, "start");
  for (const auto& [name, metadata] : runs->items()) {
    const FamilyRun run = read_run(context, name, metadata);
    if (!run.unreplayable.empty()) {
      report.skip(name, run.unreplayable);
      continue;
    }
    const at::Tensor noise =
        reference.has(name + ".noise") ? reference.at(name + ".noise").to(at::kFloat) : at::Tensor();
    for (const EngineKind engine : context.engines()) {
      FamilyReplay replay(context, engine, run, "y");
      const std::string prefix = fmt::format("{} {}", kEngineNames[engine], name);
      if (engine == EngineKind::Reference) verify_steps(context, run, replay.plan(), name, report);
      const at::Tensor got = replay.run(start, noise, report, prefix);
      report.compare(prefix + ".out", got, reference.at(name + ".out"), kRunTolerance, {}, &replay.margin());
    }
  }
}

namespace {

// A training step under `prefix` ("", "linear.", "gvp.") as it was recorded.
class RecordedStep {
 public:
  RecordedStep(const VerifyContext& context, const std::string& prefix, const Objective& objective)
      : context_(context), prefix_(prefix), objective_(objective), model_(make_model(context.checkpoint)) {
    model_->config.objective = objective;
    model_->train();
  }

  void verify(VerifyReport& report) {
    const Reference& reference = context_.reference;
    const DiTConfig& config = context_.checkpoint.config;
    const at::Tensor x0 = checked_input(context_, "data"), noise = checked_input(context_, "noise");
    const std::vector<double> times = checked_timesteps(context_, "t");
    const at::Tensor t = objective_.continuous() ? at::tensor(times, at::kDouble)
                                                 : at::tensor(times, at::kDouble).to(at::kLong);
    const at::Tensor y =
        config.num_classes > 0 ? reference.at("y").to(at::kLong) : at::zeros({x0.size(0)}, at::kLong);
    const at::Tensor x_t = q_sample(x0, t, noise, objective_), t_emb = model_->embed_timestep(t);
    if (prefix_.empty() && reference.has("x_t"))
      report.compare("x_t", x_t, reference.at("x_t"), kForwardTolerance);
    const auto loss_of = [&](const at::Tensor& output) {
      return diffusion_loss(output, x0, x_t, t, noise, objective_);
    };
    at::Tensor total;
    if (config.is_dynamic()) {
      TrainingGates gates(model_, t_emb, recorded_noise(reference, config, prefix_), GateKind::Hard);
      const DiffusionLoss dynamic = loss_of(model_->forward(x_t, t_emb, y, gates.gates()));
      const DiffusionLoss complete = loss_of(model_->forward(x_t, t_emb, y));
      const at::Tensor ratio = gates.ratio().mean();
      const at::Tensor flops = flops_loss(ratio, reference.at("target").item<double>());
      total = dynamic.mse.mean() + complete.mse.mean() + flops;
      compare(report, "loss", dynamic.mse);
      compare(report, "complete_loss", complete.mse);
      compare(report, "flops_ratio", ratio.view({1}));
      compare(report, "flops_loss", flops.view({1}));
    } else {
      const DiffusionLoss loss = loss_of(model_->forward(x_t, t_emb, y));
      total = (loss.mse + loss.vb).mean();
      compare(report, "mse", loss.mse);
      compare(report, "vb", loss.vb);
    }
    compare(report, "total", total.view({1}));
    total.backward();
    compare_gradients(report);
  }

 private:
  void compare(VerifyReport& report, const std::string& name, const at::Tensor& got) const {
    report.compare(prefix_ + name, got.detach(), context_.reference.at(prefix_ + name).view(got.sizes()),
                   kTrainingTolerance);
  }

  // Those that are recorded, by the names of their layout: ||a - b|| / max(||b||, 1e-6 ||all||).
  void compare_gradients(VerifyReport& report) {
    const Reference& reference = context_.reference;
    const DiTConfig& config = context_.checkpoint.config;
    const LayoutNames names(layout_of(config), config.depth);
    const std::string grad = prefix_ + "grad.";
    const auto parameters = model_->named_parameters();
    double all = 0;
    for (const std::string& name : reference.names())
      if (name.starts_with(grad)) all += std::pow(reference.at(name).norm().item<double>(), 2);
    for (const std::string& name : reference.names()) {
      if (!name.starts_with(grad)) continue;
      const at::Tensor* parameter = parameters.find(names.ours(name.substr(grad.size())));
      const at::Tensor& want = reference.at(name);
      DYDIT_CHECK(parameter && parameter->grad().defined() && parameter->sizes() == want.sizes(),
                  "{}: {} does not fit the model", reference.path(), name);
      const double scale = std::max(want.norm().item<double>(), 1e-6 * std::sqrt(all));
      report.error(name, (parameter->grad() - want).norm().item<double>() / scale, kTrainingTolerance);
    }
  }

  const VerifyContext& context_;
  const std::string prefix_;
  const Objective objective_;
  DiT model_;
};

}  // namespace

void verify_family_training(const VerifyContext& context, VerifyReport& report) {
  DYDIT_USAGE_CHECK(context.dtype == at::kFloat,
                    "--dtype bf16: a training step is compared in float32 only; use --dtype f32");
  const Objective& trained = context.checkpoint.config.objective;
  bool any = false;
  for (const std::string path : {"linear", "gvp", "vp"}) {
    if (!context.reference.has(path + ".total")) continue;
    any = true;
    RecordedStep(context, path + ".", {kPathNames.at(path).path, trained.prediction, trained.clock})
        .verify(report);
  }
  if (!any) RecordedStep(context, "", trained).verify(report);
}

}  // namespace dydit
