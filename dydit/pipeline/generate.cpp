// One screen: see generate() at the end.
#include "dydit/pipeline/generate.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/zeros.h>
#include <c10/core/InferenceMode.h>
#include <fmt/format.h>

#include "dydit/base/error.h"
#include "dydit/base/machine.h"
#include "dydit/base/memory_reuse.h"
#include "dydit/base/noise.h"
#include "dydit/base/timer.h"
#include "dydit/base/torch_noise.h"
#include "dydit/diffusion/schedule.h"
#include "dydit/model/macs.h"

namespace dydit {
namespace {

void check_options(const DiTConfig& config, const GenerateOptions& options) {
  DYDIT_USAGE_CHECK(!options.classes.empty(), "no class given; expected 0 to {}", config.num_classes - 1);
  for (const int label : options.classes) {
    DYDIT_USAGE_CHECK(label >= 0 && label < config.num_classes, "class {}: this model has classes 0 to {}",
                      label, config.num_classes - 1);
  }
  DYDIT_USAGE_CHECK(options.num_images >= 1, "{} images: expected 1 or more", options.num_images);
  DYDIT_USAGE_CHECK(options.batch >= 1, "batch {}: expected 1 or more", options.batch);
  DYDIT_USAGE_CHECK(options.sampler.eta >= 0 && options.sampler.eta <= 1, "eta {}: expected 0 to 1",
                    options.sampler.eta);
  DYDIT_USAGE_CHECK(std::isfinite(options.cfg_scale), "cfg scale {}: expected a number", options.cfg_scale);
  DYDIT_USAGE_CHECK(options.channels_guided(config) >= 1, "{} guided channels: expected 1 or more",
                    options.channels_guided(config));
  DYDIT_USAGE_CHECK(
      options.noise != NoiseKind::Torch || options.num_images <= options.batch,
      "--noise torch draws for one batch, as the original script does: {} images need --batch {}, "
      "got {}",
      options.num_images, options.num_images, options.batch);
  DYDIT_USAGE_CHECK(options.preview_every >= 0 &&
                        (options.preview_every == 0 || options.preview_every < options.total_steps()),
                    "--preview-every {}: with {} steps expected 1 to {}", options.preview_every,
                    options.total_steps(), options.total_steps() - 1);
  DYDIT_USAGE_CHECK(options.threads >= 1, "{} threads: expected 1 or more", options.threads);
}

// Before anything is allocated: what cannot fit is refused instead of slowly running out.
void check_run_memory(const Checkpoint& checkpoint, const GenerateOptions& options) {
  check_memory(least_generate_bytes(checkpoint, options, 1), model_name(checkpoint.config),
               "take a smaller model");
  const int count = std::min(options.batch, options.num_images);
  check_memory(least_generate_bytes(checkpoint, options, count), fmt::format("a batch of {} images", count),
               "take a smaller --batch");
}

// Samples images [first, first + count) together.
std::vector<GeneratedSample> generate_batch(
    Engine& engine, const WidthPlan& plan, const DiffusionTables& tables, const GenerateOptions& options,
    int first, int count, const std::function<void(int done, const at::Tensor& x0)>& between) {
  const Timer timer;
  const DiTConfig& config = plan.config;
  const int rows = options.guided() ? 2 * count : count;
  std::vector<int64_t> labels(rows, config.null_class());
  for (int i = 0; i < count; ++i) labels[i] = options.label(first + i);
  std::vector<Work> work(rows);

  std::optional<TorchNoise> stream;
  if (options.noise == NoiseKind::Torch) stream.emplace(options.seed);
  // Draw 0 is the start.
  const auto fill_rows = [&](at::Tensor& noise, int draw) {
    if (stream) {
      // The original draws for both guidance halves in every step and drops the second at the end.
      at::Tensor all =
          at::empty({draw == 0 ? count : rows, noise.size(1), noise.size(2), noise.size(3)}, at::kFloat);
      stream->fill({all.data_ptr<float>(), static_cast<size_t>(all.numel())});
      noise.copy_(all.slice(0, 0, count));
      return;
    }
    for (int i = 0; i < count; ++i) {
      fill_normal({noise.data_ptr<float>() + i * noise.stride(0), static_cast<size_t>(noise.stride(0))},
                  options.seed, first + i, draw);
    }
  };
  const bool trace_tokens = options.token_map && plan.route_tokens;
  TokenTrace trace;
  at::Tensor entries;  // (rows, N): how often each token entered an MLP
  if (trace_tokens) entries = at::zeros({rows, config.num_tokens()}, at::kFloat);
  const auto forward = [&](const at::Tensor& state, int step) {
    at::Tensor out = engine.forward(state, step, labels, work, trace_tokens ? &trace : nullptr);
    if (trace_tokens) entries += trace.masks.sum(1);  // small whole numbers: exact in any order
    return config.semantics == Semantics::Original ? out : out.slice(1, 0, config.in_channels).contiguous();
  };
  const auto denoise = [&](const at::Tensor& x, int step) {
    if (!options.guided()) return forward(x, step);
    at::Tensor out = forward(at::cat({x, x}), step);
    apply_guidance(out, options.cfg_scale, options.channels_guided(config));
    return out.slice(0, 0, count);
  };

  at::Tensor x = at::empty({count, config.in_channels, config.input_size, config.input_size}, at::kFloat);
  fill_rows(x, 0);
  const auto draw_noise = [&](at::Tensor& noise, int draw) { fill_rows(noise, draw + 1); };
  sample(tables, options.sampler, x, denoise, draw_noise, between, /*keep_x0=*/options.preview_every > 0);

  const double seconds = timer.seconds() / count;
  std::vector<GeneratedSample> samples;
  for (int i = 0; i < count; ++i) {
    Work total = work[i];
    if (options.guided()) {
      total.required += work[count + i].required;
      total.executed += work[count + i].executed;
    }
    DYDIT_CHECK(at::isfinite(x[i]).all().item<bool>(),
                "image {}: sampling gave NaN or infinity; try float32, less guidance or more steps",
                first + i);
    samples.push_back({first + i, static_cast<int>(labels[i]), x[i].clone(), seconds, total});
    if (trace_tokens) {
      const at::Tensor sum = options.guided() ? entries[i].add(entries[count + i]) : entries[i];
      samples.back().token_share = sum.div(tables.num_steps() * config.depth * (rows / count));
    }
  }
  return samples;
}

}  // namespace

void generate(const Checkpoint& checkpoint, const GenerateOptions& options,
              const GenerateCallbacks& callbacks) {
  check_options(checkpoint.config, options);
  check_run_memory(checkpoint, options);
  c10::InferenceMode guard;
  std::optional<MemoryReuse> reuse;  // no memory is asked for after the first steps
  if (options.engine == EngineKind::Cpu) reuse.emplace();
  const Spacing spacing = run_spacing(options);
  const WidthPlan plan = make_width_plan(checkpoint, spacing.timesteps, options.mode);
  const DiffusionTables tables = make_diffusion_tables(spacing.timesteps);
  const auto engine =
      make_engine(options.engine, checkpoint, plan, {.dtype = options.dtype, .threads = options.threads});
  checkpoint.check_unchanged();  // the engine's weights are those whose hash the record names

  const int num_steps = options.total_steps();
  const long batches = (int64_t{options.num_images} + options.batch - 1) / options.batch;
  for (long b = 0; b < batches; ++b) {
    const int first = static_cast<int>(b * options.batch),
              count = std::min(options.batch, options.num_images - first);
    const auto between = [&](int done, const at::Tensor& x0) {
      if (callbacks.on_progress) {
        callbacks.on_progress({"steps", b * num_steps + done, batches * num_steps});
      }
      if (callbacks.on_preview && options.preview_every > 0 && done % options.preview_every == 0 &&
          done < num_steps) {
        callbacks.on_preview({first, done, x0});
      }
      if (callbacks.cancel && *callbacks.cancel && done < num_steps) throw Cancelled();
    };
    for (GeneratedSample& sample : generate_batch(*engine, plan, tables, options, first, count, between)) {
      callbacks.on_sample(std::move(sample));
    }
    if (callbacks.cancel && *callbacks.cancel && b + 1 < batches) throw Cancelled();
  }
}

int GenerateOptions::channels_guided(const DiTConfig& config) const {
  const int own = config.semantics == Semantics::Diffusers ? config.in_channels : kGuidedChannels;
  return std::min(guided_channels.value_or(own), config.in_channels);
}

Spacing run_spacing(const GenerateOptions& options) {
  if (options.timesteps.empty()) return choose_timesteps(options.sampler.kind, options.num_steps);
  return {sorted_timesteps(options.timesteps), "by hand"};
}

double least_generate_bytes(const Checkpoint& checkpoint, const GenerateOptions& options, int count) {
  const DiTConfig& config = checkpoint.config;
  const int64_t rows = int64_t{count} * (options.guided() ? 2 : 1);
  const double plane = static_cast<double>(config.input_size) * config.input_size,
               state =
                   2.0 * count * config.in_channels * plane,  // x, and the step's noise or predicted image
      input = options.guided() ? static_cast<double>(rows) * config.in_channels * plane : 0,
               tokens = static_cast<double>(rows) * config.num_tokens(),
               traces = options.token_map && config.token_routers ? tokens * (2.0 * config.depth + 1) : 0;
  return least_engine_bytes(options.engine, checkpoint, {.dtype = options.dtype, .threads = options.threads},
                            rows) +
         (state + input + traces) * sizeof(float);
}

int64_t static_macs_per_sample(const DiTConfig& config, const GenerateOptions& options) {
  return static_macs(config) * options.total_steps() * (options.guided() ? 2 : 1);
}

}  // namespace dydit
