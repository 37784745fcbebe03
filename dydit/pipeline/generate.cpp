// Read Pipeline::generate() first: add a batch, step until none is in flight.
#include "dydit/pipeline/generate.h"

#include <algorithm>
#include <optional>

#include <ATen/ops/isfinite.h>
#include <ATen/ops/stack.h>
#include <c10/core/InferenceMode.h>
#include <fmt/format.h>

#include "dydit/base/error.h"
#include "dydit/base/machine.h"
#include "dydit/io/text.h"

namespace dydit {
namespace {

// Before anything is allocated: what cannot fit is refused instead of slowly running out.
void check_run_memory(const Checkpoint& checkpoint, const GenerateOptions& options, int ranges = 0) {
  check_memory(least_generate_bytes(checkpoint, options, 1, ranges), model_name(checkpoint.config),
               "take a smaller model");
  const int count = std::min(options.batch, options.num_images);
  check_memory(least_generate_bytes(checkpoint, options, count, ranges),
               fmt::format("a batch of {} images", count), "take a smaller --batch");
}

// What a batch keeps of its features is never shrunk silently.
void check_cache_memory(at::ScalarType kept, const Course& course, const SamplingOptions& options) {
  const int64_t image = cache_bytes(course.plan, course.request, kept), allowed = cache_allowance(options),
                count = std::min(options.batch, course.request.num_images);
  DYDIT_CHECK(image * count <= allowed,
              "plan {} keeps {} of features an image, {} for a batch of {}, and may keep {}: {}",
              quote(course.plan.name), memory_text(image), memory_text(image * count), count,
              memory_text(allowed),
              image <= allowed ? fmt::format("take --batch {} or a larger --cache-memory", allowed / image)
                               : "take a larger --cache-memory or a plan of a lower order");
}

Preview preview_of(std::span<const Sample> samples) {
  std::vector<at::Tensor> images;
  for (const Sample& sample : samples) images.push_back(sample.x0);
  return {samples[0].index, samples[0].steps_done(), at::stack(images),
          samples.size() > 1 ? samples[1].index - samples[0].index : 1};
}

}  // namespace

EngineOptions GenerateOptions::engine_options() const {
  EngineOptions options{.dtype = dtype, .threads = threads, .where = where};
  options.where.rows = int64_t{batch} * (guided() ? 2 : 1);
  return options;
}

Pipeline::Pipeline(const Checkpoint& checkpoint, EngineKind kind, const EngineOptions& options)
    : checkpoint_(checkpoint),
      kind_(kind),
      engine_options_(options),
      engine_(make_engine(kind, checkpoint, options)) {
  checkpoint.check_unchanged();  // the engine's weights are those whose hash the record names
}

RunPlan Pipeline::plan(const Request& request) const {
  check_request(engine_->config(), request);
  check_few_step(checkpoint_.few_step, engine_->config().objective, request);
  if (request.plan && request.plan->model_sha256) {
    DYDIT_USAGE_CHECK(*request.plan->model_sha256 == checkpoint_.sha256,
                      "plan {} is for the model of SHA-256 {:.10}, {} is of {:.10}",
                      quote(request.plan->name), *request.plan->model_sha256, checkpoint_.path.string(),
                      checkpoint_.sha256);
  }
  return complete_plan(request,
                       widths(run_spacing(request, engine_->config().objective).timesteps, request.mode));
}

RunPlan Pipeline::widths(std::span<const double> timesteps, Mode mode) const {
  const std::lock_guard lock(mutex_);
  std::vector<double> missing;
  std::copy_if(timesteps.begin(), timesteps.end(), std::back_inserter(missing), [&](double t) {
    return !steps_.contains({mode, t});
  });
  RunPlan plan = make_width_plan(checkpoint_, missing, mode);
  if (!missing.empty()) checkpoint_.check_unchanged();
  for (size_t i = 0; i < missing.size(); ++i) {
    std::vector<StepPlan>& known = steps_[{mode, missing[i]}];
    known.push_back(std::move(plan.steps[i]));
    for (std::vector<StepPlan>& of_level : plan.larger) known.push_back(std::move(of_level[i]));
  }
  plan.steps.clear();
  for (std::vector<StepPlan>& of_level : plan.larger) of_level.clear();
  for (const double t : timesteps) {
    const std::vector<StepPlan>& known = steps_.at({mode, t});
    plan.steps.push_back(known[0]);
    for (size_t level = 0; level < plan.larger.size(); ++level)
      plan.larger[level].push_back(known[level + 1]);
  }
  constexpr size_t kMostSteps = 4096;  // of continuous time there is no end
  if (steps_.size() > kMostSteps) steps_.clear();
  return plan;
}

void Pipeline::generate(const Request& request, const SamplingOptions& options,
                        const GenerateCallbacks& callbacks) const {
  const auto planned = course(request, options, nullptr, nullptr);
  c10::InferenceMode guard;
  Scheduler scheduler(*engine_, options);
  run(planned, scheduler, options, callbacks);
}

void Pipeline::generate(const Request& request, const SamplingOptions& options,
                        const GenerateCallbacks& callbacks, const Stitch& stitch,
                        const Pipeline& small) const {
  const auto planned = course(request, options, &stitch, &small);
  c10::InferenceMode guard;
  Scheduler scheduler(*engine_, options, small.engine_.get());
  run(planned, scheduler, options, callbacks);
}

std::shared_ptr<Course> Pipeline::course(const Request& request, const SamplingOptions& options,
                                         const Stitch* stitch, const Pipeline* small) const {
  StitchedPlan planned{plan(request), {}};
  if (stitch != nullptr) {
    check_stitch(checkpoint_, *stitch);
    std::vector<double> timesteps;
    for (const StepPlan& step : planned.plan.steps) timesteps.push_back(step.timestep);
    const Mode mode = stitch->mode(checkpoint_.config, request);
    planned = stitched_plan(*stitch, std::move(planned.plan), small->widths(timesteps, mode));
  }
  const auto course = std::make_shared<Course>(
      request, std::move(planned.plan), Extras{.x0 = options.preview_every > 0, .entries = options.token_map},
      std::move(planned.small));
  check_run(request, options);
  for (const Pipeline* one : {this, small}) {
    if (one != nullptr)
      check_run_memory(one->checkpoint_,
                       {request, options, one->engine_options_.dtype, one->kind_, one->engine_options_.where},
                       course->plan.ranges);
  }
  check_cache_memory(kept_type(kind_, engine_options_), *course, options);
  return course;
}

void Pipeline::run(const std::shared_ptr<Course>& course, Scheduler& scheduler,
                   const SamplingOptions& options, const GenerateCallbacks& callbacks) const {
  const Request& request = course->request;
  const int num_steps = request.total_steps();
  const int64_t images = options.images_made(request.num_images);
  const long batches = (images + options.batch - 1) / options.batch;
  for (long b = 0; b < batches; ++b) {
    const int done_before = static_cast<int>(b * options.batch),
              count = static_cast<int>(std::min<int64_t>(options.batch, images - done_before));
    scheduler.add(course, options.first + done_before * options.stride, count, options.stride);
    std::vector<Sample> finished;
    for (int done = 1; done <= num_steps; ++done) {
      finished = scheduler.step();
      if (callbacks.on_step) callbacks.on_step(done == num_steps ? finished : scheduler.in_flight());
      if (callbacks.on_progress) callbacks.on_progress({"steps", b * num_steps + done, batches * num_steps});
      if (done == num_steps) break;
      if (callbacks.on_preview && options.preview_every > 0 && done % options.preview_every == 0)
        callbacks.on_preview(preview_of(scheduler.in_flight()));
      if (callbacks.cancel && *callbacks.cancel) throw Cancelled();
    }
    std::vector<GeneratedSample> samples;  // of a batch with a broken image none is delivered
    for (const Sample& sample : finished) samples.push_back(delivered(sample));
    for (GeneratedSample& sample : samples) callbacks.on_sample(std::move(sample));
    if (callbacks.cancel && *callbacks.cancel && b + 1 < batches) throw Cancelled();
  }
}

void generate(const Checkpoint& checkpoint, const GenerateOptions& options,
              const GenerateCallbacks& callbacks) {
  check_request(checkpoint.config, options);
  check_few_step(checkpoint.few_step, checkpoint.config.objective, options);
  check_run(options, options);
  check_run_memory(checkpoint, options);
  const EngineOptions engine = options.engine_options();
  if (!options.stitch)
    return Pipeline(checkpoint, options.engine, engine).generate(options, options, callbacks);
  check_stitch(checkpoint, *options.stitch);
  const Pipeline pipeline(checkpoint, options.engine, engine),
      small(*options.stitch->small, options.engine, engine);
  pipeline.generate(options, options, callbacks, *options.stitch, small);
}

GeneratedSample delivered(const Sample& sample) {
  DYDIT_CHECK(at::isfinite(sample.x).all().item<bool>(),
              "image {}: sampling gave NaN or infinity; try float32, less guidance or more steps",
              sample.index);
  GeneratedSample result{sample.index, sample.label, sample.x, sample.seconds, sample.work};
  if (sample.entries.defined()) {
    const Course& course = *sample.course;
    int64_t forwards = 0;
    for (size_t step = 0; step < course.plan.steps.size(); ++step)
      forwards += course.plan.rows(step, course.request.guided());
    result.token_share = sample.entries.div(forwards * course.plan.config.depth);
  }
  return result;
}

double least_generate_bytes(const Checkpoint& checkpoint, const GenerateOptions& options, int count,
                            int ranges) {
  const DiTConfig& config = checkpoint.config;
  const int64_t rows = int64_t{count} * (options.guided() ? 2 : 1);
  const double plane = static_cast<double>(config.input_size) * config.input_size,
               state = static_cast<double>(rows + count) * config.in_channels * plane,  // input rows and x
      tokens = static_cast<double>(rows) * config.num_tokens(),
               entries = static_cast<double>(count) * config.num_tokens(),
               traces = options.token_map && config.token_routers ? tokens * 2.0 * config.depth + entries : 0;
  return least_engine_bytes(options.engine, checkpoint, options.engine_options(), rows, ranges) +
         (state + traces) * sizeof(float);
}

}  // namespace dydit
