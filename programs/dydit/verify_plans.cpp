// Recorded sampling runs of plans: what is computed, kept and forecast, with both engines.
#include <cstring>
#include <filesystem>

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <fmt/format.h>

#include "dydit/base/error.h"
#include "dydit/pipeline/generate.h"
#include "verify.h"

namespace dydit {
namespace {

constexpr const char* kOut = ".out";

// "dynamic.s12.taylor_n3_o1"
struct RunName {
  std::string all, mode, spacing, plan;
};

std::vector<RunName> recorded_runs(const Reference& reference) {
  std::vector<RunName> runs;
  for (const std::string& name : reference.names()) {
    if (!name.ends_with(kOut)) continue;
    const std::string all = name.substr(0, name.size() - std::strlen(kOut));
    const size_t first = all.find('.'), second = all.find('.', first + 1);
    if (second == std::string::npos) continue;
    runs.push_back(
        {all, all.substr(0, first), all.substr(first + 1, second - first - 1), all.substr(second + 1)});
  }
  return runs;
}

void compare_plan_run(const VerifyContext& context, const Pipeline& pipeline, EngineKind engine,
                      const RunName& name, VerifyReport& report) {
  const Reference& reference = context.reference;
  const DiTConfig& config = context.checkpoint.config;
  const std::filesystem::path file = std::filesystem::path(reference.path()).parent_path() / "plans" /
                                     fmt::format("{}_{}.json", name.spacing, name.plan);
  const at::Tensor z = checked_input(context, "z");
  const std::vector<int64_t> labels = checked_labels(context, "y", z.size(0));
  Request request;
  request.classes.assign(labels.begin(), labels.end());
  request.num_images = static_cast<int>(labels.size());
  request.sampler = {SamplerKind::Ddim, 0};
  request.cfg_scale = reference.at("cfg_scale").item<float>();
  request.mode = kModeNames.at(name.mode);
  request.plan = read_plan(file, config);
  DYDIT_CHECK(checked_timesteps(context, "timesteps_" + name.spacing) == request.plan->timesteps(),
              "{}: timesteps_{} are not those of {}", reference.path(), name.spacing, file.string());

  const auto course = std::make_shared<Course>(request, pipeline.plan(request));
  Scheduler scheduler(pipeline.engine(), {.batch = request.num_images, .threads = context.threads});
  scheduler.add(course, 0, request.num_images);
  for (int i = 0; i < request.num_images; ++i) scheduler.in_flight()[i].x.copy_(z[i]);
  const std::string prefix = fmt::format("{} {}", kEngineNames[engine], name.all);
  const auto compare = [&](const std::string& what, const at::Tensor& got) {
    const std::string key = name.all + what;
    if (reference.has(key))
      report.compare(prefix + what, got, reference.at(key).view(got.sizes()), kForwardTolerance);
  };
  for (int step = request.total_steps() - 1; step >= 0; --step) {
    const at::Tensor first = scheduler.in_flight()[0].x;
    const std::vector<Sample> finished = scheduler.step();
    compare(fmt::format(".model_out_{}", step), scheduler.outputs()[0]);
    compare(fmt::format(".x_{}", step), first);
    if (finished.empty()) continue;
    std::vector<at::Tensor> images;
    std::vector<int64_t> macs;
    for (const Sample& sample : finished) {
      images.push_back(sample.x);
      macs.push_back(sample.work.required);
    }
    compare(kOut, at::stack(images));
    const at::Tensor& want = reference.at(name.all + ".macs");
    report.count(prefix + ".macs", (at::tensor(macs) != want).sum().item<int64_t>(), want.numel());
  }
}

}  // namespace

void verify_plans(const VerifyContext& context, VerifyReport& report) {
  const std::vector<RunName> runs = recorded_runs(context.reference);
  if (runs.empty()) return;
  DYDIT_USAGE_CHECK(context.dtype == at::kFloat,
                    "--dtype bf16: runs of plans are compared in float32 only; use --dtype f32");
  for (const EngineKind engine : context.engines()) {
    const Pipeline pipeline(context.checkpoint, engine, context.options(engine, context.dtype));
    c10::InferenceMode guard;
    for (const RunName& name : runs) compare_plan_run(context, pipeline, engine, name, report);
  }
}

}  // namespace dydit
